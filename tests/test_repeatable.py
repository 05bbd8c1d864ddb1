"""One command, one picture: the same bytes from another process, and whatever ran before."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgm import cli
from sgm.inference.pipeline import Pipeline
from tests.conftest import ROOT

BASE = ["--model", "tiny", "--device", "cpu", "--steps", "2", "--init_img", "init.png"]
BASE += ["--backend", "torch"]
BASE += ["--config_path", str(ROOT / "configs"), "--weight_path", str(ROOT / "pretrained")]
INPAINT = [*BASE, "--prompt", "a horse", "--mask_path", "mask.npy", "--seed", "7"]
SDEDIT = [*BASE, "--task", "sdedit", "--prompt", "a sun", "--edited_img", "edited.png"]
SIGE, FAST = ["--run_type", "sige"], ["--run_type", "sige", "--preset", "fast"]
# What is compared, and what runs before it in the one process, on the same networks.
COMPARED = {"published": [*INPAINT, *SIGE], "fast": [*SDEDIT, *FAST]}
BETWEEN = {
    "published": [
        [*SDEDIT, *SIGE, "--strength", "0.6", "--seed", "8"],
        [*INPAINT, *SIGE, "--H", "128", "--W", "64", "--prompt", "a house", "--steps", "1"],
    ],
    "fast": [[*INPAINT, *FAST, "--mask_path", "other.npy", "--negative_prompt", "fog"]],
}
# A fresh process that runs commands given as JSON.
FRESH = "import json, sys\nfrom sgm import cli\nfor c in json.loads(sys.argv[1]): cli.main(c)"


@pytest.fixture
def load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Pipeline.load`, which loads each network once."""
    load, loaded = Pipeline.load, {}

    def once(*arguments: object) -> Pipeline:
        key = arguments[1], arguments[7]  # run type and preset
        loaded.setdefault(key, None)
        loaded[key] = loaded[key] or load(*arguments)
        return loaded[key]

    monkeypatch.setattr(Pipeline, "load", once)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repeatable")
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (60, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "init.png")
    for name, (top, left) in {"mask": (10, 20), "other": (30, 70)}.items():
        mask = np.zeros((60, 120), dtype=bool)
        mask[top : top + 20, left : left + 40] = True
        np.save(folder / f"{name}.npy", mask)
    pixels[30:45, 60:90] ^= 255
    Image.fromarray(pixels).save(folder / "edited.png")
    return folder


def made(name: str) -> list[str]:
    """The command of a name, with a place for its picture."""
    return [*COMPARED[name], "--output_path", f"{name}.png"]


@pytest.fixture(scope="module")
def fresh(folder: Path) -> Callable[[str], bytes]:
    """The pictures of another process, which made them one after the other."""
    (folder / "fresh").mkdir()
    places = {name: ["--output_path", f"fresh/{name}.png"] for name in COMPARED}
    commands = [[*made(name), *place] for name, place in places.items()]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": str(ROOT),
    }
    subprocess.run(
        [sys.executable, "-c", FRESH, json.dumps(commands)],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        timeout=300,
    )
    return lambda name: (folder / "fresh" / f"{name}.png").read_bytes()


def test_nothing_but_the_command_decides(
    folder: Path,
    fresh: Callable[[str], bytes],
    load_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    for name in reversed(COMPARED):  # the other process began with the other
        for other in BETWEEN[name]:
            cli.main([*other, "--output_path", "between.png"])
        torch.manual_seed(len(name))  # the process's own generator plays no part
        cli.main(made(name))
        assert Path(f"{name}.png").read_bytes() == fresh(name), name
        assert Path(f"{name}.png").read_bytes() != Path("between.png").read_bytes()
