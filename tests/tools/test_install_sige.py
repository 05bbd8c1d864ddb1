"""The installer of the published package: its shim, its environment, and what it refuses.

Nothing is downloaded or compiled here.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from sgm.errors import UserError
from tools import install_sige


def arguments(*words: str):
    return install_sige.build_parser().parse_args(words)


def test_the_shim_puts_the_missing_name_back(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    (tmp_path / "sitecustomize.py").write_text(install_sige.SHIM)
    code = "from torch.utils.cpp_extension import build_ext, BuildExtension; print(build_ext)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=dict(install_sige.environment(tmp_path, arguments())),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "setuptools" in done.stdout


def test_the_environment_of_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "before")
    found = install_sige.environment(tmp_path, arguments("--jobs", "3", "--cpu"))
    assert found["PYTHONPATH"].split(install_sige.os.pathsep) == [str(tmp_path), "before"]
    assert found["MAX_JOBS"] == "3" and found["CUDA_VISIBLE_DEVICES"] == ""
    assert "--target" not in install_sige.command(None)
    assert install_sige.command(tmp_path)[-2:] == ["--target", str(tmp_path)]


@pytest.mark.parametrize(
    ("codes", "message"),
    [([1], "was not built; pip says why"), ([0, 1], "cannot be imported: ImportError: no symbol")],
)
def test_a_failure_is_a_sentence(
    codes: list[int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(codes)

    def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], left.pop(0), "", "Traceback\nImportError: no symbol")

    monkeypatch.setattr(install_sige.subprocess, "run", run)
    monkeypatch.setattr(install_sige.shutil, "which", lambda name: name)
    with pytest.raises(UserError, match=message):
        install_sige.main([])
    assert not left


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_sige.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"no C\+\+ compiler"):
        install_sige.main([])
