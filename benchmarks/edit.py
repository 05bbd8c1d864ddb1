"""Seconds per edit, end to end: `python -m benchmarks.edit`.

The same edit dense, with preset `published`, with preset `fast` cold (recording as it goes, at
every step and at every K-th) and warm (from a session that recorded the picture before: the second
and the tenth edit). Every run has the same noise, so PSNR and SSIM inside the edit, against dense,
say what the saving costs. The runs take turns in one process; look at the ratios.

`--model tiny` runs the shipped model. `--random_weights` with `--model sdxl` runs the real sizes
without a checkpoint, where the pictures mean nothing and the times do; all runs share one set of
weights (14 GB in fp32), and a session's recordings come on top, those of the whole autoencoder
among them: `--edits 0` leaves warm edits out.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, ROOT, commit, machine, write_results
from sgm import runtime
from sgm.cli.program import start
from sgm.inference.networks import Networks, table_of_preset
from sgm.inference.noise import NamedNoise, Noise, fixed_noise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.presets import RECIPES
from sgm.inference.session import EditSession
from sgm.io.checkpoint import build_model
from sgm.io.files import check_writable
from sgm.io.imageio import load_picture, pad_to_multiple, resize_picture, to_tensor
from sgm.io.maskio import load_mask
from sgm.io.sources import kind_of, read_contents
from sgm.specs import MODELS, ModelSpec, RecordingSettings, SamplingParams
from sgm.words import Backend, Precision, Preset, RunType, Task
from tools.compare import Edit, inpainting_edit, likeness, markdown_table, run_edit, sdedit_edit

PROMPTS = {
    Task.INPAINTING: "a photograph of a horse on a grassland",
    Task.SDEDIT: "A fantasy landscape, trending on artstation",
}
EXAMPLES = ("inpainting", "sdedit 0", "sdedit 1")
RUNS = ("dense", "published", "fast")
HEAD = ("edit", "run", "total s", "encode", "sample", "decode", "faster", "PSNR", "SSIM")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.edit", description="Seconds per edit, end to end."
    )
    parser.add_argument(
        "--model", choices=[*MODELS], default="tiny", help="which networks (default tiny)"
    )
    parser.add_argument(
        "--random_weights",
        action="store_true",
        help="random weights in place of a checkpoint: only the times mean something",
    )
    parser.add_argument("--turbo", action="store_true", help="the few-step model")
    parser.add_argument(
        "--steps", type=int, default=None, help="sampler steps (default 50, turbo 4)"
    )
    parser.add_argument(
        "--refresh",
        type=int,
        nargs="*",
        default=[],
        help="record at every K-th step too: values of K beside the preset's",
    )
    parser.add_argument("--edits", type=int, default=10, help="warm edits (default 10); 0 for none")
    parser.add_argument(
        "--H", type=int, default=None, help="height in pixels (default: the model's)"
    )
    parser.add_argument(
        "--W", type=int, default=None, help="width in pixels (default: the model's)"
    )
    parser.add_argument("--examples", nargs="+", choices=EXAMPLES, default=EXAMPLES)
    parser.add_argument(
        "--assets", type=Path, default=ROOT / "assets", help="folder of the pictures and the mask"
    )
    parser.add_argument(
        "--weight_path", type=Path, default=ROOT / "pretrained", help="folder of the weights"
    )
    parser.add_argument("--device", default=None, help="cpu, cuda or mps (default: the best)")
    parser.add_argument("--precision", choices=[*map(str, Precision)], default="fp32")
    parser.add_argument(
        "--output", type=Path, default=None, help="JSON file; Markdown goes beside it"
    )
    return parser


@dataclass(frozen=True)
class Timing:
    """One way to make an edit.

    Attributes:
        seconds: by stage, and `total`.
        psnr, ssim: inside the edit, against the dense picture; None for that itself.
    """

    seconds: dict[str, float]
    psnr: float | None
    ssim: float | None


def make_edits(assets: Path, size: tuple[int, int]) -> dict[str, Edit]:
    """The published examples at a size: the inpainting mask, and the two drawings."""

    def picture(name: str) -> torch.Tensor:
        return pad_to_multiple(to_tensor(resize_picture(load_picture(assets / name), size)))

    mask = pad_to_multiple(load_mask(assets / "inpainting/masks/0.npy", size))
    edits = {
        "inpainting": inpainting_edit(
            picture("inpainting/original/0.png"), mask, PROMPTS[Task.INPAINTING], 53
        )
    }
    for number, seed in ((0, 11), (1, 95)):
        before, after = (picture(f"img2img/{kind}/{number}.png") for kind in ("original", "edited"))
        edits[f"sdedit {number}"] = sdedit_edit(before, after, PROMPTS[Task.SDEDIT], seed)
    return edits


def load(spec: ModelSpec, args: argparse.Namespace, device: torch.device) -> dict[str, Pipeline]:
    """The networks of all runs by their names; they share one set of weights, from the checkpoint
    or random."""
    sparse = RunType.SIGE_TURBO if args.turbo else RunType.SIGE
    precision, turbo = Precision(args.precision), spec.turbo if args.turbo else None
    kind = None
    if not args.random_weights:
        own = spec.own(args.weight_path, spec.weight_role(sparse))
        kind = kind_of(read_contents(own))
    pipelines: dict[str, Pipeline] = {}
    for run in RUNS:
        run_type = sparse.dense if run == "dense" else sparse
        preset = Preset.FAST if run == "fast" else Preset.PUBLISHED
        if not (pipelines or args.random_weights):
            configs, backend = ROOT / "configs", Backend.AUTO
            pipelines[run] = Pipeline.load(
                spec, run_type, configs, args.weight_path, device, precision, backend, preset
            )
            continue
        engine = build_model(ROOT / "configs" / spec.config_file(run_type, preset=preset), kind)
        if pipelines:
            weights = pipelines["dense"].networks.engine.state_dict()
        else:
            weights = random_weights(engine.state_dict(), device, runtime.dtype_of(precision))
        engine.load_state_dict(weights, assign=True)
        networks = Networks(engine.eval(), table_of_preset(preset) if run_type.sparse else None)
        networks.set_backend(Backend.AUTO.value, graphs=None)
        pipelines[run] = Pipeline(networks, precision, run_type.sparse, turbo, RECIPES[preset])
    return pipelines


def random_weights(
    shapes: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Weights that keep activations near one."""
    generator = torch.Generator(device).manual_seed(0)

    def weight(name: str, shape: torch.Size) -> torch.Tensor:
        if len(shape) < 2:
            value = float(name.endswith("weight"))
            return torch.full(shape, value, dtype=dtype, device=device)
        made = torch.empty(shape, dtype=dtype, device=device).normal_(generator=generator)
        return made.div_(shape[1:].numel() ** 0.5)

    return {name: weight(name, t.shape) for name, t in shapes.items()}


