"""One command, one picture: the same bytes from another process, and whatever ran before."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgm.cli import main as cli
from sgm.inference.pipeline import Pipeline
from tests.conftest import ROOT

BASE = ["--model", "tiny", "--device", "cpu", "--steps", "2", "--init_img", "init.png"]
BASE += ["--backend", "torch"]
BASE += ["--config_path", str(ROOT / "configs"), "--weight_path", str(ROOT / "pretrained")]
INPAINT = [*BASE, "--prompt", "a horse", "--mask_path", "mask.npy", "--seed", "7"]
SDEDIT = [*BASE, "--task", "sdedit", "--prompt", "a sun", "--edited_img", "edited.png"]
SIGE, FAST = ["--run_type", "sige"], ["--run_type", "sige", "--preset", "fast"]
COMPARED = [*INPAINT, *SIGE]
# What runs before it in the one process: another preset, size, prompt and mask, task and schedule.
BETWEEN = (
    [*INPAINT, *FAST, "--H", "128", "--W", "64", "--prompt", "a house", "--mask_path", "other.npy"],
    [*SDEDIT, *SIGE, "--strength", "1", "--steps", "1", "--seed", "8"],
)


@pytest.fixture
def load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Pipeline.load`, which loads each network once."""
    load, loaded = Pipeline.load, {}

    def once(*arguments: object, **settings: object) -> Pipeline:
        key = arguments[1], arguments[7]  # run type and preset
        loaded.setdefault(key, None)
        loaded[key] = loaded[key] or load(*arguments, **settings)
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


def test_nothing_but_the_command_decides(
    folder: Path, load_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, str(ROOT / "run.py"), *COMPARED, "--output_path", "fresh.png"]
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE) as other:
        monkeypatch.chdir(folder)
        for number, words in enumerate((COMPARED, *BETWEEN, COMPARED)):
            torch.manual_seed(number)  # the process's own generator plays no part
            cli.main([*words, "--output_path", f"{number}.png"])
        _, said = other.communicate(timeout=300)
    assert other.returncode == 0, said.decode()
    first, *between, last = ((folder / f"{number}.png").read_bytes() for number in range(4))
    assert last == first == (folder / "fresh.png").read_bytes()
    assert first not in between
