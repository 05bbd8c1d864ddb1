"""The table of the page's benchmark; tests/app/test_browser.py uses the page as it does."""

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from benchmarks.page import build_parser, table


def test_the_table_has_every_figure() -> None:
    warm = {"click": 1.25, "python": 1.0, "added": 0.25}
    figures = {"seconds": {"open and record": 2.0, "first edit": 3.0}, "warm": warm}
    assert table(figures).splitlines() == [
        "| what | seconds |",
        "| --- | ---: |",
        "| open and record | 2.00 |",
        "| first edit | 3.00 |",
        "| warm edit, click | 1.25 |",
        "| warm edit, python | 1.00 |",
        "| warm edit, added | 0.25 |",
    ]
    assert build_parser().parse_args([]).edits == 5
