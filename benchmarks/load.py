"""Loading and converting a checkpoint of full size: `python -m benchmarks.load`.

Makes a random checkpoint with the tensors of the published file in a temporary folder and measures

- *load*: seconds and peak memory of building the networks and loading the file, in each precision;
  for the file's own type also with a cold cache, beside a plain read of the file;
- *convert*: seconds and peak memory of rewriting it in fp32 with 1x1 convolutions;
- *run*: an encode, one guided step and a decode on the CPU in bf16, from the published and from the
  converted file, whose weights and results must have the same bits.

Each measurement is a process of its own. *Owned* memory is that of the process alone; *resident*
memory has in addition the pages of mapped files, which the system can drop. Cold means dropped from
this system's page cache; what lies below (a host, the disk's own cache) may still have the file.
`--parts` measures some of it again and keeps the other figures of `--output`.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, commit, machine, write_figures
from benchmarks.load_tasks import TASKS, Figures
from benchmarks.synthetic import published_entries, write_checkpoint
from sgm import runtime
from sgm.cli.program import start
from sgm.errors import UserError
from sgm.io.files import check_writable
from tools.compare import markdown_table

logger = logging.getLogger(__name__)

PARTS = ("load", "convert", "run")
OWN, OTHERS, RUN = "fp16", ("bf16", "fp32"), "bf16"
STAGES = ("encode", "step", "decode")
GB = 1e9
# The goals: of the weights, of a plain read, bytes above the largest tensor, bytes in all.
LOAD_MEMORY, LOAD_TIME, CONVERT_MEMORY, RUN_MEMORY = 1.1, 2.0, 1 * GB, 24 * GB

Measure = Callable[..., Figures]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load",
        description="Loading and conversion of a random checkpoint of full size.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="the tiny network in one process: only a trial"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="what to measure (default: all); run includes convert",
    )
    parser.add_argument("--folder", type=Path, help="where to put 21 GB (default: the system's)")
    parser.add_argument("--output", type=Path, default=RESULTS / "load.json")
    parser.add_argument(
        "--repeats", type=int, default=3, help="how often loads are timed (default 3)"
    )
    parser.add_argument(
        "--latent",
        nargs="+",
        default=["16x32"],
        metavar="HxW",
        help="latents of the run (default 16x32): the first from both files, others from the "
        "published one only; 64x128 is a picture of 512x1024",
    )
    parser.add_argument(
        "--launcher", default="", help="words before the command of each process, such as numactl"
    )
    return parser


def subprocess_measure(launcher: str) -> Measure:
    """Runs each task in a fresh Python, whose peaks are then its own."""

    def measure(task: str, **arguments: object) -> Figures:
        words = [sys.executable, "-m", "benchmarks.load_tasks"]
        command = [*shlex.split(launcher), *words, json.dumps({"task": task, **arguments})]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise UserError(f"The measurement {task} {arguments} ended with {done.returncode}.")
        return json.loads(done.stdout)

    return measure


def measure_here(task: str, **arguments: object) -> Figures:
    """Runs a task in this process."""
    return TASKS[task](**arguments)


def measure_load(measure: Measure, config: str, file: str, repeats: int) -> Figures:
    """Part *load*: medians of the repeated measurements, all of their seconds beside them."""
    own = {"config": config, "file": file, "precision": OWN}
    reads, loads = {}, {}
    for cache in ("cold", "warm"):
        cold = cache == "cold"
        reads[cache], loads[cache] = [], []
        for _ in range(repeats):
            reads[cache].append(measure("read", file=file, cold=cold)["seconds"])
            loads[cache].append(measure("load", **own, cold=cold))
    rows = {OWN: loads["warm"][0]}
    for precision in OTHERS:
        rows[precision] = measure("load", **own | {"precision": precision}, cold=False)
    for row in rows.values():
        row["of_weights"] = row["peak_resident"] / row["weights"]
    figures: Figures = {"precisions": rows}
    for cache in reads:
        seconds = [row["seconds"] for row in loads[cache]]
        of_read = statistics.median(seconds) / statistics.median(reads[cache])
        figures[cache] = {"read": reads[cache], "load": seconds, "of_read": of_read}
    return figures


def measure_runs(
    measure: Measure, config: str, files: dict[str, str], latents: Sequence[list[int]]
) -> Figures:
    """Part *run*: the stages at each size, and whether both files gave the same bits."""
    shared = {"config": config, "precision": RUN}
    weights = {name: measure("digest", **shared, file=file) for name, file in files.items()}
    rows = []
    for number, latent in enumerate(latents):
        for name in list(files)[: 2 if number == 0 else 1]:
            for stage in STAGES:
                row = measure("run", **shared, file=files[name], stage=stage, latent=latent)
                rows.append({"file": name, "stage": stage, "latent": latent, **row})
                logger.info("%s %s %s: %.1f s", name, stage, latent, row["seconds"])
    first = [row for row in rows if row["latent"] == latents[0]]
    results = {name: [r["digest"] for r in first if r["file"] == name] for name in files}
    return {
        "precision": RUN,
        "stages": rows,
        "equal_weights": len({row["digest"] for row in weights.values()}) == 1,
        "equal_results": len({tuple(digests) for digests in results.values()}) == 1,
    }


def measure_parts(args: argparse.Namespace, folder: Path) -> Figures:
    """The parts asked for, in order; the checkpoints are left in the folder."""
    name = "tiny-original.yaml" if args.quick else "original.yaml"
    config, names = ROOT / "configs" / name, ("published", "converted")
    files = {name: str(folder / f"{name}.safetensors") for name in names}
    measure = measure_here if args.quick else subprocess_measure(args.launcher)
    entries = published_entries(config)
    _check_room(folder, 3 * sum(entry.bytes for entry in entries))
    logger.info("Making a checkpoint of %d tensors in %s.", len(entries), folder)
    size = write_checkpoint(Path(files["published"]), entries)
    figures: Figures = {
        "benchmark": "load",
        "config": config.name,
        "quick": args.quick,
        "checkpoint": {"tensors": len(entries), "bytes": size},
        "machine": machine(),
        "versions": runtime.versions(),
    }
    if "load" in args.parts:
        figures["load"] = measure_load(measure, str(config), files["published"], args.repeats)
    if "convert" in args.parts or "run" in args.parts:
        source, target = files.values()
        row = measure("convert", file=source, target=target, precision="fp32")
        figures["convert"] = row | {"above_largest": row["peak_resident"] - row["largest"]}
    if "run" in args.parts:
        latents = [[8, 8]] if args.quick else [_latent(text) for text in args.latent]
        figures["run"] = measure_runs(measure, str(config), files, latents)
    for part in set(PARTS) & set(figures):
        figures[part]["commit"] = commit()
    return figures


def kept(output: Path, quick: bool) -> Figures:
    """Parts that are in the file of an earlier measurement of the same network.

    Raises:
        UserError: the file is something else.
    """
    if not output.exists():
        return {}
    try:
        old = json.loads(output.read_text(encoding="utf-8"))
        if old["benchmark"] == "load" and old["quick"] == quick:
            return {part: old[part] for part in PARTS if part in old}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{output} holds no figures to keep; leave --parts out or name another file.")


def _check_room(folder: Path, size: int) -> None:
    """UserError unless a folder has room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder} has {free / GB:.1f} GB free and {size / GB:.1f} GB are needed; "
            "name another --folder."
        )


