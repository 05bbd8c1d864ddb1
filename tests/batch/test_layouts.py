"""Public sets of edits laid out as rows, from miniatures in the published layout."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgm.errors import UserError
from tests.batch.edits import lines_of, run
from tests.batch.layouts import HEIGHT, WIDTH, make_magicbrush, make_pie_bench
from tools.layout_edits import main


def rows_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "edits.jsonl").read_text().splitlines()]


def mask_of(folder: Path, row: dict[str, str]) -> np.ndarray:
    with Image.open(folder / row["mask_path"]) as picture:
        return np.asarray(picture.convert("L")) == 255


def test_pie_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pie_bench(tmp_path / "copy")
    assert main(["pie_bench", str(tmp_path / "copy"), str(tmp_path / "edits")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/edits/edits.jsonl\n"
    first, second = rows_of(tmp_path / "edits")
    assert first["prompt"] == "a slanted rusty mountain bicycle"
    assert first["picture_prompt"] == "a slanted mountain bicycle"
    assert first["output"] == "000000000000.png"
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[20:30, 50:80] = True
    assert np.array_equal(mask_of(tmp_path / "edits", first), expected)
    expected[:] = False
    expected[-1, -5:] = True
    assert np.array_equal(mask_of(tmp_path / "edits", second), expected)
    assert run(tmp_path / "edits" / "edits.jsonl", tmp_path / "out") == 0
    assert [line["output"] for line in lines_of(tmp_path / "out")] == [
        "000000000000.png",
        "111000000003.png",
    ]


def test_magicbrush(tmp_path: Path) -> None:
    make_magicbrush(tmp_path / "copy")
    assert main(["magicbrush", str(tmp_path / "copy"), str(tmp_path / "edits")]) == 0
    first, second = rows_of(tmp_path / "edits")
    assert (first["prompt"], first["picture_prompt"]) == (
        "caption of 7-output1.png",
        "caption of 7-input.png",
    )
    assert Path(second["init_img"]) == tmp_path / "copy" / "images" / "7" / "7-output1.png"
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[20:40, 60:80] = True
    assert np.array_equal(mask_of(tmp_path / "edits", second), expected)
    reference = tmp_path / "edits" / "references" / second["output"]
    assert (
        reference.read_bytes()
        == (tmp_path / "copy" / "images" / "7" / "7-output2.png").read_bytes()
    )
    words = ["--against", str(tmp_path / "edits" / "references")]
    assert run(tmp_path / "edits" / "edits.jsonl", tmp_path / "out", *words) == 0
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert summary.startswith("2 of 2 results have a reference picture.")


def test_magicbrush_without_captions_has_its_instructions(tmp_path: Path) -> None:
    make_magicbrush(tmp_path / "copy", captions=False)
    assert main(["magicbrush", str(tmp_path / "copy"), str(tmp_path / "edits")]) == 0
    found = [(row["prompt"], row["picture_prompt"]) for row in rows_of(tmp_path / "edits")]
    assert found == [("do the 1.", ""), ("do the 2.", "")]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mapping_file.json does not exist"):
        main(["pie_bench", str(tmp_path), str(tmp_path / "edits")])
    make_magicbrush(tmp_path)
    mask = tmp_path / "images" / "7" / "7-mask2.png"
    Image.open(mask).convert("RGB").save(mask)
    with pytest.raises(UserError, match=r"7-mask2.png has no transparency"):
        main(["magicbrush", str(tmp_path), str(tmp_path / "edits")])