def timed(make: Callable[[], EditResult], device: torch.device) -> tuple[EditResult, float]:
    """An edit and its seconds."""
    began = time.perf_counter()
    result = make()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, time.perf_counter() - began


def measure_edit(
    name: str,
    edit: Edit,
    pipelines: dict[str, Pipeline],
    args: argparse.Namespace,
    bar: tqdm,
) -> dict[str, object]:
    """Make an edit in every way; the figures of each, and of the recording."""
    noise = fixed_noise(NamedNoise(edit.seed))
    device = pipelines["dense"].networks.device
    rows: dict[str, Timing] = {}
    dense: torch.Tensor | None = None

    def add(run: str, make: Callable[[], EditResult]) -> None:
        nonlocal dense
        bar.set_postfix_str(f"{name}, {run}")
        result, total = timed(make, device)
        dense = result.image if dense is None else dense
        alike = likeness(dense, result.image, edit.mask)
        same = run == "dense"
        seconds = {**result.seconds, "total": total}
        rows[run] = Timing(
            seconds, None if same else alike.psnr_inside, None if same else alike.ssim_inside
        )
        bar.update()

    for run in ("dense", "published"):
        add(run, lambda p=pipelines[run]: run_edit(p, edit, args.steps, noise=noise))
    fast = pipelines["fast"]
    add("fast, cold", lambda: run_edit(fast, edit, args.steps, noise=noise))
    for refresh in args.refresh:
        one = fast.with_recipe(fast.recipe.with_recordings(RecordingSettings(every=refresh)))
        add(f"fast, cold, K={refresh}", lambda p=one: run_edit(p, edit, args.steps, noise=noise))
    found: dict[str, object] = {"edit_ratio": edit.mask.float().mean().item()}
    if args.edits:
        found |= measure_warm(edit, fast, args, noise, add)
    return {"runs": {run: asdict(timing) for run, timing in rows.items()}, **found}