def _latent(text: str) -> list[int]:
    """`64x128` as [64, 128]."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) % 8 == 0 for side in sides):
        raise UserError(f"--latent is height x width in multiples of 8, like 64x128, not {text}.")
    return [int(side) for side in sides]


def goals(figures: Figures) -> dict[str, bool]:
    """Each goal of the measured parts, and whether the figures meet it."""
    met = {}
    if "load" in figures:
        load = figures["load"]
        met[f"load: resident at most {LOAD_MEMORY} of the weights"] = all(
            row["of_weights"] <= LOAD_MEMORY for row in load["precisions"].values()
        )
        met[f"load: at most {LOAD_TIME} of a plain read, cold"] = (
            load["cold"]["of_read"] <= LOAD_TIME
        )
    if "convert" in figures:
        above = figures["convert"]["above_largest"]
        met["convert: at most 1 GB above the largest tensor"] = above <= CONVERT_MEMORY
    if "run" in figures:
        run = figures["run"]
        met["run: finite and within 24 GB"] = all(
            row["finite"] and row["peak_process"] <= RUN_MEMORY for row in run["stages"]
        )
        met["run: equal bits from both files"] = run["equal_weights"] and run["equal_results"]
    return met


def tables(figures: Figures) -> str:
    """The figures as Markdown."""
    parts = [
        table(figures[part])
        for part, table in (("load", load_table), ("convert", convert_line), ("run", run_table))
        if part in figures
    ]
    # The goals are about the real size; a trial is the tiny network.
    judged = {} if figures["quick"] else figures["goals"]
    met = [f"{'met' if value else 'MISSED'}: {name}" for name, value in judged.items()]
    return "\n\n".join([*parts, "\n".join(met)]).rstrip()


def load_table(load: Figures) -> str:
    """Memory by precision, and times beside those of a plain read."""
    head = ("precision", "weights (GB)", "owned (GB)", "resident (GB)", "of weights", "seconds")
    rows = [
        (name, f"{row['weights'] / GB:.2f}", *_sizes(row), *_numbers(row, "of_weights", "seconds"))
        for name, row in load["precisions"].items()
    ]
    lines = [markdown_table(head, rows), ""]
    for cache in ("cold", "warm"):
        times = load[cache]
        middle = {name: statistics.median(times[name]) for name in ("read", "load")}
        lines.append(
            f"{cache} cache: read {middle['read']:.2f} s, load in {OWN} {middle['load']:.2f} s "
            f"({times['of_read']:.2f} of it)"
        )
    return "\n".join(lines)


def convert_line(row: Figures) -> str:
    """The conversion in one line."""
    return (
        f"conversion to fp32: {row['seconds']:.1f} s, {_sizes(row)[1]} GB resident "
        f"with a largest tensor of {row['largest'] / GB:.2f} GB"
    )


def run_table(run: Figures) -> str:
    """One row for every stage, file and size."""
    head = ("run", "file", "latent", "owned (GB)", "resident (GB)", "seconds")
    rows = [
        (row["stage"], row["file"], _times(row["latent"]), *_sizes(row), *_numbers(row, "seconds"))
        for row in run["stages"]
    ]
    return markdown_table(head, rows)


def _sizes(row: Figures) -> tuple[str, str]:
    return f"{row['peak_anonymous'] / GB:.2f}", f"{row['peak_resident'] / GB:.2f}"


def _times(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _numbers(row: Figures, *names: str) -> tuple[str, ...]:
    return tuple(f"{row[name]:.2f}" for name in names)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the JSON file, print the tables; the exit code.

    Raises:
        UserError: an option out of range, no room, or a measurement that failed.
    """
    args = build_parser().parse_args(argv)
    for text in args.latent:
        _latent(text)
    if args.repeats < 1:
        raise UserError(f"--repeats is {args.repeats}, but must be at least 1.")
    if args.folder is not None and not args.folder.is_dir():
        raise UserError(f"--folder {args.folder} is not a folder; name one that exists.")
    check_writable(args.output)
    old = kept(args.output, args.quick) if set(args.parts) != set(PARTS) else {}
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="load-") as folder:
        figures = old | measure_parts(args, Path(folder))
    figures["goals"] = goals(figures)
    write_figures(args.output, figures)
    print(tables(figures))
    print(f"\n{args.output}")
    return 0


if __name__ == "__main__":
    start("benchmarks.load", main)
