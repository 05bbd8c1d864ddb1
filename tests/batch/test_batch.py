"""A batch in one process: its pictures, its lines, and that they depend on the row alone."""

import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgm.batch import worker
from sgm.batch.__main__ import progress
from sgm.batch.results import Results
from sgm.cli.main import main as run_one
from sgm.errors import UserError
from tests.batch.edits import (
    WORDS,
    content,
    inpainting_row,
    lines_of,
    make_pictures,
    mixed_rows,
    run,
    sdedit_row,
    write_rows,
)
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edits")
    make_pictures(path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The output of an undisturbed run of the mixed rows."""
    edits = write_rows(folder, mixed_rows())
    assert run(edits, folder / "whole") == 0
    return folder / "whole"


def test_a_line_and_a_picture_for_every_edit(folder: Path, whole: Path) -> None:
    lines = lines_of(whole)
    assert [line["row"] for line in lines] == [1, 2, 3, 3, 4]
    names = ["000001.png", "000002.png", "000003-1.png", "000003-2.png", "000004.png"]
    assert [line["output"] for line in lines] == names
    assert [line["seed"] for line in lines] == [1, 3, 1, 2, 2]
    assert sorted(path.name for path in whole.iterdir()) == [".lock", *names, "results.jsonl"]
    for line in lines:
        assert set(line["seconds"]) == {"record", "encode", "sample", "decode", "total"}
        assert 0 < line["edit_ratio"] < 0.2 and line["changed_outside"] == 0
        with Image.open(whole / line["output"]) as picture:
            assert picture.size == (128, 64)
    first, second = (np.asarray(Image.open(whole / name)) for name in names[2:4])
    assert not np.array_equal(first, second)  # another seed


def test_rows_of_one_picture_share_a_recording(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Counted(worker.EditSession):
        def __init__(self, *words: object, **more: object) -> None:
            made.append(words)
            super().__init__(*words, **more)

    monkeypatch.setattr(worker, "EditSession", Counted)
    loads = []
    load = worker.load_pipeline
    monkeypatch.setattr(worker, "load_pipeline", lambda *a, **k: loads.append(a) or load(*a, **k))
    rows = [inpainting_row(0, seed=1), sdedit_row(1), inpainting_row(0, seed=2), sdedit_row(0)]
    assert run(write_rows(folder, rows, "shared.jsonl"), tmp_path) == 0
    assert len(made) == 2 and len(loads) == 1


def test_neither_order_nor_company_changes_a_picture(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    rows = mixed_rows()
    backwards = [{**row, "output": f"{number:06d}.png"} for number, row in enumerate(rows, 1)]
    assert run(write_rows(folder, backwards[::-1], "back.jsonl"), tmp_path / "back") == 0
    for path in (tmp_path / "back").glob("*.png"):
        assert path.read_bytes() == (whole / path.name).read_bytes(), path.name
    assert len(list((tmp_path / "back").glob("*.png"))) == 5
    alone = write_rows(folder, [{**rows[3], "output": "000004.png"}], "alone.jsonl")
    assert run(alone, tmp_path / "alone") == 0
    assert (tmp_path / "alone" / "000004.png").read_bytes() == (whole / "000004.png").read_bytes()


def test_what_is_done_is_not_done_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [inpainting_row(0, seed=seed) for seed in range(3)]
    edits = write_rows(folder, rows, "again.jsonl")
    assert run(edits, tmp_path) == 0
    before = content(tmp_path)
    asked = []
    real = worker.Worker.run
    monkeypatch.setattr(
        worker.Worker, "run", lambda self, jobs: asked.extend(jobs) or real(self, jobs)
    )
    assert run(edits, tmp_path) == 0
    assert not asked and content(tmp_path) == before
    # A picture that is gone, and a row that says something else, are made.
    (tmp_path / "000001.png").unlink()
    rows[1]["prompt"] = "a tree"
    write_rows(folder, rows, "again.jsonl")
    assert run(edits, tmp_path) == 0
    assert [job.row for job in asked] == [1, 2]
    after = content(tmp_path)
    assert (
        after["000001.png"] == before["000001.png"] and after["000002.png"] != before["000002.png"]
    )
    # And so is a row whose picture has changed.
    asked.clear()
    rows[2]["init_img"] = "changing.png"
    write_rows(folder, rows, "again.jsonl")
    for name in ("p1.png", "d1.png"):
        (folder / "changing.png").write_bytes((folder / name).read_bytes())
        assert run(edits, tmp_path) == 0
    assert [job.row for job in asked] == [3, 3]


def test_a_batch_of_dense_edits_is_run_py_many_times(folder: Path, tmp_path: Path) -> None:
    rows = [inpainting_row(0, seed=5), sdedit_row(1, seed=6)]
    edits = write_rows(folder, rows, "dense.jsonl")
    assert run(edits, tmp_path, "--run_type", "original") == 0
    for number, row in enumerate(rows, 1):
        words = [f"--{k}={folder / v if str(v).endswith('.png') else v}" for k, v in row.items()]
        output = tmp_path / f"one{number}.png"
        rest = [word for word in WORDS if word not in ("--threads", "1")]
        assert run_one([*words, *rest, "--preset", "fast", "--output_path", str(output)]) == 0
        assert output.read_bytes() == (tmp_path / f"{number:06d}.png").read_bytes()


def test_empty_and_full_masks(folder: Path, tmp_path: Path) -> None:
    for name, value in (("empty", 0), ("full", 255)):
        Image.new("L", (128, 64), value).save(folder / f"{name}.png")
    rows = [inpainting_row(0, mask_path=f"{name}.png", seed=5) for name in ("empty", "full")]
    edits = write_rows(folder, rows, "masks.jsonl")
    assert run(edits, tmp_path / "fast") == 0
    empty, full = (tmp_path / "fast" / f"00000{n}.png" for n in (1, 2))
    assert np.array_equal(np.asarray(Image.open(empty)), np.asarray(Image.open(folder / "p0.png")))
    assert run(edits, tmp_path / "dense", "--run_type", "original") == 0
    assert full.read_bytes() == (tmp_path / "dense" / "000002.png").read_bytes()
    assert [line["edit_ratio"] for line in lines_of(tmp_path / "fast")] == [0.0, 1.0]


def test_a_row_that_fails_is_a_line_and_is_tried_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [inpainting_row(0, seed=seed) for seed in (1, 2, 3)]
    rows.append(sdedit_row(0, strength=0.1))  # no step of two is left
    edits = write_rows(folder, rows, "fails.jsonl")
    real = worker.EditSession.inpaint

    def inpaint(self: worker.EditSession, prompt: str, mask: object, *rest: object) -> object:
        if rest[-1] == 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        if rest[-1] == 3:
            raise KeyError("unforeseen")
        return real(self, prompt, mask, *rest)

    monkeypatch.setattr(worker.EditSession, "inpaint", inpaint)
    assert run(edits, tmp_path) == 1
    lines = lines_of(tmp_path)
    assert ["error" in line for line in lines] == [False, True, True, True]
    assert lines[1]["error"].startswith("The memory of cpu is not enough")
    assert lines[2]["error"] == "KeyError: 'unforeseen'" and "Traceback" in caplog.text
    assert "strength" in lines[3]["error"].lower()
    monkeypatch.setattr(worker.EditSession, "inpaint", real)
    (tmp_path / "000002.png").write_bytes(b"of an earlier run")
    assert run(edits, tmp_path) == 1
    assert ["error" in line for line in lines_of(tmp_path)] == [False, False, False, True]


def test_two_batches_do_not_write_to_one_folder(folder: Path, tmp_path: Path) -> None:
    edits = write_rows(folder, [inpainting_row()], "locked.jsonl")
    with Results(tmp_path), pytest.raises(UserError, match="Another batch writes to"):
        run(edits, tmp_path)
    (tmp_path / "results.jsonl").write_text("notes of mine\n")
    with pytest.raises(UserError, match="holds other things than results"):
        run(edits, tmp_path)
    assert (tmp_path / "results.jsonl").read_text() == "notes of mine\n"


@pytest.mark.parametrize("where", ["picture", "line"])
def test_a_full_disk_ends_the_batch_and_loses_nothing(
    where: str, folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = write_rows(folder, mixed_rows())
    full = OSError(28, "No space left on device")
    written = []

    def replace(source: object, target: object) -> None:
        written.append(target)
        if len(written) == 3:
            raise full
        os.rename(source, target)

    def write(descriptor: int, data: bytes) -> int:
        written.append(data)
        if len(written) == 3:
            return real(descriptor, data[:20])
        if len(written) == 4:
            raise full
        return real(descriptor, data)

    real = os.write
    with monkeypatch.context() as patch:
        if where == "picture":
            patch.setattr("sgm.io.files.os.replace", replace)
        else:
            patch.setattr("sgm.batch.results.os.write", write)
        with pytest.raises(UserError, match="cannot be written: No space left on device"):
            run(edits, tmp_path)
    assert len(lines_of(tmp_path)) == 2 and not list(tmp_path.glob(".*.tmp"))
    assert run(edits, tmp_path) == 0
    assert content(tmp_path) == content(whole)


def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    edits, random = write_rows(folder, mixed_rows()), np.random.default_rng()
    # A process that has imported everything, and computed nothing, is forked for each start.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.batch.edits", "sgm.batch.cluster"])
    pace = statistics.median(line["seconds"]["total"] for line in lines_of(whole))
    output, killed, moments = tmp_path / "0", 0, []
    while killed < 10:
        process = context.Process(target=run, args=(edits, output))
        process.start()
        # A random time after the next row is done, or before it is.
        wanted, wait = count_of(output) + random.integers(0, 2), random.uniform(0, pace)
        while process.is_alive() and count_of(output) < wanted:
            time.sleep(0.005)
        process.join(wait)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode:
            killed += 1
            moments.append((output.name, wanted, round(wait, 3)))
            continue
        assert content(output) == content(whole), moments
        output = tmp_path / str(killed)
    assert run(edits, output) == 0
    assert content(output) == content(whole), moments


def test_what_a_killed_batch_left_unfinished_is_taken_away(
    folder: Path, whole: Path, tmp_path: Path
) -> None:
    edits, output = write_rows(folder, mixed_rows()), tmp_path / "out"
    shutil.copytree(whole, output)
    path = output / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:-30])
    (output / ".000003-2.png.123.tmp").write_bytes(b"half a pic")
    with Results(output):
        assert path.read_bytes() == b"".join(lines[:3])
    assert run(edits, output) == 0
    assert content(output) == content(whole)


def count_of(output: Path) -> int:
    """How many whole lines there are."""
    path = output / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_progress() -> None:
    assert progress(10, 70, 0, 60.0) == "10 of 70, 10.0 a minute, 0:06:00 left."
    assert progress(1, 3601, 1, 2.0) == "1 of 3601, 30.0 a minute, 2:00:00 left, 1 failed."
    assert progress(70, 70, 2, 60.0) == "70 of 70, 70.0 a minute, 60.0 s, 2 failed."


def test_help_comes_without_torch() -> None:
    code = "import sys, sgm.batch.__main__ as m\ntry: m.main(['--help'])\n"
    code += "finally: sys.stderr.write(str('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "False"
    assert "--skip_bad" in done.stdout and "--negative_prompt" in done.stdout
