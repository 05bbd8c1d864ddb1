"""The profile modes: count and time one pass of one network, as an edit makes it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sgm.cli import report
from sgm.cli.generate import load_pipeline
from sgm.cli.inputs import Inputs
from sgm.cli.requests import edit_of
from sgm.errors import UserError
from sgm.specs import RunOptions
from sgm.words import Mode, Task

if TYPE_CHECKING:
    import torch

    from sgm.inference.pipeline import Pipeline
    from sgm.profiling.latency import Latency
    from sgm.profiling.macs import Macs
    from sgm.profiling.passes import Pass

logger = logging.getLogger(__name__)

DENSE, SPARSE = "dense", "sparse"
TITLES = {"unet": "UNet", "encoder": "Encoder", "decoder": "Decoder"}


@dataclass(frozen=True)
class Measured:
    """The figures of a profile run; those of both passes are by `DENSE` and `SPARSE`.

    Attributes:
        parameters: of the network.
        backend: name of the one that ran the sparse operators; of a dense network the one that was
            asked for.
        macs: of one pass.
        first_steps: share of a run's first steps, whose masks are wider, and a pass there; None
            where all steps are alike.
        latency: of one pass; empty if it was not timed.
        peak_memory_mb: of the pass that the run type makes; None if it was not timed.
    """

    parameters: int
    backend: str
    macs: "dict[str, Macs]"
    first_steps: "tuple[float, Macs] | None"
    latency: "dict[str, Latency]"
    peak_memory_mb: float | None


def profile(options: RunOptions, inputs: Inputs) -> None:
    """Measure the network that the mode names and report the figures.

    Raises:
        UserError: there is no edit to measure, or the networks cannot be loaded.
    """
    import torch

    from sgm import runtime

    options = _checked(options, inputs)
    graphs = runtime.wants_graphs(options.graphs, torch.device(options.device), options.backend)
    measured = measure(options, inputs, graphs)
    ratio = edit_of(options, inputs).ratio
    figures = _figures(options, measured, ratio)
    report.publish(figures, _text(options, measured, ratio), options.json_path)


def _checked(options: RunOptions, inputs: Inputs) -> RunOptions:
    """The options, dense for an edit of the whole picture; UserError for an edit of nothing."""
    mask = inputs.mask
    masked = mask is not None and (options.run_type.sparse or options.task is Task.INPAINTING)
    if masked and not mask.any():
        what = "mask is empty" if options.task is Task.INPAINTING else "two pictures are the same"
        raise UserError(f"The {what}, so there is no pass to measure; mark or draw something.")
    if masked and options.run_type.sparse and mask.all():
        dense = options.run_type.dense
        logger.warning("The edit covers the whole picture: running %s, which is dense.", dense)
        return replace(options, run_type=dense)
    return options


def measure(options: RunOptions, inputs: Inputs, graphs: bool = False) -> Measured:
    """Count MACs from shapes only; then time on the device, with a checkpoint or random weights.

    Args:
        graphs: time sparse passes of the UNet as CUDA graphs.
    """
    import torch

    from sgm.profiling.macs import count_macs
    from sgm.profiling.passes import with_random_numbers
    from sgm.sparse.sparsify import handle_of

    device = torch.device(options.device)
    with torch.inference_mode():
        shapes = caught_pass(options, inputs, blank_pipeline(options))
        with shapes.with_recording():
            macs = {name: count_macs(call) for name, call in calls(options, shapes).items()}
        parameters = sum(p.numel() for p in shapes.network.parameters())
        first = _first_steps(options, inputs)
        if options.macs_only:
            chosen = shapes.on_backend(options.backend.value, device)
            backend = chosen.backend or options.backend.value
            return Measured(parameters, backend, macs, first, {}, None)
        if options.random_weights:
            logger.warning("Random weights and inputs: the time does not depend on them.")
            real = with_random_numbers(shapes, device)
        else:
            real = caught_pass(options, inputs, load_pipeline(options, options.refined))
        real = real.on_backend(options.backend.value, device)
        backend = real.backend or options.backend.value
        if graphs and options.run_type.sparse and options.mode is Mode.PROFILE_UNET:
            handle_of(real.network).use_graphs()
        return Measured(parameters, backend, macs, first, *_timed(options, real, device))


def _first_steps(options: RunOptions, inputs: Inputs) -> "tuple[float, Macs] | None":
    """The share of a run's first steps whose masks are wider, and the MACs of a sparse pass there;
    None where all steps have the same masks."""
    from sgm.inference.presets import RECIPES
    from sgm.profiling.macs import count_macs

    share = RECIPES[options.preset].early
    edited_unet = options.task is Task.SDEDIT and options.mode is Mode.PROFILE_UNET
    if not (share and edited_unet and options.run_type.sparse):
        return None
    pipeline = blank_pipeline(options)
    pipeline.recipe = replace(pipeline.recipe, early=1.0)
    one = caught_pass(options, inputs, pipeline)
    with one.with_recording():
        return share, count_macs(one.run)


def calls(options: RunOptions, one: "Pass") -> "dict[str, Callable[[], object]]":
    """What is measured, the pass of the run type last. The dense one is that of the dense network,
    on the same weights."""
    if not options.run_type.sparse:
        return {DENSE: one.run}
    if not options.compare:
        return {SPARSE: one.run}
    dense = blank_pipeline(replace(options, run_type=options.run_type.dense))
    network = getattr(dense.networks, options.mode.network)
    return {DENSE: one.by(network).run, SPARSE: one.run}


def _timed(
    options: RunOptions, one: "Pass", device: "torch.device"
) -> "tuple[dict[str, Latency], float | None]":
    """Latencies, and the peak memory of the pass of the run type in MB."""
    from sgm import runtime
    from sgm.profiling import latency

    with runtime.precision_scope(options.precision, device), one.with_recording():
        timed = calls(options, one)
        peak = latency.peak_memory_mb(one.run, device)
        return latency.measure(timed, device), peak


def blank_pipeline(options: RunOptions) -> "Pipeline":
    """The networks of a run on the meta device: shapes without weights, counted by the operators
    of the `torch` backend. With `--refined` those of the refiner."""
    from sgm import runtime
    from sgm.inference.networks import Networks, table_of_preset
    from sgm.inference.pipeline import Pipeline
    from sgm.inference.presets import RECIPES
    from sgm.io.checkpoint import build_model
    from sgm.words import Precision

    run_type, refined, preset = options.run_type, options.refined, options.preset
    engine = build_model(
        options.config_path / options.spec.config_file(run_type, refined, preset)
    ).eval()
    table = table_of_preset(preset) if run_type.sparse else None
    networks = Networks(engine.to(runtime.dtype_of(options.precision)), table)
    networks.set_backend("torch")
    turbo = options.spec.turbo if run_type.turbo and not refined else None
    return Pipeline(networks, Precision.FP32, run_type.sparse, turbo, RECIPES[preset])


def caught_pass(options: RunOptions, inputs: Inputs, pipeline: "Pipeline") -> "Pass":
    """The pass of the mode's network, from an edit of one step. A refiner gets the picture's own
    latents in place of the base's, which have the same shape.

    The published inpainting never runs its encoder sparsely, and its encoder profile made a
    picture instead; here that profile is the encoder on the mask.
    """
    from sgm.inference.inpainting import Inpainting
    from sgm.profiling.passes import catch

    params = replace(options.sampling, steps=1, strength=1.0)
    edit = edit_of(replace(options, sampling=params), inputs)
    # The decoder's pass is that of an edit from a recording; others may decode in full.
    pipeline = pipeline.with_recipe(replace(pipeline.recipe, sparse_decode=True))
    network = getattr(pipeline.networks, options.mode.network)
    one = catch(network, lambda: pipeline.edit(edit, params))
    on_mask = options.run_type.sparse and options.mode is Mode.PROFILE_ENCODER
    if on_mask and isinstance(edit, Inpainting):
        return one.on_mask(pipeline.recipe.inpainting(edit.mask))
    return one


def _gmacs(macs: "Macs") -> dict[str, float]:
    """Both readings of a count, in 10^9, rounded to 10^6."""
    return {
        "gmacs": round(macs.total / 1e9, 3),
        "gmacs_with_attention": round(macs.with_attention / 1e9, 3),
    }


def _figures(options: RunOptions, measured: Measured, ratio: float | None) -> dict[str, object]:
    """The figures for `--json`: those of the run type's pass, under `dense` those of the other."""
    import torch

    from sgm import runtime

    main = SPARSE if options.run_type.sparse else DENSE

    def latency(name: str) -> Mapping[str, float] | None:
        return measured.latency[name].figures() if name in measured.latency else None

    dense = None
    if main == SPARSE and DENSE in measured.macs:
        dense = {**_gmacs(measured.macs[DENSE]), "latency_ms": latency(DENSE)}
    speedup = _speedup(measured)
    first = {}
    if measured.first_steps is not None:
        share, counted = measured.first_steps
        first = {"first_steps": {"share": share, **_gmacs(counted)}}
    return {
        **report.settings(options),
        "backend": measured.backend,
        "device": runtime.describe_device(torch.device(options.device)),
        "edit_ratio": ratio,
        **_gmacs(measured.macs[main]),
        **first,
        "latency_ms": latency(main),
        "dense": dense,
        "speedup": None if speedup is None else round(speedup, 3),
        "peak_memory_mb": measured.peak_memory_mb and round(measured.peak_memory_mb, 1),
        "versions": runtime.versions(),
    }


