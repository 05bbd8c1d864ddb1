"""The notebook: runs from top to bottom on the tiny family, and is stored without outputs."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.conftest import ROOT

PATH = ROOT / "notebooks" / "sdxl_sige.ipynb"
NEEDED = ("run.py", "sgm", "tools", "configs", "assets", "pretrained", "requirements.txt")
SMALL = 'STEPS, TIMING, DOWNLOAD, OPEN_PAGE = 2, "--macs_only", False, False'


@pytest.fixture
def notebook() -> NotebookNode:
    return nbformat.read(PATH, as_version=4)


def test_it_is_stored_without_outputs(notebook: NotebookNode) -> None:
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_it_runs_on_the_tiny_family(
    notebook: NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NEEDED:
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = SMALL
    resources = {"metadata": {"path": str(tmp_path)}}
    done = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources)
    shown = json.dumps([cell.get("outputs") for cell in done.execute().cells])
    # The mask, inpainting, a drawing and its SDEdit, a recording; a table and the two last lines.
    assert shown.count('"image/png"') == 5 and shown.count('"text/markdown"') == 3
    assert "| unet" in shown and "| decoder" in shown and "Not asked for" in shown
    assert "Not opened" in shown


def test_it_finds_the_repository(
    notebook: NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder inside a checkout by itself; elsewhere by the address, filled in once."""
    source = next(cell.source for cell in notebook.cells if "REPOSITORY =" in cell.source)
    assert sum("REPOSITORY =" in cell.source for cell in notebook.cells) == 1
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(ROOT / "notebooks")
    exec(source, {})
    assert Path.cwd() == ROOT
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="fill in REPOSITORY"):
        exec(source, {})
    address = tmp_path / "hosted"
    subprocess.run(["git", "init", "-q", str(address)], check=True)
    (address / "run.py").write_text("")
    git = ["git", "-C", str(address), "-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    subprocess.run([*git, "add", "run.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a"], check=True)
    exec(source.replace('REPOSITORY = ""', f'REPOSITORY = "file://{address}"'), {})
    assert Path.cwd() == tmp_path / "sdxl-sige" and Path("run.py").is_file()
