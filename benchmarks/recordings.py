"""What a session keeps, part by part: `python -m benchmarks.recordings`.

Bytes of the recordings of one picture in a session of preset `fast`, counted on shapes alone, so
that any machine tells the same: of the whole picture, and for edits within a square region of a few
shares of it; for inpainting and for SDEdit; in every precision of recordings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from benchmarks.common import RESULTS, ROOT, commit, write_results
from benchmarks.scaling import square
from sgm import runtime
from sgm.cli.program import start
from sgm.inference.presets import FAST
from sgm.inference.session_size import session_size, shapes_of
from sgm.io.files import check_writable
from sgm.specs import MODELS, RecordingSettings, SamplingParams
from sgm.words import Precision, Preset, RecordingPrecision, RunType, Task
from tools.compare import markdown_table

REGIONS = (0.1, 0.25, 0.5)  # shares of the picture, where recordings are bounded
MEGA = 1e6


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Count everything; the figures of `--output`."""
    size, params = (args.H, args.W), SamplingParams("", steps=args.steps)
    config = ROOT / "configs" / MODELS[args.model].config_file(RunType.SIGE, preset=Preset.FAST)
    cases = [
        (precision, task, region)
        for precision in RecordingPrecision
        for task in Task
        for region in (None, *(REGIONS if precision is RecordingPrecision.INT8 else ()))
    ]
    rows = []
    for precision, task, region in tqdm(cases, desc="counting"):
        recipe = FAST.with_recordings(RecordingSettings(precision=precision))
        shapes = shapes_of(config, Precision(args.precision), recipe)
        mask = None if region is None else square(size, region)
        found = session_size(shapes, size, params, task, mask)
        said = {"precision": precision.value, "task": task.value, "region": region}
        rows.append({**said, **asdict(found), "recorded": found.recorded, "total": found.total})
    return {
        "benchmark": "recordings",
        "model": args.model,
        "size": list(size),
        "steps": args.steps,
        "precision": args.precision,
        "versions": runtime.versions(),
        "commit": commit(),
        "sessions": rows,
    }


def table(figures: Mapping[str, object]) -> str:
    """The figures as Markdown, in MB."""
    sizes = ("a step", "steps", "decoder", "encoder", "session", "+ prompt")
    head = ("kept as, task, edits in", *sizes)
    rows = []
    for row in figures["sessions"]:
        part = "the whole picture" if row["region"] is None else f"{row['region']:.0%} of it"
        parts = (row["decoder"], row["encoder"], row["recorded"], row["total"])
        name = f"{row['precision']}, {row['task']}, {part}"
        first, *others = (f"{value / MEGA:.0f}" for value in (row["step"], *parts))
        rows.append((name, first, str(row["steps"]), *others))
    return markdown_table(head, rows)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recordings", description="What a session keeps, part by part."
    )
    parser.add_argument("--model", choices=list(MODELS), default="sdxl")
    parser.add_argument("--H", type=int, default=512, help="height (default %(default)s)")
    parser.add_argument("--W", type=int, default=1024, help="width (default %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="sampler steps (default 50)")
    parser.add_argument("--precision", choices=[*map(str, Precision)], default="fp32")
    parser.add_argument("--output", type=Path, default=RESULTS / "recordings.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Count, write JSON and Markdown, print the table; the exit code."""
    args = build_parser().parse_args(argv)
    check_writable(args.output)
    write_results(args.output, measure(args), table)
    return 0


if __name__ == "__main__":
    start("benchmarks.recordings", main)
