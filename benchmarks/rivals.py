"""One pass of a network by all implementations there are: `python -m benchmarks.rivals`.

The network is the UNet, or with `--network` the encoder or the decoder. For each example of the
README the rows are: dense; preset published by the compiled kernels of the published package (where
it is installed, in fp32) and by ours; preset fast; and dense rivals: the UNet of `diffusers` (where
it is installed) and, on a CUDA device, the dense network compiled. There the UNet of preset fast
runs as CUDA graphs too. All rows share one set of random weights, so that the real size fits into
memory; only the package has the convolutions a second time, in the memory layout that it needs. The
passes take turns in one process, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import RESULTS, commit, machine, write_results
from benchmarks.published import EXAMPLES, NETWORKS
from benchmarks.rival_networks import compiled, diffusers_unet
from benchmarks.tables import TITLES as NETWORK_TITLES
from benchmarks.tables import Case, driver, words_of
from sgm import runtime
from sgm.cli.inputs import Inputs, read_inputs
from sgm.cli.main import parse
from sgm.cli.profile import DENSE, blank_pipeline, caught_pass
from sgm.cli.program import start
from sgm.errors import UserError
from sgm.io.files import check_writable
from sgm.profiling import latency
from sgm.profiling.macs import Macs, count_macs
from sgm.profiling.passes import Pass, with_random_numbers, with_weights
from sgm.sparse.ops import BACKENDS
from sgm.sparse.sparsify import handle_of
from sgm.specs import RunOptions
from sgm.words import Precision, Preset
from tools.compare import markdown_table

UNET = "unet"
# Rows by name: what they are called in the table.
COMPILED, DIFFUSERS = "compiled", "diffusers"
PACKAGE, PUBLISHED, FAST, GRAPHS = "package", "published", "fast", "graphs"
TITLES = {
    DENSE: "dense",
    COMPILED: "dense, compiled",
    DIFFUSERS: "dense, diffusers",
    PACKAGE: "published, package sige",
    PUBLISHED: "published, ours",
    FAST: "fast",
    GRAPHS: "fast, CUDA graphs",
}
PRESETS = {PACKAGE: Preset.PUBLISHED, PUBLISHED: Preset.PUBLISHED, FAST: Preset.FAST}
PRESETS[GRAPHS] = Preset.FAST
TASKS = {example: task for task, examples in EXAMPLES.items() for example in examples}
HEAD = ("GMAC", "ms", "p10", "p90", "than dense", "MAC ratio", "share", "than sige")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rivals",
        description="One pass of a network: dense, sparse, and others that make it.",
    )
    parser.add_argument(
        "--network", choices=NETWORKS, default=UNET, help=f"what to measure (default {UNET})"
    )
    parser.add_argument("--quick", action="store_true", help="tiny model, one run: only a trial")
    parser.add_argument("--model", choices=("tiny", "sdxl"), default="sdxl")
    parser.add_argument("--examples", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=tuple(TITLES),
        help="which rows (default: all that can be measured here)",
    )
    parser.add_argument("--data", type=Path, help="folder of the published pictures")
    parser.add_argument("--precision", choices=[*map(str, Precision)], default="fp32")
    parser.add_argument("--backend", default="auto", help="backend of our rows (default auto)")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: the best)")
    parser.add_argument("--runs", type=int, help="runs of each pass (default: what fits into 10 s)")
    parser.add_argument("--output", type=Path, help="JSON file (default: named by the network)")
    return parser


def run_of(example: str, preset: str, args: argparse.Namespace) -> tuple[RunOptions, Inputs]:
    """The profile run of `run.py` for an example."""
    words = argparse.Namespace(**{**vars(args), "quick": args.model == "tiny", "macs_only": False})
    case = Case("base", args.network, TASKS[example], example, preset)
    options = parse(words_of(case, words))
    return options, read_inputs(options)


def wanted(args: argparse.Namespace, device: torch.device) -> list[str]:
    """The rows that can run here, of those that are asked for; dense always.

    Raises:
        UserError: one was asked for by name that cannot run here.
    """
    obstacles = {}
    obstacle = BACKENDS["sige"].obstacle(device)
    if args.precision != Precision.FP32:
        obstacle = f"the package knows no {args.precision}"
    if obstacle is not None:
        obstacles[PACKAGE] = obstacle
    if args.network != UNET:
        obstacles |= dict.fromkeys((DIFFUSERS, GRAPHS), "there is one of the UNet only")
    if device.type != "cuda":
        obstacles |= dict.fromkeys((COMPILED, GRAPHS), "it needs a CUDA device")
    for name in args.rows or ():
        if name in obstacles:
            raise UserError(f"The row {name} cannot be measured here: {obstacles[name]}.")
    asked = TITLES if args.rows is None else {DENSE, *args.rows}
    return [name for name in TITLES if name in asked and name not in obstacles]


@dataclass
class Bench:
    """What stays from example to example: one set of weights, and the dense rows on it."""

    args: argparse.Namespace
    device: torch.device
    rows: list[str]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    dense: dict[str, latency.Call] = field(default_factory=dict)
    macs: dict[str, Macs] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def make_dense(self) -> None:
        """The weights, and the dense rows; those of others are left out where they do not run."""
        options, inputs = run_of(self.args.examples[0], Preset.PUBLISHED.value, self.args)
        options = replace(options, run_type=options.run_type.dense)
        shapes = caught_pass(options, inputs, blank_pipeline(options))
        self.macs[DENSE] = count_macs(shapes.run)
        one = with_random_numbers(shapes, self.device)
        self.weights, self.dense[DENSE] = one.network.state_dict(), one.run
        makers = {
            COMPILED: lambda: compiled(one),
            DIFFUSERS: lambda: diffusers_unet(options, self.weights, one.inputs),
        }
        for name in (name for name in makers if name in self.rows):
            try:
                made = makers[name]()
                made()
                self.dense[name] = made
            except (ImportError, RuntimeError) as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self.left_out[name] = (str(error).splitlines() or [type(error).__name__])[0]

    def sparse_rows(self, example: str) -> Iterator[tuple[str, Pass]]:
        """The sparse rows of an example, not yet recorded, in the order of `TITLES`."""
        first: dict[Preset, Pass] = {}
        for name in (name for name in self.rows if name in PRESETS):
            preset = PRESETS[name]
            options, inputs = run_of(example, preset.value, self.args)
            blank = blank_pipeline(options)
            if preset in first:
                # A second network on the same numbers, so that results can be compared.
                network = getattr(blank.networks, self.args.network)
                network.load_state_dict(self.weights, assign=True)
                one = replace(first[preset], network=network)
            else:
                shapes = caught_pass(options, inputs, blank)
                with shapes.with_recording():
                    self.macs[preset.value] = count_macs(shapes.run)
                one = first[preset] = with_weights(shapes, self.weights, self.device)
            one = one.on_backend("sige" if name == PACKAGE else self.args.backend, self.device)
            if name == GRAPHS:
                handle_of(one.network).use_graphs()
            yield name, one

    def measure(self, example: str) -> list[dict[str, object]]:
        """The rows of one example."""
        gc.collect()  # networks are in cycles with their hooks
        if not self.dense:
            self.make_dense()
        passes: dict[str, Pass] = {}
        with ExitStack() as recordings:
            for name, one in self.sparse_rows(example):
                recordings.enter_context(one.with_recording())
                passes[name] = one
            error = difference(passes)
            timed = self.dense | {name: one.run for name, one in passes.items()}
            found = latency.measure(timed, self.device, self.args.runs)
        rows = []
        for name in (name for name in TITLES if name in found):
            macs = self.macs[PRESETS[name].value if name in PRESETS else DENSE]
            backend = passes[name].backend if name in passes else None
            row: dict[str, object] = {"example": example, "row": name, "backend": backend}
            row |= {"gmacs": macs.total / 1e9, "gmacs_with_attention": macs.with_attention / 1e9}
            row["latency_ms"] = found[name].figures()
            row |= ratios(name, macs, self.macs[DENSE], found)
            if name == PACKAGE and error is not None:
                row["error"] = f"{error:.1e}"  # JSON files are rounded to five digits
            rows.append(row)
        return rows


def difference(passes: Mapping[str, Pass]) -> float | None:
    """How far the package's result is from ours, relative to the largest value; None without both.

    On the same numbers it is rounding: sums in another order.
    """
    if not {PACKAGE, PUBLISHED} <= passes.keys():
        return None
    ours, theirs = passes[PUBLISHED].run(), passes[PACKAGE].run()
    return ((ours - theirs).abs().max() / ours.abs().max()).item()


def ratios(
    name: str, macs: Macs, dense: Macs, found: Mapping[str, latency.Latency]
) -> dict[str, float | None]:
    """How many times faster than dense and than the package a row is, how many times fewer its
    MACs (published convention) are, and the first as a share of the latter."""
    median = found[name].median
    faster, fewer = found[DENSE].median / median, dense.total / macs.total
    package = found[PACKAGE].median / median if PACKAGE in found else None
    share = faster / fewer if name in PRESETS else None
    return {"faster": faster, "mac_ratio": fewer, "share": share, "faster_than_package": package}


def table(figures: Mapping[str, object]) -> str:
    """All rows as Markdown."""
    lines = []
    for row in figures["rows"]:
        sparse, package = row["share"] is not None, row["faster_than_package"]
        times = [f"{row['latency_ms'][name]:.2f}" for name in ("median", "p10", "p90")]
        line = [f"{row['example']}: {TITLES[row['row']]}", f"{row['gmacs']:.2f}", *times]
        line += [f"{row['faster']:.2f}x", f"{row['mac_ratio']:.2f}x" if sparse else "-"]
        line += [f"{row['share']:.2f}" if sparse else "-"]
        line += ["-" if package is None else f"{package:.2f}x"]
        lines.append(tuple(line))
    network = NETWORK_TITLES[figures.get("network", UNET)]
    return markdown_table((f"{network} pass", *HEAD), lines)


def notes(figures: Mapping[str, object]) -> str:
    """Where the figures come from, and what is missing."""
    processor = figures["machine"]["processor"]
    device = processor if figures["device"] == "cpu" else figures["device"]
    text = f"{figures['model']}, {figures['precision']}, PyTorch {figures['versions']['torch']}, "
    text += f"commit {figures['commit']}, on {device}; pictures: {figures['pictures']}."
    for row in figures["rows"]:
        if "error" in row:
            text += f"\n{row['example']}: the package's result differs from ours by {row['error']} "
            text += "of the largest value."
    for name, reason in figures["left_out"].items():
        text += f"\nLeft out: {TITLES[name]} ({reason})."
    return text


def measure_all(args: argparse.Namespace) -> dict[str, object]:
    """Measure the examples that are asked for; the figures of `--output`."""
    device, precision = runtime.pick_device(args.device), Precision(args.precision)
    bench = Bench(args, device, wanted(args, device))
    rows: list[dict[str, object]] = []
    with torch.inference_mode(), runtime.precision_scope(precision, device):
        for example in tqdm(args.examples, desc="measuring", unit="example"):
            rows += bench.measure(example)
        peak = latency.peak_memory_mb(lambda: None, device)
    return {
        "benchmark": "rivals",
        "model": args.model,
        "network": args.network,
        "precision": args.precision,
        "pictures": "published" if args.data else "our own, but for the mask",
        "device": runtime.describe_device(device),
        "driver": driver(device),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": runtime.versions(),
        "commit": commit(),
        "left_out": bench.left_out,
        "peak_memory_mb": peak,
        "rows": rows,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write JSON and Markdown, print the table; the exit code."""
    args = build_parser().parse_args(argv)
    if args.runs is not None and args.runs < 1:
        raise UserError(f"--runs is {args.runs}; give a number of at least 1.")
    if args.quick:
        args.model, args.runs = "tiny", args.runs or 1
    name = "rivals" if args.network == UNET else f"rivals_{args.network}"
    output = args.output or RESULTS / f"{name}.json"
    check_writable(output)
    write_results(output, measure_all(args), lambda f: f"{table(f)}\n\n{notes(f)}")
    return 0


if __name__ == "__main__":
    start("rivals", main)
