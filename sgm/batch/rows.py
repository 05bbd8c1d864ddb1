"""The rows of a batch: read, checked in full, and turned into jobs in groups of one picture."""

import argparse
import csv
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from sgm.cli.main import checked
from sgm.cli.option_types import parsed, whole
from sgm.cli.options import build_parser
from sgm.errors import UserError, suggestion
from sgm.specs import MAX_SEED, RunOptions

PATHS = ("init_img", "edited_img", "mask_path")
# What a row may say: names of `run.py`, then a batch's own.
RUN_NAMES = (
    *PATHS,
    *("task", "prompt", "negative_prompt", "seed", "steps", "ddim_steps", "scale", "strength"),
    *("H", "W", "mask_grow", "padding_mask_crop"),
)
OWN_NAMES = ("seeds", "picture_prompt", "output")
# Options that change no byte of a result, or whose files are compared instead of their names.
NOT_IN_FINGERPRINT = {
    *("edits", "output", "output_path", "json", "skip_bad", "against", "ray", "workers"),
    *("threads", "device", "config_path", "weight_path", *PATHS),
}
MAX_SEEDS = 1000  # of a row
Row = dict[str, object]


@dataclass(frozen=True)
class Job:
    """One picture to make."""

    row: int  # number of its row, from 1
    output: str  # the picture's path below the output folder; every job has another
    options: RunOptions
    picture_prompt: str  # under which the unedited picture is recorded
    fingerprint: str  # another one where the result may be another

    @property
    def picture(self) -> tuple[object, ...]:
        """Equal for the jobs that can share a recording."""
        options = self.options
        source = options.init_img or options.edited_img
        size = (options.height, options.width)
        shared = replace(options.sampling, prompt="", negative_prompt="", seed=0, strength=1.0)
        return (str(source), size, shared, self.picture_prompt)


def grouped(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs in groups of one picture, each in the order of its rows, the groups by their first."""
    first: dict[tuple[object, ...], int] = {}
    ordered = sorted(jobs, key=lambda job: first.setdefault(job.picture, len(first)))
    return [list(group) for _, group in groupby(ordered, key=lambda job: job.picture)]


def read_rows(path: Path) -> list[Row | str]:
    """The rows of a file; in place of an invalid one, a sentence that says why. UserError for a
    file of no kind that is known, or without a row."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".json": _json_rows, ".ndjson": _json_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} ends in {path.suffix!r}; expected rows as .jsonl, .json or .csv.")
    rows = reader(text)
    if not rows:
        raise UserError(f"{path} has no row; write one edit a line.")
    return rows


def _csv_rows(text: str) -> list[Row | str]:
    """One row a line of a table, without its empty cells."""
    lines = csv.DictReader(io.StringIO(text, newline=""))
    rows: list[Row | str] = []
    for line in lines:
        extra = line.pop(None, None)  # type: ignore[call-overload]
        if extra:
            rows.append(f"has {len(extra)} more cells than the first line names.")
        else:
            rows.append({key: value for key, value in line.items() if value})
    return rows


def _json_rows(text: str) -> list[Row | str]:
    """One object a line, or one list of objects."""
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"The list of rows is no JSON: {error}.") from error
        return [row if isinstance(row, dict) else "is no JSON object." for row in found]
    rows: list[Row | str] = []
    for line in filter(str.strip, text.split("\n")):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            rows.append(f"is no JSON: {error}.")
        else:
            rows.append(row if isinstance(row, dict) else "is no JSON object.")
    return rows


