"""The installed package: a wheel holds all that an edit with the tiny model needs."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.conftest import ROOT


def listed(name: str) -> set[tuple[str, str]]:
    """Names and versions of a requirements file."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    return {(requirement.name, str(requirement.specifier)) for requirement in wanted}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of a copy of this checkout was installed; without a network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    unwanted = shutil.ignore_patterns("__pycache__", "sd_xl_*")
    for folder in ("sgm", "configs", "pretrained"):
        shutil.copytree(ROOT / folder, source / folder, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for path in ROOT.glob("requirements*.txt"):
        shutil.copy(path, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps"]
    wheel = [*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", str(source), "."]
    subprocess.run(wheel, cwd=source, check=True, timeout=300)
    (made,) = source.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", target, made], check=True, timeout=300)
    return target


def test_the_command_edits_from_any_folder(installed: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    mask = np.zeros((64, 64), dtype=bool)
    mask[20:40, 30:50] = True
    np.save(tmp_path / "mask.npy", mask)
    (tmp_path / "pretrained").mkdir()  # what somebody keeps there does not hide what is shipped
    words = ["--model", "tiny", "--preset", "fast", "--run_type", "sige", "--steps", "2"]
    words += ["--prompt", "a horse", "--init_img", "picture.png", "--mask_path", "mask.npy"]
    words += ["--mask_feather", "0"]  # a hard edge: nothing around the mask changes
    command = [installed / "bin" / "sdxl-sige", *words, "--output_path", "out.png"]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "out.png\n"), done.stderr
    edited = np.asarray(Image.open(tmp_path / "out.png"))
    assert (edited[~mask] == pixels[~mask]).all() and (edited[mask] != pixels[mask]).any()
    refused = subprocess.run(
        [command[0], "--prompt", "x"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 2 and refused.stderr.startswith("sdxl-sige: ")


def test_needs_what_the_requirements_files_say(installed: Path) -> None:
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    needed: dict[str, set[tuple[str, str]]] = {
        extra: set() for extra in ("", "app", "diffusers", "ray")
    }
    for requirement in map(Requirement, found.requires or []):
        marker = requirement.marker
        [extra] = [e for e in needed if marker is None or marker.evaluate({"extra": e})][:1]
        needed[extra].add((requirement.name, str(requirement.specifier)))
    assert needed[""] == listed("requirements.txt")
    assert needed["app"] == listed("requirements-app.txt")
    assert needed["diffusers"] == listed("requirements-diffusers.txt")
    assert needed["ray"] == listed("requirements-ray.txt")
