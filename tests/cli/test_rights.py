"""Pictures, masks and places of output without the rights to use them."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgm.cli import main as cli
from sgm.cli.program import run_program
from sgm.errors import UserError
from sgm.io import imageio, maskio
from tests.conftest import ROOT

Rights = Callable[..., AbstractContextManager[None]]

pytest_plugins = ["tests.cli.rights"]

assert maskio.load_mask and imageio.load_picture  # imported by now: nobody may not be able to


@pytest.fixture
def folder(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures, a mask, configurations and a stand-in for weights."""
    shutil.copytree(ROOT / "configs", open_folder / "configs")
    Image.new("RGB", (8, 8)).save(open_folder / "picture.png")
    np.save(open_folder / "mask.npy", np.eye(8, dtype=bool))
    (open_folder / "tiny_base.safetensors").write_bytes(b" ")
    (open_folder / "place").mkdir()
    monkeypatch.chdir(open_folder)
    return open_folder


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    argv = ["--prompt", "a horse", "--model", "tiny", "--device", "cpu", "--weight_path", "."]
    argv += ["--init_img", "picture.png", "--mask_path", "mask.npy", *words]
    assert run_program("run.py", lambda: cli.main(argv)) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.endswith(".\n")
    return err


@pytest.mark.parametrize("name", ["picture.png", "mask.npy"])
def test_a_file_that_may_not_be_read(
    name: str, folder: Path, rights: Rights, capsys: pytest.CaptureFixture[str]
) -> None:
    with rights(folder / name, 0):
        assert f"File {name} cannot be opened: Permission denied" in refused(capsys)


@pytest.mark.parametrize("flag", ["--output_path", "--json"])
@pytest.mark.parametrize("name", ["place/out.png", "place/new/out.png"])
def test_a_place_that_may_not_be_written_is_refused_before_weights_are_read(
    name: str, flag: str, folder: Path, rights: Rights, capsys: pytest.CaptureFixture[str]
) -> None:
    with rights(folder / "place", 0o555):
        line = refused(capsys, flag, name)
    assert f"Output {name} cannot be written" in line and "is not writable" in line
    assert list((folder / "place").iterdir()) == []


def test_a_picture_that_can_no_longer_be_written(folder: Path, rights: Rights) -> None:
    picture = Image.new("RGB", (8, 8))
    with rights(folder / "place", 0o555), pytest.raises(UserError, match=r"place/a\.png"):
        imageio.save_picture(picture, "place/a.png")
    assert list((folder / "place").iterdir()) == []
