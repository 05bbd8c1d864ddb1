"""The program that checks and times the kernels, in its quick form."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import kernels
from sgm.errors import UserError

pytest.importorskip("triton", reason="triton is not installed (it has no build for this system)")


def test_every_operator_is_checked_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kernels.json"
    monkeypatch.setattr(sys, "argv", ["kernels", "--quick", "--output", str(path)])
    assert kernels.main() == 0
    figures = json.loads(path.read_text())
    rows = {row["operator"].split(" ")[0]: row for row in figures["rows"]}
    others = {"conv_scatter", "group_norm", "layer_norm", "gated"}
    assert set(rows) == {"conv", "gather", "scatter", "attention"} | others
    assert all(row["right"] for row in rows.values())
    assert "wrong: none" in capsys.readouterr().out


def test_a_wrong_operator_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernels", "--quick", "--output", str(tmp_path / "k.json")])
    for name in ("conv", "blocks", "norms", "gated"):
        monkeypatch.setattr(kernels, f"bench_{name}", lambda *_: None)
    monkeypatch.setattr(kernels, "relative_error", lambda out, exact: float("nan"))
    assert kernels.main() == 1
    assert "wrong: gather 24 45 of 128, scatter 24 45 of 128" in capsys.readouterr().out


def test_without_a_gpu_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("Backend 'triton' cannot run here: no.")

    monkeypatch.setattr(sys, "argv", ["kernels"])
    monkeypatch.setattr(kernels, "select_ops", refuse)
    with pytest.raises(UserError, match="with --quick"):
        kernels.main()
