"""A plugin for the tests of the command: a working folder.

Loaded by `pytest_plugins`, not imported: pytest warns of plugins that were imported before.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgm.specs import MODELS

SIZE = (40, 100)  # height, width: neither a multiple of 64


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures, masks, and empty files where models and configs go."""
    generator = np.random.default_rng(0)
    picture = generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "init.png")
    edited = picture.copy()
    edited[10:20, 30:50] ^= 255
    Image.fromarray(edited).save(tmp_path / "edited.png")
    Image.fromarray(picture ^ 128).save(tmp_path / "all.png")
    Image.fromarray(picture[:, :50]).save(tmp_path / "half.png")
    mask = np.zeros(SIZE, dtype=bool)
    for name, value in (("empty", mask), ("full", ~mask)):
        np.save(tmp_path / f"{name}.npy", value)
    mask[10:20, 30:50] = True
    np.save(tmp_path / "mask.npy", mask)
    for spec in MODELS.values():
        for kind, names in (("configs", spec.configs), ("pretrained", spec.weights)):
            (tmp_path / kind).mkdir(exist_ok=True)
            for name in names.values():
                (tmp_path / kind / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path
