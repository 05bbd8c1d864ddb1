"""The results of a command: a text for people on stdout, figures as JSON for programs."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sgm.io import files
from sgm.specs import RunOptions


def publish(figures: Mapping[str, object], text: str, json_path: str | None) -> None:
    """Write a result where it was asked for: a text for people to stdout, and the figures of
    `--json` into a file, or with `-` to stdout in place of the text. UserError if the file cannot
    be written."""
    if json_path is not None:
        document = json.dumps(figures, indent=2) + "\n"
        if json_path == "-":
            _emit(document)
            return
        files.write_atomically(Path(json_path), lambda file: file.write(document.encode()))
    _emit(text)


def settings(options: RunOptions) -> dict[str, object]:
    """Everything that a run was asked for, by the names of `RunOptions` and of what it holds, in
    values that JSON has. Steps are those that the run makes."""
    every = json.loads(json.dumps(asdict(options), default=str))  # paths and enums as text
    sampling = every.pop("sampling")
    del every["json_path"]
    return {**every, **sampling, "steps": options.steps}


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as lines of text: the first column to the left, the others to
    the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def let_go_of_stdout() -> None:
    """Flush stdout for the last time. If it cannot take what is left (a closed pipe, a full disk),
    drop that: Python would flush again as it exits, and end in a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _emit(text: str) -> None:
    """Write to stdout: the only place of this package that does."""
    sys.stdout.write(text)
    sys.stdout.flush()
