"""Whole edits, composed of passes that were timed."""

import shutil
from pathlib import Path

import pytest

from benchmarks import compose
from benchmarks.common import RESULTS
from sgm.errors import UserError
from tests.conftest import ROOT

TOOK = {
    ("unet", "dense"): 10.0,
    ("unet", "published"): 3.0,
    ("unet", "fast"): 1.0,
    ("encoder", "dense"): 7.0,
    ("encoder", "published"): 0.5,
    ("encoder", "fast"): 0.25,
    ("decoder", "dense"): 8.0,
    ("decoder", "published"): 4.0,
    ("decoder", "fast"): 2.0,
}


def test_inpainting_is_the_passes_that_it_makes() -> None:
    assert compose.edits(TOOK, 50, drawn=False) == {
        "dense": 7 + 500 + 8,
        "published": 7 + 50 * 13 + 8 + 4,
        "cold": 7 + 6 * 10 + 50 + 8,
        "warm, new prompt": 50 + 2 + 30,
        "warm": 50 + 2,
    }


def test_sdedit_encodes_what_was_drawn_on_too() -> None:
    found = compose.edits(TOOK, 40, drawn=True)
    assert found["published"] == 7 + 0.5 + 40 * 13 + 8 + 4
    assert found["cold"] == 7 + 0.25 + 6 * 10 + 40 + 8
    assert found["warm"] == 0.25 + 40 + 2


def test_the_table_is_that_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in compose.FILES.values():
        shutil.copy(RESULTS / name, tmp_path / name)
    assert compose.main(["--folder", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed in (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_passes_that_were_not_timed_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"benchmarks\.rivals"):
        compose.main(["--folder", str(tmp_path)])