def _speedup(measured: Measured) -> float | None:
    """How many times faster the sparse pass is; None where only one was timed."""
    if len(measured.latency) < 2:
        return None
    return measured.latency[DENSE].median / measured.latency[SPARSE].median


def _text(options: RunOptions, measured: Measured, ratio: float | None) -> str:
    """A table for people, a row for each pass."""
    import torch

    from sgm import runtime

    edited = "" if ratio is None else f", {ratio:.1%} of the picture edited"
    title = (
        f"{TITLES[options.mode.network]} of {options.task} {options.run_type}{edited}\n"
        f"{measured.parameters / 1e6:.1f} M parameters, preset {options.preset}, "
        f"{options.precision}, backend {measured.backend}, "
        f"{runtime.describe_device(torch.device(options.device))}\n"
    )
    rows = [["", "GMAC", "with attention", "median ms", "p10", "p90"]]
    for name, macs in measured.macs.items():
        counts = [f"{count / 1e9:.2f}" for count in (macs.total, macs.with_attention)]
        time = measured.latency.get(name)
        times = [] if time is None else [f"{t:.2f}" for t in (time.median, time.p10, time.p90)]
        rows.append([name, *counts, *(times or ["-"] * 3)])
    if len(measured.macs) > 1:
        dense, sparse = measured.macs[DENSE], measured.macs[SPARSE]
        less = [dense.total / sparse.total, dense.with_attention / sparse.with_attention]
        faster = _speedup(measured)
        cells = [f"{times:.2f}x" for times in (*less, *([] if faster is None else [faster]))]
        rows.append(["ratio", *cells, *[""] * (5 - len(cells))])
    if measured.first_steps is not None:
        share, first = measured.first_steps
        counts = [f"{count / 1e9:.2f}" for count in (first.total, first.with_attention)]
        rows.append([f"first {share:.0%} of steps", *counts, *["-"] * 3])
    lines = report.aligned(rows)
    if measured.peak_memory_mb is not None:
        lines += f"peak memory {measured.peak_memory_mb:.0f} MB\n"
    return f"{title}\n{lines}"
