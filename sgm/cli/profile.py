"""The profile modes: count and time one pass of one network, as an edit makes it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from sgm import runtime
from sgm.cli import report
from sgm.cli.generate import load_pipeline
from sgm.cli.inputs import Inputs, dense_if_everywhere, nothing_marked, request
from sgm.errors import UserError
from sgm.inference.inpainting import Inpainting
from sgm.inference.networks import Networks, table_of_preset
from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import RECIPES
from sgm.io.checkpoint import build_model
from sgm.io.sources import kind_of, read_contents
from sgm.profiling import latency
from sgm.profiling.latency import Latency
from sgm.profiling.macs import Macs, count_macs
from sgm.profiling.passes import Pass, catch, with_random_numbers
from sgm.sparse.sparsify import handle_of
from sgm.specs import RunOptions
from sgm.words import Mode, Precision, Task

logger = logging.getLogger(__name__)

DENSE, SPARSE = "dense", "sparse"
TITLES = {"unet": "UNet", "encoder": "Encoder", "decoder": "Decoder"}


@dataclass(frozen=True)
class Measured:
    """The figures of a profile run; those of both passes are by `DENSE` and `SPARSE`."""

    parameters: int
    backend: str  # that ran the sparse operators; of a dense network the one that was asked for
    macs: dict[str, Macs]
    # Share of a run's first steps, whose masks are wider, and a pass there; None without any.
    first_steps: tuple[float, Macs] | None
    latency: dict[str, Latency]  # empty if it was not timed
    peak_memory_mb: float | None  # of the pass that the run type makes; None if it was not timed

    @property
    def speedup(self) -> float | None:
        """How many times faster the sparse pass is; None where only one was timed."""
        if len(self.latency) < 2:
            return None
        return self.latency[DENSE].median / self.latency[SPARSE].median


def profile(options: RunOptions, inputs: Inputs) -> None:
    """Measure the network that the mode names and report the figures; UserError if there is no edit
    to measure."""
    if why := nothing_marked(options, inputs):
        raise UserError(f"The {why}, so there is no pass to measure; mark or draw something.")
    options = dense_if_everywhere(options, inputs)
    graphs = runtime.wants_graphs(options.graphs, torch.device(options.device), options.backend)
    measured = measure(options, inputs, graphs)
    ratio = inputs.ratio
    figures = _figures(options, measured, ratio)
    report.publish(figures, _text(options, measured, ratio), options.json_path)


def measure(options: RunOptions, inputs: Inputs, graphs: bool = False) -> Measured:
    """Count MACs from shapes only; then time on the device, with a checkpoint or random weights,
    and on request sparse passes of the UNet as CUDA graphs."""
    device = torch.device(options.device)
    with torch.inference_mode():
        shapes = caught_pass(options, inputs, blank_pipeline(options))
        with shapes.with_recording():
            macs = {name: count_macs(call) for name, call in calls(options, shapes).items()}
        parameters = sum(p.numel() for p in shapes.network.parameters())
        first = _first_steps(options, inputs)
        if options.macs_only:
            real = shapes
        elif options.random_weights:
            logger.warning("Random weights and inputs: the time does not depend on them.")
            real = with_random_numbers(shapes, device)
        else:
            real = caught_pass(options, inputs, load_pipeline(options, options.refined))
        real = real.on_backend(options.backend.value, device)
        backend = real.backend or options.backend.value
        if options.macs_only:
            return Measured(parameters, backend, macs, first, {}, None)
        if graphs and options.run_type.sparse and options.mode is Mode.PROFILE_UNET:
            handle_of(real.network).use_graphs()
        with runtime.precision_scope(options.precision, device), real.with_recording():
            timed = calls(options, real)
            peak = latency.peak_memory_mb(real.run, device)
            times = latency.measure(timed, device)
        return Measured(parameters, backend, macs, first, times, peak)


def _first_steps(options: RunOptions, inputs: Inputs) -> tuple[float, Macs] | None:
    """The share of a run's first steps whose masks are wider, and the MACs of a sparse pass there;
    None where all steps have the same masks."""
    share = RECIPES[options.preset].early
    edited_unet = options.task is Task.SDEDIT and options.mode is Mode.PROFILE_UNET
    if not (share and edited_unet and options.run_type.sparse):
        return None
    pipeline = blank_pipeline(options)
    pipeline.recipe = replace(pipeline.recipe, early=1.0)
    one = caught_pass(options, inputs, pipeline)
    with one.with_recording():
        return share, count_macs(one.run)


def calls(options: RunOptions, one: Pass) -> dict[str, Callable[[], object]]:
    """What is measured, the pass of the run type last. The dense one is that of the dense network,
    on the same weights."""
    if not options.run_type.sparse:
        return {DENSE: one.run}
    if not options.compare:
        return {SPARSE: one.run}
    dense = blank_pipeline(replace(options, run_type=options.run_type.dense))
    network = getattr(dense.networks, options.mode.network)
    return {DENSE: one.by(network).run, SPARSE: one.run}


def blank_pipeline(options: RunOptions) -> Pipeline:
    """The networks of a run on the meta device: shapes without weights, counted by the operators
    of the `torch` backend. With `--refined` those of the refiner. If the file of weights is there,
    it says whether the UNet is for inpainting."""
    run_type, refined, preset = options.run_type, options.refined, options.preset
    config = options.config_path / options.spec.config_file(run_type, refined, preset)
    weights, kind = options.weights(refined), None
    if weights.checkpoint.exists():
        kind = kind_of(read_contents(weights), weights.prediction)
    engine = build_model(config, kind).eval()
    table = table_of_preset(preset) if run_type.sparse else None
    networks = Networks(engine.to(runtime.dtype_of(options.precision)), table)
    networks.set_backend("torch")
    turbo = options.spec.turbo if run_type.turbo and not refined else None
    return Pipeline(networks, Precision.FP32, run_type.sparse, turbo, RECIPES[preset])


def caught_pass(options: RunOptions, inputs: Inputs, pipeline: Pipeline) -> Pass:
    """The pass of the mode's network, from an edit of one step. A refiner gets the picture's own
    latents in place of the base's, which have the same shape.

    The published inpainting never runs its encoder sparsely, and its encoder profile made a
    picture instead; here that profile is the encoder on the mask.
    """
    params = replace(options.sampling, steps=1, strength=1.0)
    edit = request(replace(options, sampling=params), inputs).whole()
    # The decoder's pass is that of an edit from a recording; others may decode in full.
    pipeline = pipeline.with_recipe(replace(pipeline.recipe, sparse_decode=True))
    network = getattr(pipeline.networks, options.mode.network)
    one = catch(network, lambda: pipeline.edit(edit, params))
    on_mask = options.run_type.sparse and options.mode is Mode.PROFILE_ENCODER
    if on_mask and isinstance(edit, Inpainting):
        return one.on_mask(pipeline.recipe.inpainting(edit.mask))
    return one


def _gmacs(macs: Macs) -> dict[str, object]:
    """Both readings of a count, in 10^9, rounded to 10^6."""
    return {
        "gmacs": round(macs.total / 1e9, 3),
        "gmacs_with_attention": round(macs.with_attention / 1e9, 3),
    }


def _figures(options: RunOptions, measured: Measured, ratio: float | None) -> dict[str, object]:
    """The figures for `--json`: those of the run type's pass, under `dense` those of the other."""
    passes = {name: _gmacs(macs) for name, macs in measured.macs.items()}
    for name, figures in passes.items():
        timed = measured.latency.get(name)
        figures["latency_ms"] = None if timed is None else timed.figures()
    main = passes.pop(SPARSE if options.run_type.sparse else DENSE)
    first = {}
    if measured.first_steps is not None:
        share, counted = measured.first_steps
        first = {"first_steps": {"share": share, **_gmacs(counted)}}
    speedup, peak = measured.speedup, measured.peak_memory_mb
    return {
        **report.settings(options),
        "backend": measured.backend,
        "device": runtime.describe_device(torch.device(options.device)),
        "edit_ratio": ratio,
        **main,
        **first,
        "dense": passes.get(DENSE),
        "speedup": None if speedup is None else round(speedup, 3),
        "peak_memory_mb": None if peak is None else round(peak, 1),
        "versions": runtime.versions(),
    }


