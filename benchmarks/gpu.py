"""What a GPU does, the most valuable figure first: `benchmarks/gpu.sh`.

`python -m benchmarks.gpu` does the work. For a GPU that is at hand for minutes: every result is
printed and written at once, so the file is whole whenever this is stopped; a part that fails says
so and does not stop the others. Weights and inputs are random: times do not depend on them.

    kernels    each operator against torch, at real shapes
    passes     the UNet in bf16 at 512x1024: dense, published, fast; as they are and as graphs; then
               the kernels of a graph's launch: how many, and the longest
    edits      whole edits in bf16: dense, cold, warm; seconds and peak memory
    compiled   the dense UNet compiled, which takes minutes
    coders     encoder and decoder
    precisions the UNet in fp32 and tf32, beside the published milliseconds of an A100
    sizes      the UNet at 1024x1024 and 2048x2048
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import edit as edits
from benchmarks import kernels
from benchmarks.common import RESULTS, commit, machine, write_figures
from benchmarks.published import PUBLISHED
from benchmarks.rival_networks import compiled
from benchmarks.rivals import TASKS
from benchmarks.tables import Case, driver, words_of
from benchmarks.timing import Bench
from sgm import runtime
from sgm.cli.inputs import read_inputs
from sgm.cli.main import parse
from sgm.cli.profile import blank_pipeline, caught_pass
from sgm.cli.program import start
from sgm.inference.noise import NamedNoise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.session import EditSession
from sgm.profiling import latency
from sgm.profiling.passes import Pass, with_random_numbers, with_weights
from sgm.sparse.graphs import capture_graph, repeat
from sgm.sparse.sparsify import handle_of
from sgm.specs import MODELS, SamplingParams
from sgm.words import Precision, Task
from tools.compare import Edit, run_edit

UNET, CODERS = "unet", ("decoder", "encoder")
EXAMPLES = ("mask", "0", "1")
LONGEST, RUNS = 25, 20
SMALL = (128, 256)  # of a dry run: an edit neither fills such a picture nor is lost in it
Size = tuple[int, int]


@dataclass
class Report:
    """Results, each printed and written as soon as it is there.

    Attributes:
        facts: where and with what all of them were measured.
    """

    path: Path
    facts: dict[str, object]
    rows: list[dict[str, object]] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def add(self, part: str, name: str, **found: object) -> None:
        """A result of a part."""
        after = round(time.perf_counter() - self.began, 1)
        self.rows.append({"part": part, "name": name, "after_s": after, **found})
        told = "  ".join(f"{key} {_short(value)}" for key, value in found.items())
        print(f"[{after:6.1f} s] {part}: {name}  {told}", flush=True)
        write_figures(self.path, {**self.facts, "rows": self.rows})


def _short(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass
class Bench512:
    """What the parts share: a report, a device, and one set of weights a network and dtype."""

    report: Report
    device: torch.device
    dry: bool
    weights: dict[tuple[str, str], Mapping[str, Tensor]] = field(default_factory=dict)

    def caught(
        self,
        network: str,
        example: str,
        preset: str,
        precision: str,
        size: Size | None,
        dense: bool,
    ) -> Pass:
        """A pass of a network on the device, on the weights of its dtype."""
        given = Namespace(data=None, precision=precision, backend="auto", quick=self.dry)
        given.macs_only, given.device = False, self.device.type
        if self.dry:
            given.precision, size = "fp32", size or SMALL  # CPUs emulate bf16
        words = words_of(Case("base", network, TASKS[example], example, preset), given)
        words += [] if size is None else ["--H", str(size[0]), "--W", str(size[1])]
        options = parse(words)
        options = replace(options, run_type=options.run_type.dense) if dense else options
        shapes = caught_pass(options, read_inputs(options), blank_pipeline(options))
        kind = (network, str(runtime.dtype_of(Precision(given.precision))))
        if kind not in self.weights:
            one = with_random_numbers(shapes, self.device)
            self.weights[kind] = one.network.state_dict()
        else:
            one = with_weights(shapes, self.weights[kind], self.device)
        return one.on_backend("auto", self.device)

    def times(
        self,
        part: str,
        network: str,
        example: str,
        precision: str = "bf16",
        size: Size | None = None,
        presets: Sequence[str] = ("published", "fast"),
        graphs: bool = True,
        longest: bool = False,
    ) -> None:
        """Milliseconds of the passes of an example, in turns, and each as a result.

        Args:
            presets: which ones besides dense.
            graphs: also of dense and `fast` as graphs.
            longest: also of the kernels of the graph of `fast`, the longest first.
        """
        gc.collect()  # networks are in cycles with their hooks
        precision, runs = ("fp32", 1) if self.dry else (precision, RUNS)  # CPUs emulate bf16
        known: dict[str, object] = {"network": network, "example": example}
        known |= {"precision": precision} | ({"size": size} if size else {})
        with runtime.precision_scope(Precision(precision), self.device):
            dense = self.caught(network, example, "published", precision, size, True)
            sparse = {
                preset: self.caught(network, example, preset, precision, size, False)
                for preset in presets
            }
            with ExitStack() as scopes:
                for one in sparse.values():
                    scopes.enter_context(one.with_recording())
                    handle_of(one.network).ops.prepare(one.run)
                calls = {"dense": dense.run, **{name: one.run for name, one in sparse.items()}}
                found = latency.measure(calls, self.device, runs)
            self.add_times(part, known, found, found["dense"])
            if not graphs:
                return
            fast = sparse["fast"]
            handle_of(fast.network).use_graphs()
            with fast.with_recording():
                calls = {"dense graph": self.as_graph(dense.run), "fast graph": fast.run}
                graphed = latency.measure(calls, self.device, runs)
                self.add_times(part, known, graphed, found["dense"])
                if longest:
                    self.longest(part, known, fast)

    def add_times(
        self,
        part: str,
        known: Mapping[str, object],
        found: Mapping[str, latency.Latency],
        dense: latency.Latency,
    ) -> None:
        """Latencies as results, beside that of the dense pass as it is."""
        for name, took in found.items():
            faster = dense.median / took.median
            self.report.add(part, name, **known, ms=took.figures(), than_dense=faster)

    def longest(self, part: str, known: Mapping[str, object], one: Pass) -> None:
        """How many kernels a launch of a pass's graph has, and the longest."""
        from torch.profiler import ProfilerActivity, profile

        cuda = self.device.type == "cuda"
        activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
        with profile(activities=[activity]) as seen:
            one.run()
            latency.synchronise(self.device)
        own = "self_device_time_total" if cuda else "self_cpu_time_total"
        events = sorted(seen.key_averages(), key=lambda e: getattr(e, own), reverse=True)
        total = sum(getattr(event, own) for event in events)
        counts = {"us": total, "launches": sum(e.count for e in events)}
        self.report.add(part, "all kernels", **known, **counts)
        for event in events[:LONGEST]:
            us = getattr(event, own)
            told = {"us": us, "count": event.count, "share": us / total}
            self.report.add(part, event.key[:90], **known, **told)

    def as_graph(self, step: Callable[[], Tensor]) -> Callable[[], None]:
        """A pass as a CUDA graph."""
        return (capture_graph if self.device.type == "cuda" else repeat)(step)[1]


