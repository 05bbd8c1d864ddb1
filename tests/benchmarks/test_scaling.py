"""The program that counts how the cost of an edit grows: its sums, its masks, its drawing."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import scaling
from benchmarks.plot import Chart, Line, marks
from sgm.inference.presets import FAST


def test_a_trial_writes_figures_tables_and_a_drawing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, chart = tmp_path / "scaling.json", tmp_path / "scaling.svg"
    words = ["--model", "tiny", "--H", "64", "--W", "128", "--steps", "6", "--sizes", "64x64"]
    files = ["--output", str(output), "--chart", str(chart)]
    assert scaling.main([*words, "--shares", "0.05", "0.4", *files]) == 0
    figures = json.loads(output.read_text())
    small, large = figures["by_share"].values()
    assert small["dense"] == large["dense"] and small["warm"] < large["warm"] < large["cold"]
    assert small["warm"] < small["warm, new prompt"] < small["published"]
    passes = figures["passes_by_share"]["0.05"]
    dense = passes["encoder"] + 6 * passes["unet"] + passes["decoder"]
    assert small["dense"] == pytest.approx(dense, rel=1e-4)
    assert list(figures["by_size"]) == ["64x64"] and list(figures["by_steps"]) == [
        "4", "8", "20", "50"
    ]  # fmt: skip
    assert len(figures["by_shape"]) == 4
    assert "| 5.0% " in output.with_suffix(".md").read_text()
    assert output.with_suffix(".md").read_text().strip() in capsys.readouterr().out
    assert ElementTree.fromstring(chart.read_text()).tag.endswith("svg")


def test_what_an_edit_is_made_of() -> None:
    counts = scaling.Counts(
        encoder=1000,
        unet=100,
        decoder=2000,
        published_unet=30,
        published_decoder=300,
        fast_unet=10,
        fast_decoder=200,
    )
    found = {way: counts.edit(way, 50, FAST) for way in scaling.WAYS}
    assert found == {
        "dense": 1000 + 50 * 100 + 2000,
        "published": 1000 + 50 * 130 + 2300,
        "cold": 1000 + 6 * 100 + 50 * 10 + 2000,
        "warm": 50 * 10 + 200,
        "warm, new prompt": 50 * 10 + 200 + 3 * 100,
    }
    assert counts.edit("cold", 4, FAST) == 1000 + 4 * 110 + 2000  # all of four are recorded


def test_masks_have_the_share_that_is_asked_for() -> None:
    for size in ((512, 1024), (64, 64)):
        for share in (0.005, 0.05, 0.5):
            found = scaling.square(size, share).float().mean().item()
            assert found == pytest.approx(share, rel=0.1)
    for name, mask in scaling.shapes((512, 1024), 0.05):
        assert mask.float().mean().item() == pytest.approx(0.05, rel=0.05), name
    names = [name for name, _ in scaling.shapes((512, 1024), 0.05)]
    assert len(set(names)) == 4 and torch.bool == scaling.square((64, 64), 0.1).dtype


def test_where_sparse_stops_paying_lies_between_two_counts() -> None:
    rows = {"0.1": {"dense": 100.0, "a": 50.0}, "0.3": {"dense": 100.0, "a": 150.0}}
    assert scaling.pays_up_to(rows, "a") == pytest.approx(0.2)
    assert scaling.pays_up_to({k: {**r, "a": 90.0} for k, r in rows.items()}, "a") is None
    assert scaling.pays_up_to({k: {**r, "a": 101.0} for k, r in rows.items()}, "a") == 0.0


def test_a_drawing_has_its_lines_and_marks() -> None:
    assert marks(0.5, 50) == [0.5, 1, 2, 5, 10, 20, 50]
    lines = [Line("a < b", [(1, 1), (10, 10)]), Line("flat", [(1, 2), (10, 2)])]
    drawing = ElementTree.fromstring(Chart("across", "up", lines).svg())
    found = [node for node in drawing.iter() if node.tag.endswith("polyline")]
    first, last = (tuple(map(float, p.split(","))) for p in found[0].get("points").split())
    assert first[0] < last[0] and first[1] > last[1]  # y counts downwards
    assert {"a < b", "flat", "across", "up"} <= {node.text for node in drawing.iter()}
