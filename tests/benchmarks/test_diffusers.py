"""The program that sets diffusers' UNet, dense and sparse, beside ours."""

import importlib
import json
from pathlib import Path

from tests.diffusers_here import diffusers_or_skip


def test_sparse_diffusers_does_what_ours_does(tmp_path: Path) -> None:
    diffusers_or_skip()
    program = importlib.import_module("benchmarks.diffusers")
    output = tmp_path / "diffusers.json"
    assert program.main(["--quick", "--output", str(output)]) == 0
    dense, sparse, ours = json.loads(output.read_text())["rows"]
    assert dense["share"] == 1 and dense["row"] == program.DENSE
    assert abs(sparse["gmacs"] / ours["gmacs"] - 1) < 0.01 and sparse["share"] < 0.5
    assert sparse["error"] < 1e-4 and ours["error"] == 0
    assert "| ours, preset fast" in output.with_suffix(".md").read_text()
