"""Every shell command of README and docs, run as it stands but small: the tiny model, few steps."""

import contextlib
import functools
import io
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgm.cli import main as cli
from sgm.cli.main import parse
from sgm.cli.options import read
from sgm.io.imageio import load_picture, resize_picture, to_tensor
from sgm.io.maskio import load_mask
from sgm.metrics import psnr
from sgm.sparse.masks import difference_mask
from sgm.specs import RunOptions
from sgm.words import Mode, Preset, Task
from tests.conftest import ROOT
from tests.test_readme import blocks
from tools.compare import far_from

SIZE = (128, 256)
# Later options win, so these make any command small.
SMALL = ["--model", "tiny", "--H", str(SIZE[0]), "--W", str(SIZE[1]), "--steps", "3"]
SMALL += ["--device", "cpu"]
# Counting runs nothing, so pictures can be large enough for sparsity to pay.
COUNTED = ["--macs_only", "--H", "256", "--W", "512"]
# Beginnings of commands that are not run, and why.
NOT_RUN = {
    "make": "makes an environment, downloads PyTorch; `make test` is what runs this file",
    "SDXL_SIGE_SHARED=../shared make": "the same",
    "mkdir -p pretrained": "of no effect where the tiny model is",
    "wget https://huggingface.co/": "downloads 6 to 14 GB",
    "python convert_weights.py": "works on the download; tests/test_convert.py has its options",
    "nice python -m tools.tiny.train": "hours of training too",
    "python -m tools.tiny.train": "hours of training; the arguments are checked in test_readme.py",
    "python -m tools.install_sige": "downloads and compiles; tests/tools has its options",
    "python -m sgm.batch": "tests/batch/test_docs.py runs them, one after the other",
    "python -m tools.layout_edits": "the same",
    "pip install -r requirements-ray.txt": "downloads",
    "ray start": "starts what does not end by itself",
    "bash benchmarks/gpu.sh": "downloads, or wants a GPU; tests/benchmarks runs a part of it dry",
    "python -m benchmarks.": "measures real sizes; tests/benchmarks has the small ones",
}
# dB between dense and sparse, away from the edit, at the least. Three steps make rough pictures:
# found are 16.4 to 23.6, far below what 50 steps give. Another scene is at 10.7 at most; only the
# scenes of the two drawings are alike.
AGREEMENT = 14.0


def lines() -> list[str]:
    """Every command of the shell blocks, on one line."""
    found = []
    for block in blocks("shell"):
        joined = block.replace("\\\n", " ").splitlines()
        found += [line for line in joined if shlex.split(line, comments=True)]
    return found


# Those with a recording depend on each other; tests/test_record.py runs them in turn.
RUNS = [
    shlex.split(line, comments=True)[2:]
    for line in lines()
    if line.startswith("python run.py") and "--record" not in line
]


@dataclass(frozen=True)
class Outcome:
    """What a command gave: its options, stdout, figures, and picture (mode generate)."""

    options: RunOptions
    printed: str
    figures: dict
    picture: np.ndarray | None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the assets; configurations and weights are found."""
    path = tmp_path_factory.mktemp("readme")
    (path / "assets").symlink_to(ROOT / "assets")
    return path


@pytest.fixture(autouse=True)
def working_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs where a person would, with the folder as the current one."""
    monkeypatch.chdir(folder)


@functools.cache
def outcome(number: int) -> Outcome:
    """Run a command once, in the working folder."""
    words = [*RUNS[number], *SMALL]
    if read(words).mode.profiles:
        words += COUNTED
    options = parse(words)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main([*words, "--json", "figures.json"]) == 0
    picture = None
    if options.mode is Mode.GENERATE:
        with Image.open(options.output_path) as image:
            picture = np.asarray(image.convert("RGB"))
        options.output_path.unlink()
    return Outcome(
        options, printed.getvalue(), json.loads(Path("figures.json").read_text()), picture
    )


def names(numbers: list[int]) -> list[str]:
    """Ids of tests: what tells a command from the others."""
    told = []
    for number in numbers:
        values = read(RUNS[number])
        parts = [values.task, values.run_type, values.mode, f"seed{values.seed}"]
        told.append("-".join(map(str, [number, *parts, *["refined"] * values.refined])))
    return told


def of_mode(profiles: bool) -> list[int]:
    return [n for n, words in enumerate(RUNS) if read(words).mode.profiles is profiles]


def test_every_command_is_run_or_says_why_not() -> None:
    others = [line for line in lines() if not line.startswith("python run.py")]
    starts = {line: [s for s in NOT_RUN if line.startswith(s)] for line in others}
    assert not [line for line, found in starts.items() if not found]
    assert {found[0] for found in starts.values()} == set(NOT_RUN), "a reason for nothing"
    assert len(of_mode(False)) >= 20 and len(of_mode(True)) >= 18


@pytest.mark.parametrize("number", of_mode(False), ids=names(of_mode(False)))
def test_a_command_makes_its_picture(number: int) -> None:
    made = outcome(number)
    assert made.printed == f"{made.options.output_path}\n"
    assert made.picture is not None and made.picture.shape == (*SIZE, 3)
    assert made.picture.std() > 10  # neither blank nor grey
    assert made.figures["run_type"] == made.options.run_type
    assert made.figures["refined"] is made.options.refined


def dense_twin(number: int) -> int:
    """The command above a sparse one that makes the same edit densely."""
    sparse = read(RUNS[number])

    def same(words: list[str]) -> bool:
        other = read(words)
        return other.run_type is sparse.run_type.dense and all(
            getattr(other, name) == getattr(sparse, name)
            for name in ("task", "mode", "refined", "seed", "prompt")
        )

    return next(n for n in reversed(range(number)) if same(RUNS[n]))


# Those of preset published: pages that show preset fast have no dense command beside it.
SPARSE = [
    n
    for n in of_mode(False)
    if read(RUNS[n]).run_type.sparse and read(RUNS[n]).preset is Preset.PUBLISHED
]


def edited_part(options: RunOptions) -> torch.Tensor:
    """bool [H, W], where a command edits."""
    if options.task is Task.INPAINTING:
        return load_mask(options.mask_path, SIZE)
    pictures = (options.init_img, options.edited_img)
    init, edited = (to_tensor(resize_picture(load_picture(path), SIZE)) for path in pictures)
    return difference_mask(init, edited)


@pytest.mark.parametrize("number", SPARSE, ids=names(SPARSE))
def test_dense_and_sparse_agree_outside_the_edit(number: int) -> None:
    sparse, dense = outcome(number), outcome(dense_twin(number))
    outside = far_from(edited_part(sparse.options))
    assert outside.float().mean() > 0.1
    pictures = [torch.from_numpy(made.picture / 255).permute(2, 0, 1) for made in (dense, sparse)]
    assert not torch.equal(*pictures)
    assert psnr(*pictures, outside) > AGREEMENT


@pytest.mark.parametrize("number", of_mode(True), ids=names(of_mode(True)))
def test_a_profile_command_prints_its_figures(number: int) -> None:
    made = outcome(number)
    figures = made.figures
    row = "sparse" if made.options.run_type.sparse else "dense"
    printed = re.search(rf"^{row} +([\d.]+) ", made.printed, flags=re.MULTILINE)
    assert printed and float(printed[1]) == pytest.approx(figures["gmacs"], abs=0.006)
    if made.options.run_type.sparse:
        assert figures["gmacs"] < 0.95 * figures["dense"]["gmacs"]