def checked_jobs(
    rows: Sequence[Row | str], values: argparse.Namespace
) -> tuple[list[Job], dict[int, str]]:
    """Check every row: its options, its files, its pictures. The options of the batch hold where a
    row says nothing. The jobs in the order of their rows, and a sentence by number for each row
    that is bad; UserError if all are for one and the same reason."""
    # Imported here, so that bad options are refused at once.
    from sgm.cli.inputs import read_inputs

    parser = build_parser()
    content = cache(lambda path: hashlib.sha256(path.read_bytes()).hexdigest())
    jobs: list[Job] = []
    bad: dict[int, str] = {}
    rows_of_outputs: dict[str, int] = {}
    with _silent():
        for number, row in enumerate(tqdm(rows, desc="checking", unit="row", leave=False), 1):
            try:
                found = list(_jobs_of(number, row, values, parser, content))
                read_inputs(found[0].options)
                for job in found:
                    first = rows_of_outputs.setdefault(job.output, number)
                    if first != number:
                        raise UserError(f"its output {job.output} is that of row {first} too.")
            except UserError as error:
                bad[number] = str(error)
            else:
                jobs += found
    reasons = set(bad.values())
    if len(bad) == len(rows) and len(reasons) == 1:
        raise UserError(f"No row of {len(rows)} can be used: {reasons.pop()}")
    return jobs, bad


def _jobs_of(
    number: int,
    row: Row | str,
    common: argparse.Namespace,
    parser: argparse.ArgumentParser,
    content: Callable[[Path], str],
) -> Iterator[Job]:
    """The jobs of a row, one a seed."""
    if isinstance(row, str):
        raise UserError(row)
    known = RUN_NAMES + OWN_NAMES
    for name, value in row.items():
        if name not in known:
            raise UserError(f"unknown name {name!r}{suggestion(name, known)}.")
        kinds = str | int | float | None | (list if name == "seeds" else str)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise UserError(f"{name} is {json.dumps(value)}; give a text or a number.")
    # A batch knows which of its results to make anew. Paths start from the folder of the rows.
    words, folder = ["--overwrite"], common.edits.parent
    for name in RUN_NAMES:
        value = row.get(name)
        if value is not None:
            text = str((folder / str(value)).absolute()) if name in PATHS else str(value)
            words.append(f"--{name}={text}")
    values = parsed(parser, words, copy(common))
    if values.prompt is None:
        raise UserError("prompt is missing; say what the edit should show.")
    seeds, prompt = _seeds(row), str(row.get("picture_prompt", ""))
    for seed in seeds or [values.seed]:
        values.seed, output = seed, _output(row, number, seed if seeds else None)
        values.output_path = str(common.output / output)
        options = checked(values)
        fingerprint = _fingerprint(values, options, prompt, content)
        yield Job(number, output, options, prompt, fingerprint)


def _seeds(row: Row) -> list[int]:
    """The seeds of a row that names several: a list, or `1-4`, `1,7,9`; else none."""
    if "seeds" not in row:
        return []
    if "seed" in row:
        raise UserError("seed and seeds exclude each other; give one.")
    given = row["seeds"]
    parts = [str(part) for part in given] if isinstance(given, list) else str(given).split(",")
    convert, seeds = whole(0, MAX_SEED), []
    try:
        for part in parts:
            low, dash, high = part.partition("-")
            first, last = convert(low), convert(high if dash else low)
            seeds += range(first, min(last, first + MAX_SEEDS) + 1)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"seeds: {error}.") from error
    if not len(set(seeds)) == len(seeds) <= MAX_SEEDS or not seeds:
        raise UserError(
            f"seeds: got {given!r}; give 1 to {MAX_SEEDS} seeds, each once, as 1-4 or 1,7,9."
        )
    return seeds


def _output(row: Row, number: int, seed: int | None) -> str:
    """Where the picture goes below the output folder: as the row says, or by its number."""
    path = Path(str(row.get("output", f"{number:06d}.png")))
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"output {path} leaves the output folder; name a file in it.")
    return (path if seed is None else path.with_stem(f"{path.stem}-{seed}")).as_posix()


def _fingerprint(
    values: argparse.Namespace,
    options: RunOptions,
    picture_prompt: str,
    content: Callable[[Path], str],
) -> str:
    """A digest of all that a result depends on: options, contents of pictures, sizes of weights."""
    said = {k: str(v) for k, v in vars(values).items() if k not in NOT_IN_FINGERPRINT}
    for name in PATHS:
        path = getattr(options, name)
        said[name] = "" if path is None else content(path)
    weights = [path.stat().st_size for path in options.weights().files if path.is_file()]
    text = json.dumps([said, picture_prompt, weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _silent() -> Iterator[None]:
    """Scope in which notices are not logged; they are logged when the row is made."""
    logger = logging.getLogger("sgm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
