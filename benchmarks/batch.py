"""Rows a minute of many edits: a loop over `run.py`, a batch, and a batch on Ray.

python -m benchmarks.batch                    # 60 rows of 15 pictures, by the tiny model
python -m benchmarks.batch --H 64 --W 128 --steps 4 --loop_rows 6    # on a slow machine
python -m benchmarks.batch --quick            # a few rows: does it run?

Every variant is a process of its own (the loop: one a row), so the model's loading is counted. The
loop is run half before the others and half after them; its rows take equally long, so some of them
are enough (`--loop_rows`). The batches must end in the same pictures. On a machine that does other
things as well, the processors' seconds say more than a clock's; those of Ray's processes cannot be
had.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import RESULTS, ROOT, commit, machine, write_results
from sgm import runtime
from sgm.cli.program import start
from sgm.errors import UserError
from tools.tiny.pairs import HELD_OUT, inpainting_pair

RAY = importlib.util.find_spec("ray") is not None
Row = dict[str, object]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        pictures, edits: how many pictures, and edits of each.
        height, width: in pixels.
        steps: of the sampler.
    """

    pictures: int = 15
    edits: int = 4
    height: int = 256
    width: int = 512
    steps: int = 50


QUICK = Size(pictures=2, edits=2, height=64, width=128, steps=2)


def rows_of(size: Size, folder: Path) -> list[Row]:
    """Make the pictures and masks of a data set in a folder; its rows, one picture after the
    other."""
    rows: list[Row] = []
    wanted = (size.width, size.height)
    for number in range(size.pictures):
        picture, mask, prompt = inpainting_pair(HELD_OUT + number)
        picture.resize(wanted).save(folder / f"{number}.png")
        Image.fromarray(np.asarray(mask)).resize(wanted).save(folder / f"{number}-mask.png")
        rows += [
            {
                "init_img": f"{number}.png",
                "mask_path": f"{number}-mask.png",
                "prompt": prompt,
                "seed": seed,
            }
            for seed in range(size.edits)
        ]
    return rows


def timed(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Seconds that a command takes, run in a folder: of a clock, and of the processors.

    Raises:
        UserError: it fails; with its last words.
    """
    # A thread for each, so that what is compared is the work, and not who gets more cores.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    began, used = time.perf_counter(), _processor_seconds()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = (time.perf_counter() - began, _processor_seconds() - used)
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {done.stderr[-2000:]}.")
    return seconds


def _processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def common(size: Size) -> list[str]:
    """Words for every variant."""
    return ["--model", "tiny", "--device", "cpu", "--steps", str(size.steps)]


def loop(rows: Sequence[Row], size: Size, folder: Path) -> list[tuple[float, float]]:
    """Seconds (see `timed`) of one `run.py` after the other."""
    script = [sys.executable, str(ROOT / "run.py"), "--run_type", "sige", "--preset", "fast"]
    seconds = []
    for number, row in enumerate(rows):
        words = [f"--{name}={value}" for name, value in row.items()]
        output = ["--output_path", f"loop/{row['init_img']}-{number}.png"]
        seconds.append(timed([*script, *common(size), *words, *output], folder))
    return seconds


def batch(name: str, flags: Sequence[str], size: Size, folder: Path) -> tuple[float, float]:
    """Seconds (see `timed`) of a batch of the rows in `edits.jsonl`."""
    words = ["edits.jsonl", "--output", name, "--threads", "1", *flags]
    return timed([sys.executable, "-m", "sgm.batch", *words, *common(size)], folder)


def measure(size: Size, workers: Sequence[int], loop_rows: int | None) -> dict[str, object]:
    """Run all variants.

    Args:
        workers: the batches on Ray, by their number of workers.
        loop_rows: how many rows the loop runs; None for all.
    """
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = rows_of(size, folder)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "edits.jsonl").write_text(lines, encoding="utf-8")
        some = rows[:: len(rows) // min(loop_rows or len(rows), len(rows))]
        each = loop(some[::2], size, folder)
        seconds, used = {}, {}
        seconds["batch"], used["batch"] = batch("local", [], size, folder)
        for count in workers:
            flags = ["--ray", "--workers", str(count)]
            seconds[f"ray, workers: {count}"], _ = batch(f"ray{count}", flags, size, folder)
        each += loop(some[1::2], size, folder)
        _check(folder, len(rows), ["local", *(f"ray{count}" for count in workers)])
    load.append(os.getloadavg()[0])
    clock, processors = zip(*each, strict=True)
    share = len(rows) / len(each)
    seconds, used = (
        {"loop": sum(clock) * share, **seconds},
        {"loop": sum(processors) * share, **used},
    )
    speeds = {variant: 60 * len(rows) / value for variant, value in seconds.items()}
    return {
        "rows": len(rows),
        "rows_of_the_loop": len(each),
        "size": vars(size),
        "seconds": seconds,
        "processor_seconds": used,
        "rows_a_minute": speeds,
        "times_the_loop": {variant: speed / speeds["loop"] for variant, speed in speeds.items()},
        "times_the_loop_by_processor_seconds": used["loop"] / used["batch"],
        "load_average": load,
        "machine": machine(),
        "versions": runtime.versions(),
        "commit": commit(),
    }


def _check(folder: Path, count: int, batches: Sequence[str]) -> None:
    """UserError unless every batch made all pictures, and the same ones."""
    first = {path.name: path.read_bytes() for path in sorted((folder / batches[0]).glob("*.png"))}
    for name in batches:
        found = {path.name: path.read_bytes() for path in (folder / name).glob("*.png")}
        if found != first or len(found) != count:
            raise UserError(f"The batch {name} made other pictures than {batches[0]}.")


def describe(figures: Mapping[str, object]) -> str:
    """The figures as a Markdown table."""
    speeds, times = figures["rows_a_minute"], figures["times_the_loop"]
    assert isinstance(speeds, Mapping) and isinstance(times, Mapping)
    lines = ["| variant | rows a minute | times the loop |", "|---|---|---|"]
    lines += [f"| {name} | {speeds[name]:.1f} | {times[name]:.2f} |" for name in speeds]
    size, load = figures["size"], figures["load_average"]
    assert isinstance(size, Mapping) and isinstance(load, list)
    lines += [
        "",
        f"{figures['rows']} rows of {size['pictures']} pictures, {size['height']}x{size['width']} "
        f"(height x width), {size['steps']} steps, the loop over {figures['rows_of_the_loop']} of "
        f"them. By processor seconds the batch has "
        f"{figures['times_the_loop_by_processor_seconds']:.2f} times the rows of the loop. Load of "
        f"the machine before and after: {load[0]:.1f} and {load[1]:.1f}.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and write its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that it runs")
    for flag, default in (("--H", Size.height), ("--W", Size.width), ("--steps", Size.steps)):
        parser.add_argument(flag, type=int, default=default, help="(default: %(default)s)")
    parser.add_argument("--loop_rows", type=int, help="rows that the loop runs (default: all)")
    parser.add_argument("--no-ray", action="store_true", help="leave Ray out")
    parser.add_argument("--output", type=Path, default=RESULTS / "batch.json", help="JSON to write")
    values = parser.parse_args(argv)
    if not RAY and not values.no_ray:
        raise UserError("The package ray is not installed; install it, or give --no-ray.")
    size = QUICK if values.quick else Size(height=values.H, width=values.W, steps=values.steps)
    figures = measure(size, [] if values.no_ray else [1, 2], values.loop_rows)
    write_results(values.output, figures, describe)
    return 0


if __name__ == "__main__":
    start("batch", main)
