"""The script for a GPU that is at hand for minutes, tried on a CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_tables
from benchmarks.common import RESULTS
from sgm.errors import UserError
from tests.conftest import ROOT

pytest.importorskip("triton", reason="triton is not installed (it has no build for this system)")


def test_the_script_runs_dry(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    words = ["--dry", "--parts", "compiled", "edits", "--output", path]
    environment = os.environ | {"PYTHON": sys.executable, "PACKAGES": str(tmp_path / "packages")}
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu.sh", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    assert len(done.stdout.splitlines()) == len(figures["rows"]) == 1 + 3 * 3
    names = {row["name"] for row in figures["rows"]}
    assert {"dense compiled", "inpainting, cold", "sdedit 0, warm", "sdedit 1, dense"} <= names


def test_a_part_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(bench: gpu.Bench512) -> None:
        bench.report.add("kernels", "before")
        raise RuntimeError("no room")

    monkeypatch.setitem(gpu.PARTS, "kernels", fails)
    monkeypatch.setitem(gpu.PARTS, "passes", lambda bench: bench.report.add("passes", "after"))
    path = tmp_path / "gpu.json"
    words = ["--dry", "--parts", "kernels", "passes", "--output", str(path)]
    assert gpu.main(words) == 1
    rows = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in rows] == ["before", "failed", "after"]
    assert rows[1]["error"] == "RuntimeError: no room"
    assert "3 results" in capsys.readouterr().err


def test_tables_are_those_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "gpu.json"
    shutil.copy(RESULTS / "gpu.json", figures)
    assert gpu_tables.main([str(figures)]) == 0
    printed = capsys.readouterr().out
    assert printed == figures.with_suffix(".md").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    tables = [block for block in printed.split("\n\n") if block.startswith(("| pass", "| edit"))]
    assert tables and all(table.strip() in page for table in tables)


def test_no_figures_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gpu\.sh"):
        gpu_tables.main([str(tmp_path / "gpu.json")])
