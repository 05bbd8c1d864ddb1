"""The program that counts what a session keeps."""

import json
from pathlib import Path

import pytest

from benchmarks import recordings


def test_every_part_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recordings.json"
    words = ["--model", "tiny", "--H", "64", "--W", "128", "--steps", "9"]
    assert recordings.main([*words, "--output", str(path)]) == 0
    rows = json.loads(path.read_text())["sessions"]
    assert len(rows) == 2 * (3 + len(recordings.REGIONS))
    for row in rows:
        parts = row["encoder"] + row["decoder"] + row["steps"] * row["step"]
        assert row["recorded"] == parts
        assert row["total"] == parts + row["prompt_steps"] * row["step"]
        assert (row["encoder"] > 0) == (row["task"] == "sdedit")
    small = [row["total"] for row in rows if row["precision"] == "int8" and row["task"] == "sdedit"]
    assert small[1] <= small[2] <= small[3] <= small[0] and small[1] < small[0]
    [line] = [x for x in capsys.readouterr().out.splitlines() if "full, inpainting" in x]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[2:6] == [
        f"{rows[0]['step'] / 1e6:.0f}",
        "6",
        f"{rows[0]['decoder'] / 1e6:.0f}",
        "0",
    ]
