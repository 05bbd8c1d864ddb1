"""The benchmark of the README's tables: rows, ratios, the file that it keeps, and the README."""

import json
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.published import PUBLISHED
from sgm.cli.main import parse
from sgm.errors import UserError
from tests.conftest import ROOT

RESULTS = json.loads((ROOT / "benchmarks/results/tables.json").read_text(encoding="utf-8"))
QUICK = ["--quick", "--macs_only", "--device", "cpu", "--models", "base", "--tasks", "inpainting"]


def arguments(*words: str):
    return tables.build_parser().parse_args(words)


def test_every_row_is_a_command_that_can_be_run() -> None:
    args = arguments("--device", "cpu")
    found = list(tables.cases(args))
    # Of each published table: SIGE at one or two examples, with both presets.
    assert len(found) == sum(2 * (len(rows) - 1) for rows in PUBLISHED.values())
    for case in found:
        options = parse(tables.words_of(case, args))
        assert options.random_weights and options.compare and options.preset == case.preset
        assert options.mode.network == case.network and options.refined is (case.model == "refiner")
        assert options.run_type.turbo is (case.model == "turbo")


def test_a_trial_writes_json_and_markdown_and_keeps_other_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tables.json"
    words = [*QUICK, "--networks", "encoder", "--output", str(output)]
    assert tables.main([*words, "--presets", "published"]) == 0
    figures = json.loads(output.read_text())
    (row,) = figures["rows"]
    assert row["sparse"]["gmacs"] < row["dense"]["gmacs"] and row["sparse"]["latency_ms"] is None
    assert {"device", "driver", "machine", "versions", "commit"} <= figures.keys()
    markdown = output.with_suffix(".md").read_text()
    assert "| encoder, original | " in markdown and "not timed" in markdown
    assert markdown in capsys.readouterr().out
    assert tables.main([*words, "--presets", "fast", "--update"]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert rows[0] == row and [r["preset"] for r in rows] == ["published", "fast"]
    figures["device"] = "cuda:0 (another)"
    output.write_text(json.dumps(figures))
    with pytest.raises(UserError, match="was measured on cuda:0"):
        tables.main([*words, "--presets", "fast", "--update"])


def made_up(milliseconds: tuple[float, float], pictures: str = "published") -> dict[str, object]:
    """A row of the base's UNet on the inpainting mask."""
    dense, sparse = (
        {"gmacs": gmacs, "gmacs_with_attention": gmacs + 1, "latency_ms": {"median": ms}}
        for gmacs, ms in zip((3000.0, 1000.0), milliseconds, strict=True)
    )
    row = {"model": "base", "network": "unet", "task": "inpainting", "example": "mask"}
    row |= {"preset": "published", "precision": "fp32", "pictures": pictures, "backend": "torch"}
    return row | {"model_family": "sdxl", "dense": dense, "sparse": sparse}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_ratios_are_of_dense_to_sparse() -> None:
    lines = tables.table({"rows": [made_up((50.0, 20.0))]}, "base", "inpainting").splitlines()
    dense = ["UNet, original", "3015.82", "3000.00", "3001.00", "319.99", "50.00", "-", "-"]
    sparse = ["UNet, SIGE", "974.42", "1000.00", "1001.00", "130.08", "20.00", "2.46x", "2.50x"]
    assert [cells(line) for line in lines[2:]] == [dense, sparse]
    counted = tables.table({"rows": [made_up((None, None))]}, "base", "inpainting").splitlines()
    assert [len(cells(line)) for line in counted] == [6] * 4  # no column of ours without a figure
    package = made_up((50.0, 25.0)) | {"backend": "sige"}
    line = tables.table({"rows": [package]}, "base", "inpainting").splitlines()[-1]
    assert cells(line)[0] == "UNet, SIGE, package sige" and cells(line)[-1] == "2.00x"


def test_pictures_of_our_own_are_not_set_beside_published_figures() -> None:
    rows = {"rows": [made_up((50.0, 20.0), "own"), made_up((50.0, 20.0))]}
    found = tables.tables(rows)
    assert list(found) == ["base inpainting own", "base inpainting"]
    text = found["base inpainting own"]
    assert len(text.splitlines()) == 4
    assert "UNet, SIGE (own pictures)" in text and "974.42" not in text and "3015.82" not in text


def test_the_counts_of_the_results_are_the_published_ones() -> None:
    rows = [row for row in RESULTS["rows"] if row["preset"] == "published"]
    assert len(rows) == sum(len(known) - 1 for known in PUBLISHED.values())
    for row in rows:
        dense, sparse = tables.published(row)
        assert row["dense"]["gmacs"] == pytest.approx(dense.gmacs, rel=0.005)
        assert row["sparse"]["gmacs"] == pytest.approx(sparse.gmacs, rel=0.005)


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    names = {f"{model} {task}" for model, _, task in PUBLISHED}
    assert all(f"<!-- tables: {name} -->" in page for name in names)
    assert tables.into_page(page, RESULTS) == page
    own = ROOT / "benchmarks" / "results" / "tables_own.json"
    assert "<!-- tables: base sdedit own -->" in page
    assert tables.into_page(page, json.loads(own.read_text(encoding="utf-8"))) == page


def test_an_open_block_of_a_page_is_refused() -> None:
    with pytest.raises(UserError, match="does not close its block 'base inpainting'"):
        tables.into_page("<!-- tables: base inpainting -->\n| old |\n", RESULTS)