def measure_kernels(bench: Bench512) -> None:
    """Each operator against torch."""
    dtype = torch.float32 if bench.dry else torch.bfloat16

    def told(row: dict[str, object]) -> None:
        kept = ("ms", "floor_ms", "achieved", "error", "right")
        bench.report.add("kernels", str(row["operator"]), **{key: row[key] for key in kept})

    sizes = kernels.QUICK_SHAPES if bench.dry else kernels.SHAPES
    kernels.bench_all(Bench(bench.device, dtype, bench.dry, told), sizes)


def measure_passes(bench: Bench512) -> None:
    """The UNet in bf16, for every example."""
    for example in EXAMPLES:
        bench.times("passes", UNET, example, longest=True)


def measure_edits(bench: Bench512) -> None:
    """Whole edits, decoding included."""
    precision = "fp32" if bench.dry else "bf16"
    words = ["--model", "tiny" if bench.dry else "sdxl", "--precision", precision]
    args = edits.build_parser().parse_args([*words, "--random_weights"])
    steps, size = (2, SMALL) if bench.dry else (50, (512, 1024))
    pipelines = edits.load(MODELS[args.model], args, bench.device)
    for name, edit in edits.make_edits(args.assets, size).items():
        measure_edit(bench, name, edit, pipelines, steps)


