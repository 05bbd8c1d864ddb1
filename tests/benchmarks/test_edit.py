"""The benchmark of edits, with random weights and few steps."""

import json
from pathlib import Path

import pytest

from benchmarks import edit
from sgm.cli.program import run_program

QUICK = ["--random_weights", "--steps", "2", "--edits", "2", "--refresh", "1", "2"]
ONE = ["--edits", "2", "--examples", "sdedit 0"]
SMALL = ["--H", "64", "--W", "128", "--device", "cpu"]


def test_every_run_of_every_edit_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "edit.json"
    assert edit.main([*QUICK, *SMALL, "--output", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert list(figures["edits"]) == ["inpainting", "sdedit 0", "sdedit 1"]
    for name, found in figures["edits"].items():
        runs = ["dense", "published", "fast, cold", "fast, cold, K=1", "fast, cold, K=2"]
        assert list(found["runs"]) == [*runs, "fast, warm, edit 2"]
        assert all(timing["seconds"]["total"] > 0 for timing in found["runs"].values())
        assert found["runs"]["dense"]["psnr"] is None
        assert found["record"]["steps"] == (2 if name == "inpainting" else 1)
        assert found["record"]["step_bytes"] > 0
    table = path.with_suffix(".md").read_text()
    assert table.strip() in capsys.readouterr().out and "1.00x" in table


def test_turbo_takes_four_steps_and_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    assert edit.main(["--turbo", *QUICK[:1], *SMALL, *ONE, "--output", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["steps"] == 4 and list(figures["edits"]) == ["sdedit 0"]
    cold = ["--random_weights", "--steps", "2", "--refresh", "1", "--examples", "sdedit 0"]
    assert edit.main([*cold, "--edits", "0", *SMALL, "--output", str(path)]) == 0
    [found] = json.loads(path.read_text())["edits"].values()
    assert list(found["runs"]) == ["dense", "published", "fast, cold", "fast, cold, K=1"]
    assert "record" not in found and "recording" not in path.with_suffix(".md").read_text()
    for number in ("1", "-1"):
        with pytest.raises(SystemExit, match="2"):
            edit.main(["--edits", number])
    absent = ["--weight_path", str(tmp_path), *SMALL, "--output", str(path)]
    assert run_program("edit", lambda: edit.main(absent)) == 2