def measure_warm(
    edit: Edit,
    fast: Pipeline,
    args: argparse.Namespace,
    noise: Noise,
    add: Callable[[str, Callable[[], EditResult]], None],
) -> dict[str, object]:
    """Record the picture of an edit and add the warm runs; what recording took."""
    params = SamplingParams("", seed=edit.seed, steps=args.steps)
    began = time.perf_counter()
    task = Task.INPAINTING if edit.edited is None else Task.SDEDIT
    session = EditSession(fast, edit.image, params, task, noise=noise)
    recording = time.perf_counter() - began
    for number in range(1, args.edits + 1):
        if number in (2, args.edits):
            add(f"fast, warm, edit {number}", lambda: warm(session, edit))
        else:
            warm(session, edit)
    if not args.random_weights:  # what the prompt of a recording is worth
        own = replace(params, prompt=edit.prompt)
        same = EditSession(fast, edit.image, own, task, noise=noise)
        add("fast, warm, recorded under its prompt", lambda: warm(same, edit))
    return {"record_seconds": recording, "record": asdict(session.report)}


def warm(session: EditSession, edit: Edit) -> EditResult:
    """An edit from a session."""
    if edit.edited is None:
        return session.inpaint(edit.prompt, edit.mask)
    return session.sdedit(edit.prompt, edit.edited)


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Run everything; the figures of `--output`."""
    device = runtime.pick_device(args.device)
    runtime.check_precision(Precision(args.precision), device)
    spec = MODELS[args.model]
    height, width = (512, 1024) if args.model == "sdxl" else spec.trained_size
    size = (args.H or height, args.W or width)
    pipelines = load(spec, args, device)
    edits = make_edits(args.assets, size)
    edits = {name: edit for name, edit in edits.items() if name in args.examples}
    warm_runs = (2 + (not args.random_weights)) if args.edits else 0
    runs = len(edits) * (3 + len(args.refresh) + warm_runs)
    with tqdm(total=runs, desc="editing", unit="run") as bar:
        results = {
            name: measure_edit(name, edit, pipelines, args, bar) for name, edit in edits.items()
        }
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "benchmark": "edit",
        "model": spec.name,
        "random_weights": args.random_weights,
        "turbo": args.turbo,
        "steps": args.steps,
        "size": list(size),
        "precision": args.precision,
        "device": runtime.describe_device(device),
        "machine": machine(),
        "versions": runtime.versions(),
        "commit": commit(),
        "peak_device_bytes": peak,
        "peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "edits": results,
    }


def table(figures: dict[str, object]) -> str:
    """The figures as Markdown; `faster` is the seconds of the dense run over those of a run."""
    rows = []
    for name, found in figures["edits"].items():
        dense = found["runs"]["dense"]["seconds"]["total"]
        for run, timing in found["runs"].items():
            seconds = timing["seconds"]
            stages = [f"{seconds[s]:.2f}" for s in ("total", "encode", "sample", "decode")]
            quality = ["-", "-"]
            if timing["psnr"] is not None:
                quality = [f"{timing['psnr']:.1f}", f"{timing['ssim']:.3f}"]
            rows.append((name, run, *stages, f"{dense / seconds['total']:.2f}x", *quality))
        record = found.get("record")
        if record is None:
            continue
        size = f"{record['step_bytes'] / 1e6:.0f} MB a step, {record['steps']} steps"
        rows.append((name, f"recording ({size})", f"{found['record_seconds']:.2f}", *["-"] * 6))
    return markdown_table(HEAD, rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write JSON and Markdown, print the table; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.edits < 0 or args.edits == 1 or any(refresh < 1 for refresh in args.refresh):
        parser.error("--edits must be 0 or at least 2, and every --refresh at least 1.")
    args.steps = (4 if args.turbo else 50) if args.steps is None else args.steps
    kind = "turbo" if args.turbo else "base"
    output = args.output or RESULTS / f"edit_{args.model}_{kind}.json"
    check_writable(output)
    write_results(output, measure(args), table)
    return 0


if __name__ == "__main__":
    start("benchmarks.edit", main)