def _text(options: RunOptions, measured: Measured, ratio: float | None) -> str:
    """A table for people, a row for each pass."""
    edited = "" if ratio is None else f", {ratio:.1%} of the picture edited"
    title = (
        f"{TITLES[options.mode.network]} of {options.task} {options.run_type}{edited}\n"
        f"{measured.parameters / 1e6:.1f} M parameters, preset {options.preset}, "
        f"{options.precision}, backend {measured.backend}, "
        f"{runtime.describe_device(torch.device(options.device))}\n"
    )

    def row(name: str, macs: Macs, time: Latency | None) -> list[str]:
        counts = [f"{count / 1e9:.2f}" for count in (macs.total, macs.with_attention)]
        times = [f"{t:.2f}" for t in (time.median, time.p10, time.p90)] if time else ["-"] * 3
        return [name, *counts, *times]

    rows = [["", "GMAC", "with attention", "median ms", "p10", "p90"]]
    rows += [row(name, macs, measured.latency.get(name)) for name, macs in measured.macs.items()]
    if len(measured.macs) > 1:
        dense, sparse = measured.macs[DENSE], measured.macs[SPARSE]
        less = [dense.total / sparse.total, dense.with_attention / sparse.with_attention]
        times = "" if measured.speedup is None else f"{measured.speedup:.2f}x"
        rows.append(["ratio", *[f"{ratio:.2f}x" for ratio in less], times, "", ""])
    if measured.first_steps is not None:
        share, first = measured.first_steps
        rows.append(row(f"first {share:.0%} of steps", first, None))
    peak = measured.peak_memory_mb
    memory = "" if peak is None else f"peak memory {peak:.0f} MB\n"
    return f"{title}\n{report.aligned(rows)}{memory}"
