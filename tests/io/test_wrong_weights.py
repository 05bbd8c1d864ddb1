"""Weights files that cannot be used, given on the command line: one sentence and exit code 2."""

import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import convert_weights
from sgm.cli import main as cli
from sgm.cli.program import run_program
from sgm.io import convert
from sgm.io.checkpoint import build_model, load_weights
from sgm.io.weights_file import CheckpointError
from sgm.specs import Weights
from tests.conftest import ROOT, tiny_weights

pytest_plugins = ["tests.cli.rights"]

Rights = Callable[..., AbstractContextManager[None]]

CONFIG = ROOT / "configs" / "tiny-original.yaml"
UNET = "model.diffusion_model."


class Bomb:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def good() -> dict[str, Tensor]:
    """The tensors of a whole file for the tiny network."""
    model = build_model(CONFIG)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: tensor.half() for name, tensor in tiny_weights(shapes).items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a picture and a mask; the tests put the weights beside them."""
    return fill(tmp_path)


def fill(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    np.save(folder / "mask.npy", np.eye(64, dtype=bool))
    return folder


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused program said last: one sentence, and nothing on stdout."""
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert not out and "Traceback" not in err
    assert line.endswith(".") and not line.endswith("..")
    return line


def edit(folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The last words of an edit that is refused; checks that it leaves nothing behind."""
    given = {
        "--init_img": folder / "picture.png",
        "--mask_path": folder / "mask.npy",
        "--weight_path": folder,
        "--config_path": ROOT / "configs",
        "--output_path": folder / "out" / "result.png",
    }
    argv = ["--model", "tiny", "--prompt", "a horse", "--device", "cpu"]
    argv += [str(word) for pair in given.items() for word in pair]
    before = sorted(folder.iterdir())
    assert run_program("run.py", lambda: cli.main([*argv, *words])) == 2
    assert sorted(folder.iterdir()) == before
    line = last_line(capsys)
    assert line.startswith("run.py: ")
    return line


def conversion(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The last words of a conversion that is refused."""
    argv = [str(word) for word in words]
    assert run_program("convert_weights.py", lambda: convert_weights.main(argv)) == 2
    line = last_line(capsys)
    assert line.startswith("convert_weights.py: ")
    return line


def sparse_file(path: Path, head: bytes, size: int) -> None:
    """A file of any size that takes no room: everything after its first bytes is a hole."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


NO_CHECKPOINT = {
    "empty": (b"", 0, " is empty; "),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", 130, "git lfs pull"),
    "html": (b"<!DOCTYPE html><html><body>Sign in</body></html>", 900, "web page"),
    "zip": (b"PK\x03\x04archive/data.pkl", 2**20, "pickles are never opened"),
    "long-header": (
        struct.pack("<Q", 100_000_001),
        200_000_000,
        "its header claims 100000001 bytes",
    ),
    "truncated-header": (struct.pack("<Q", 5000) + b'{"a":', 1000, "ends inside its header"),
}


@pytest.mark.parametrize("name", NO_CHECKPOINT)
def test_files_that_are_no_checkpoint(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, size, words = NO_CHECKPOINT[name]
    path = folder / "tiny_base.safetensors"
    sparse_file(path, head, size)
    line = edit(folder, capsys)
    assert words in line and str(path) in line
    line = conversion(capsys, path, folder / "new.safetensors")
    assert words in line and str(path) in line
    assert not (folder / "new.safetensors").exists()


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {name.replace(old, new): t for name, t in tensors.items()}


def refiner(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a refiner has: one tower, the big one, in the first place."""
    kept = {n: t for n, t in tensors.items() if not n.startswith("conditioner.embedders.0.")}
    return renamed("conditioner.embedders.1.", "conditioner.embedders.0.")(kept)


def diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    unet = {n.removeprefix(UNET): t for n, t in tensors.items() if n.startswith(UNET)}
    return renamed("input_blocks.", "down_blocks.")(unet)


WRONG = {
    "refiner": (refiner, "it looks like the SDXL refiner, and SDXL base or turbo is needed"),
    "sd15": (renamed("conditioner.embedders.0.", "cond_stage_model."), "Stable Diffusion 1 or 2"),
    "diffusers": (diffusers, "a diffusers UNet; name the folder that unet is in"),
    "missing": (lambda t: {n: t[n] for n in sorted(t)[4:]}, "of its tensors 4 missing ("),
    "shape": (lambda t: t | {f"{UNET}out.0.bias": torch.ones(7)}, "[7] instead of ["),
    "type": (
        lambda t: t | {f"{UNET}out.0.bias": t[f"{UNET}out.0.bias"].to(torch.uint16)},
        f"1 tensors of a type that is not read here ({UNET}out.0.bias)",
    ),
    "nan": (
        lambda t: t | {f"{UNET}out.0.bias": t[f"{UNET}out.0.bias"] * float("nan")},
        f"tensor {UNET}out.0.bias holds NaN",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_checkpoints_of_another_network(
    name: str, good: dict[str, Tensor], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = WRONG[name]
    tensors = change(dict(good))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "tiny_base.safetensors")
    assert words in edit(folder, capsys)


def test_a_checkpoint_cut_short(
    good: dict[str, Tensor], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "tiny_base.safetensors"
    save_file(good, path)
    size = path.stat().st_size
    os.truncate(path, size - 1000)
    assert f"it has {size - 1000} bytes instead of {size}; download it again" in edit(
        folder, capsys
    )


def test_base_given_as_refiner(tmp_path: Path) -> None:
    """The other way round: a network with the refiner's one tower meets a file of the base."""
    model: nn.Module = nn.ParameterDict({"weight": nn.Parameter(torch.ones(1))})
    for part in ("ln_final", "model", "0", "embedders", "conditioner"):
        model = nn.ModuleDict({part: model})
    names = ("conditioner.embedders.0.transformer.a", "conditioner.embedders.1.model.b")
    save_file({name: torch.ones(1) for name in names}, tmp_path / "base.safetensors")
    with pytest.raises(
        CheckpointError, match="looks like SDXL base or turbo, and the SDXL refiner is needed"
    ):
        load_weights(
            model, Weights(tmp_path / "base.safetensors"), torch.device("cpu"), torch.float32
        )


def test_an_absent_checkpoint_is_named_with_its_page(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = edit(folder, capsys, "--model", "sdxl")
    assert str(folder / "sd_xl_base_1.0.safetensors") in line
    assert "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0" in line
    assert "or try --model tiny" in line


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("form", ["pickle", "archive"])
def test_pickles_are_never_opened(
    suffix: str, form: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, made = folder / f"sd_xl_base_1.0{suffix}", folder / "made"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Bomb(made)))
    else:
        torch.save({"weight": Bomb(made)}, path)
    line = edit(folder, capsys, "--model", "sdxl")
    assert f"{path.name} does, but pickles are never opened" in line
    # By another name, too, and as the source of a conversion.
    copy = folder / "tiny_base.safetensors"
    copy.write_bytes(path.read_bytes())
    assert "pickles are never opened" in edit(folder, capsys)
    assert "pickles are never opened" in conversion(capsys, path, folder / "new.safetensors")
    assert "pickles are never opened" in conversion(capsys, "--check", path)
    assert not made.exists()


@pytest.fixture
def everybodys(open_folder: Path) -> Path:
    """The same in a folder that everybody may pass, with configurations."""
    shutil.copytree(CONFIG.parent, open_folder / "configs")
    return fill(open_folder)


def test_a_checkpoint_that_may_not_be_read(
    good: dict[str, Tensor], everybodys: Path, rights: Rights, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = everybodys
    path = folder / "tiny_base.safetensors"
    save_file(good, path)
    assert convert.DTYPES  # imported by now, as nobody may not be able to
    with rights(path, 0):
        line = edit(folder, capsys, "--config_path", str(folder / "configs"))
        assert f"Checkpoint {path} cannot be opened: Permission denied" in line
        line = conversion(capsys, path, folder / "new.safetensors")
        assert f"{path} cannot be opened: Permission denied" in line


def test_a_folder_of_checkpoints_that_may_not_be_entered(
    everybodys: Path, rights: Rights, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = everybodys / "closed"
    closed.mkdir()
    with rights(closed, 0):
        words = ("--config_path", str(everybodys / "configs"), "--weight_path", str(closed))
        assert "Permission denied" in edit(everybodys, capsys, *words)


def test_a_folder_in_place_of_a_checkpoint(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tiny_base.safetensors").mkdir()
    assert "tiny_base.safetensors cannot be opened: Is a directory" in edit(folder, capsys)
    line = conversion(capsys, folder / "tiny_base.safetensors", folder / "new.safetensors")
    assert "is a folder" in line


def test_a_conversion_that_outgrows_the_disk(
    good: dict[str, Tensor], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system's limit on the size of a file stands for a disk that fills up meanwhile."""
    source = folder / "tiny_base.safetensors"
    save_file(good, source)
    before = sorted(folder.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        line = conversion(capsys, source, folder / "new.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "new.safetensors cannot be written: File too large; choose another place" in line
    assert sorted(folder.rglob("*")) == before


def test_the_programs_themselves_exit_with_2(folder: Path) -> None:
    path = folder / "tiny_base.ckpt"
    path.write_bytes(pickle.dumps([1, 2, 3]))
    command = [sys.executable, "convert_weights.py", "--check", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"convert_weights.py: Weights file {path} cannot be read")
    assert done.stderr.count("\n") == 1 and done.stderr.endswith(".\n")
