"""The benchmark of batches: that it runs, and how it counts."""

import json
from pathlib import Path

import pytest

from benchmarks import batch
from sgm.errors import UserError


def test_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "batch.json"
    assert batch.main(["--quick", "--no-ray", "--output", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["rows"] == 4 and set(figures["seconds"]) == {"loop", "batch"}
    for name, seconds in figures["seconds"].items():
        assert figures["rows_a_minute"][name] == pytest.approx(60 * 4 / seconds, rel=1e-3)
    assert figures["times_the_loop"]["loop"] == 1 and figures["machine"]["cores"]
    speed = figures["rows_a_minute"]["batch"]
    assert f"| batch | {speed:.1f} |" in capsys.readouterr().out


def test_batches_that_differ_are_no_comparison(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(content)
    batch._check(tmp_path, 1, ["a", "b"])
    with pytest.raises(UserError, match="The batch c made other pictures than a"):
        batch._check(tmp_path, 1, ["a", "b", "c"])
    with pytest.raises(UserError, match="made other pictures"):
        batch._check(tmp_path, 2, ["a"])


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such thing"):
        batch.timed(["python3", "-c", "raise SystemExit('no such thing')"], tmp_path)