def measure_edit(
    bench: Bench512, name: str, edit: Edit, pipelines: Mapping[str, Pipeline], steps: int
) -> None:
    """One edit: dense, recording as it goes, and from a session."""
    noise, fast = NamedNoise(edit.seed), pipelines["fast"]
    for kind, pipeline in (("dense", pipelines["dense"]), ("cold", fast)):
        report_edit(bench, name, kind, partial(run_edit, pipeline, edit, steps, noise=noise))
    params = SamplingParams("", seed=edit.seed, steps=steps)
    task = Task.INPAINTING if edit.edited is None else Task.SDEDIT
    session = EditSession(fast, edit.image, params, task, noise=noise)
    report_edit(bench, name, "warm", partial(edits.warm, session, edit))


def report_edit(bench: Bench512, name: str, kind: str, run: Callable[[], EditResult]) -> None:
    """Seconds of the third edit of a kind (the first compile, the second captures) and memory."""
    for _ in range(0 if bench.dry else 2):
        run()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    result, total = edits.timed(run, bench.device)
    cuda = bench.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(bench.device) / 1e6 if cuda else None
    seconds = {**result.seconds, "total": total}
    bench.report.add("edits", f"{name}, {kind}", seconds=seconds, peak_mb=peak)


def measure_compiled(bench: Bench512) -> None:
    """The dense UNet compiled."""
    one = bench.caught(UNET, "mask", "published", "bf16", None, True)
    call = one.run if bench.dry else compiled(one)
    began = time.perf_counter()
    call()
    latency.synchronise(bench.device)
    seconds = time.perf_counter() - began
    took = latency.measure({"compiled": call}, bench.device, 1 if bench.dry else None)["compiled"]
    bench.report.add("compiled", "dense compiled", ms=took.figures(), compile_s=seconds)


def measure_coders(bench: Bench512) -> None:
    """Decoder and encoder."""
    for network in CODERS:
        for example in EXAMPLES:
            bench.times("coders", network, example)


def measure_precisions(bench: Bench512) -> None:
    """The UNet in fp32 and tf32, and what was published of an A100."""
    dense, *sparse = PUBLISHED["base", UNET, "sdedit"]
    mask = PUBLISHED["base", UNET, "inpainting"][1]
    for example, figure in zip(EXAMPLES, (mask, *sparse), strict=True):
        faster = dense.milliseconds / figure.milliseconds
        bench.report.add("precisions", "published on an A100", example=example, than_dense=faster)
        for precision in ("fp32", "tf32") if bench.device.type == "cuda" else ("fp32",):
            bench.times("precisions", UNET, example, precision, graphs=False)


def measure_sizes(bench: Bench512) -> None:
    """Larger pictures."""
    for size in ((64, 64), (128, 128)) if bench.dry else ((1024, 1024), (2048, 2048)):
        bench.times("sizes", UNET, "mask", size=size, presets=("fast",))


PARTS: dict[str, Callable[[Bench512], None]] = {
    "kernels": measure_kernels,
    "passes": measure_passes,
    "edits": measure_edits,
    "compiled": measure_compiled,
    "coders": measure_coders,
    "precisions": measure_precisions,
    "sizes": measure_sizes,
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Time everything that wants a GPU."
    )
    parser.add_argument("--dry", action="store_true", help="tiny, on a CPU: a test of this program")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS))
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json", help="figures")
    return parser


@contextmanager
def told(report: Report, part: str) -> Iterator[None]:
    """A part's error as a result of it: the next one goes on."""
    try:
        yield
    except Exception as error:
        report.add(part, "failed", error=f"{type(error).__name__}: {error}"[:400])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; 1 if one failed or an operator was wrong."""
    args = build_parser().parse_args(argv)
    device = torch.device("cpu") if args.dry else runtime.pick_device("cuda")
    facts = {"benchmark": "gpu", "dry": args.dry, "device": runtime.describe_device(device)}
    facts |= {"driver": driver(device), "machine": machine(), "commit": commit()}
    report = Report(args.output, facts | {"versions": runtime.versions()})
    bench = Bench512(report, device, args.dry)
    for part in args.parts:
        with told(report, part), torch.inference_mode():
            PARTS[part](bench)
    failed = [row for row in report.rows if row["name"] == "failed" or row.get("right") is False]
    print(f"{len(report.rows)} results in {args.output}, failed: {len(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    start("benchmarks.gpu", main)
