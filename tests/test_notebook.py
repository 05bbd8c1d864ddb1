"""The notebook: runs from top to bottom on the tiny family, and is stored without outputs."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.conftest import ROOT

PATH = ROOT / "notebooks" / "sdxl_sige.ipynb"
NEEDED = ("run.py", "sgm", "tools", "configs", "assets", "pretrained", "requirements.txt")
SMALL = 'STEPS, TURBO_STEPS, TIMING, DOWNLOAD = 1, 1, "--macs_only", False'


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
    # The mask, two edits, a session, and the extensions; two tables.
    assert shown.count('"image/png"') == 5 and shown.count('"text/markdown"') == 3
    assert "| unet" in shown and "| encoder" in shown
    made = {path.name for path in (tmp_path / "outputs").glob("*.png")}
    assert {"Original.png", "SIGE.png", "SIGE, fast.png"} <= made
