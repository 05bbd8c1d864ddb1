"""Tables of the figures of `benchmarks/gpu.sh`: `python -m benchmarks.gpu_tables`.

They are printed as Markdown, and written beside the figures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.common import RESULTS
from sgm.cli.program import start
from sgm.errors import UserError
from sgm.io.files import write_atomically
from tools.compare import markdown_table

Row = Mapping[str, object]
PASSES = ("dense", "dense graph", "published", "fast", "fast graph")
LONGEST = 12  # kernels of a table


def passes_table(rows: Iterable[Row]) -> str:
    """Milliseconds of one pass; `than dense` of the graph of `fast`, beside the graph of dense."""
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        if "ms" in row and row["name"] in PASSES:
            key = (str(row["network"]), str(row["example"]), str(row["precision"]))
            found.setdefault(key, {})[str(row["name"])] = row["ms"]["median"]
    lines = []
    for (network, example, precision), ms in found.items():
        dense, fast = ms.get("dense graph"), ms.get("fast graph")
        faster = f"{dense / fast:.2f}x" if dense and fast else "-"
        cells = [f"{ms[name]:.1f}" if name in ms else "-" for name in PASSES]
        lines.append((f"{network}, {example}, {precision}", *cells, faster))
    return markdown_table(("pass, ms", *PASSES, "graphs: faster"), lines)


def longest_table(rows: Sequence[Row]) -> str:
    """The longest kernels of a graph of `fast`, microseconds and launches by example."""
    examples = list(dict.fromkeys(str(row["example"]) for row in rows if "us" in row))
    named = [row for row in rows if "count" in row]
    lines = []
    for example in examples:
        mine = [row for row in named if row["example"] == example][:LONGEST]
        whole = next(
            row for row in rows if row["name"] == "all kernels" and row["example"] == example
        )
        lines.append((f"{example}: all", f"{whole['us']:.0f}", str(whole["launches"]), "100 %"))
        lines += [
            (
                str(row["name"])[:60],
                f"{row['us']:.0f}",
                str(row["count"]),
                f"{100 * row['share']:.0f} %",
            )
            for row in mine
        ]
    return markdown_table(("kernel", "us", "launches", "share"), lines)


def edits_table(rows: Iterable[Row]) -> str:
    """Seconds of whole edits, by stage, and memory."""
    stages = ("encode", "sample", "decode", "total")
    lines = [
        (
            str(row["name"]),
            *(f"{row['seconds'][stage]:.2f}" for stage in stages),
            f"{row['peak_mb'] / 1e3:.1f}" if row["peak_mb"] else "-",
        )
        for row in rows
        if "seconds" in row
    ]
    return markdown_table(("edit, seconds", *stages, "peak GB"), lines)


def tables(figures: Mapping[str, object]) -> str:
    """All that there is, as Markdown."""
    rows: list[Row] = figures["rows"]
    told = [
        f"{figures['device']}, commit {figures['commit']}, "
        + ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    ]
    by_part: dict[str, list[Row]] = {}
    for row in rows:
        by_part.setdefault(str(row["part"]), []).append(row)
    for part, found in by_part.items():
        if any("ms" in row and "network" in row for row in found):
            told.append(passes_table(found))
        if any("launches" in row for row in found):
            told.append(longest_table(found))
        if part == "edits":
            told.append(edits_table(found))
        told += [f"{part} failed: {row['error']}" for row in found if row["name"] == "failed"]
    return "\n\n".join(told)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_tables", description="Tables of the figures of a GPU."
    )
    parser.add_argument("file", type=Path, nargs="?", default=RESULTS / "gpu.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables and write them beside the figures.

    Raises:
        UserError: there are no figures.
    """
    path = build_parser().parse_args(argv).file
    if not path.is_file():
        raise UserError(f"{path} is not there; `bash benchmarks/gpu.sh` on a GPU makes it.")
    text = tables(json.loads(path.read_text(encoding="utf-8")))
    write_atomically(path.with_suffix(".md"), lambda file: file.write(f"{text}\n".encode()))
    print(text)
    return 0


if __name__ == "__main__":
    start("benchmarks.gpu_tables", main)
