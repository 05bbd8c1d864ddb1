"""The rows of a batch: files of rows, names and values, and every bad row by its number."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from sgm.batch.options import read_options
from sgm.batch.rows import Job, checked_jobs, grouped, read_rows
from sgm.errors import UserError
from tests.batch.edits import WORDS, inpainting_row, make_pictures, run, sdedit_row, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    make_pictures(path)
    return path


def jobs_of(
    folder: Path, rows: list[object], *words: str, name: str = "edits.jsonl"
) -> tuple[list[Job], dict[int, str]]:
    """The jobs of some rows, and the sentences on the bad ones."""
    edits = write_rows(folder, rows, name)
    values = read_options([str(edits), "--output", str(folder / "out"), *WORDS, *words])
    return checked_jobs(read_rows(edits), values)


GOOD = inpainting_row()
BAD = [
    ({**GOOD, "promt": "x"}, "unknown name 'promt' (did you mean prompt?)."),
    ({**GOOD, "model": "sdxl"}, "unknown name 'model'"),
    ({k: v for k, v in GOOD.items() if k != "prompt"}, "prompt is missing"),
    ({**GOOD, "prompt": ["a", "b"]}, 'prompt is ["a", "b"]; give a text or a number.'),
    ({**GOOD, "prompt": True}, "prompt is true; give a text or a number."),
    ({**GOOD, "task": "inpaint"}, "'inpaint' is not known; choose one of inpainting, sdedit"),
    ({**GOOD, "seed": -1}, "--seed: got '-1'; give a whole number from 0"),
    ({**GOOD, "seed": 1, "seeds": "1-2"}, "seed and seeds exclude each other"),
    ({**GOOD, "seeds": "4-1"}, "give 1 to 1000 seeds"),
    ({**GOOD, "seeds": "1,1"}, "each once"),
    ({**GOOD, "seeds": [1, "x"]}, "seeds: got 'x'; give a whole number"),
    ({**GOOD, "seeds": "0-99999999999"}, "give 1 to 1000 seeds"),
    ({**GOOD, "init_img": "none.png"}, "none.png does not exist"),
    ({**GOOD, "init_img": "edits.jsonl"}, "edits.jsonl is not a picture"),
    ({**GOOD, "mask_path": "bad.npy"}, "bad.npy cannot be read"),
    ({k: v for k, v in GOOD.items() if k != "mask_path"}, "Inpainting needs --mask_path"),
    ({**sdedit_row(), "edited_img": "small.png"}, "they must be the same picture"),
    ({**sdedit_row(), "strength": 0}, "--strength: got '0'"),
    ({**GOOD, "output": "../x.png"}, "output ../x.png leaves the output folder"),
    ({**GOOD, "output": "x.gif"}, "end the name in one of .png"),
    ({**GOOD, "output": "000001.png"}, "its output 000001.png is that of row 1 too."),
    ("a horse", "is no JSON object."),
]


def test_every_bad_row_is_named_with_its_number(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "bad.npy").write_bytes(b"\x93NUMPY and no more")
    Image.new("RGB", (64, 64)).save(folder / "small.png")
    rows = [GOOD, *(row for row, _ in BAD), inpainting_row(1)]
    jobs, bad = jobs_of(folder, rows)
    assert [job.row for job in jobs] == [1, len(rows)]
    assert list(bad) == list(range(2, len(rows)))
    for (row, sentence), found in zip(BAD, bad.values(), strict=True):
        assert sentence in found, (row, found)
        assert found.endswith(".") and "\n" not in found
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(UserError, match=f"^{len(BAD)} of {len(rows)} rows of .* add --skip_bad"),
    ):
        run(folder / "edits.jsonl", tmp_path)
    assert [record.getMessage() for record in caplog.records][:1] == [f"Row 2: {bad[2]}"]
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_bad_rows_are_left_out_if_asked(folder: Path, tmp_path: Path) -> None:
    edits = write_rows(folder, [{**GOOD, "seed": "x"}, GOOD], "skip.jsonl")
    assert run(edits, tmp_path, "--skip_bad") == 1
    first, second = map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    assert first == {"row": 1, "output": "", "error": first["error"]} and "seed" in first["error"]
    assert second["row"] == 2 and (tmp_path / second["output"]).is_file()
    assert run(edits, tmp_path, "--skip_bad") == 1  # with its own lines


def test_one_reason_for_all_rows_is_said_once(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^No row of 2 can be used: Checkpoint .* does not exist"):
        jobs_of(folder, [GOOD, inpainting_row(1)], "--weight_path", str(folder))


def test_the_command_line_holds_where_a_row_says_nothing(folder: Path) -> None:
    rows = [{"prompt": "a", "steps": 3}, {"prompt": "b", "seed": 9, "negative_prompt": "-c"}]
    words = ["--init_img", str(folder / "p0.png"), "--mask_path", str(folder / "m0.png")]
    (first, second), bad = jobs_of(folder, rows, *words, "--seed", "7")
    assert not bad
    assert (first.options.sampling.steps, second.options.sampling.steps) == (3, 2)
    assert (first.options.sampling.seed, second.options.sampling.seed) == (7, 9)
    assert second.options.sampling.negative_prompt == "-c"
    assert first.options.run_type == "sige" and first.options.preset == "fast"
    assert first.picture != second.picture  # another number of steps


def test_csv_and_lists_say_the_same_as_lines(folder: Path) -> None:
    rows = [
        inpainting_row(0, seed=4, prompt='a "red"\nhorse, or so\u2028'),
        sdedit_row(1, strength=0.5),
    ]
    names = sorted({name for row in rows for name in row})
    cells = [[str(row.get(name, "")).replace('"', '""') for name in names] for row in rows]
    lines = [",".join(names), *(",".join(f'"{cell}"' for cell in row) for row in cells)]
    (folder / "edits.csv").write_text("\ufeff" + "\n".join(lines) + "\n\n", encoding="utf-8")
    (folder / "list.json").write_text(json.dumps(rows), encoding="utf-8")
    texts = [{k: str(v) for k, v in row.items()} for row in rows]
    assert read_rows(folder / "edits.csv") == texts
    assert read_rows(folder / "list.json") == rows
    assert read_rows(write_rows(folder, rows, "lines.jsonl")) == rows
    (folder / "wide.csv").write_text("prompt,seed\na,1,2\n")
    assert read_rows(folder / "wide.csv") == ["has 1 more cells than the first line names."]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("rows.txt", "{}", "expected rows as .jsonl, .json or .csv"),
        ("rows.jsonl", "\n\n", "has no row"),
        ("rows.json", "[{}", "The list of rows is no JSON"),
        ("rows.csv", "prompt\n", "has no row"),
    ],
)
def test_files_that_hold_no_rows(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--mode", "profile_unet"], "--mode is for one edit at a time"),
        (["--refined"], "--refined is for one edit at a time"),
        (["--output_path", "x.png"], "--output_path is for one edit at a time"),
        (["--workers", "2"], "add --ray"),
        (["--stepps", "2"], r"Unknown option '--stepps' \(did you mean --steps\?\)"),
        (["--against", "nowhere"], "Folder nowhere does not exist"),
    ],
)
def test_options_that_a_batch_cannot_use(folder: Path, words: list[str], sentence: str) -> None:
    edits = write_rows(folder, [GOOD], "options.jsonl")
    with pytest.raises(UserError, match=sentence):
        read_options([str(edits), "--output", str(folder / "out"), *words])


def test_groups_are_those_of_one_picture(folder: Path) -> None:
    rows = [inpainting_row(0), sdedit_row(1), sdedit_row(0), inpainting_row(1, H=128, W=256)]
    rows.append(inpainting_row(0, picture_prompt="a sky"))
    jobs, _ = jobs_of(folder, rows)
    assert [[job.row for job in group] for group in grouped(jobs)] == [[1, 3], [2], [4], [5]]
