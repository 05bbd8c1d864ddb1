"""How far the sparse networks' pictures are from the dense ones': `python -m benchmarks.quality`.

The tiny model makes held-out edits (`tools/tiny/pairs.py`) twice, dense and sparse, at the same
seed and with the same noise. Compared are PSNR and SSIM *inside* the edit (the mask, or where the
picture was drawn on) and *outside* of it: farther from the edit than the published decoder looks
for changes around it, which is dilated by 5 and then by 40 pixels. The ring between the two is in
neither. The PSNR of the autoencoder alone, a picture encoded and decoded again, says what either
run could at best keep.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from tqdm import tqdm

from benchmarks.common import RESULTS, ROOT, commit, write_figures
from sgm import runtime
from sgm.errors import UserError
from sgm.files import check_writable
from sgm.imageio import to_tensor
from sgm.inference.pipeline import Pipeline
from sgm.metrics import psnr
from sgm.specs import MODELS, Precision, Preset, RunType, Task
from tools.compare import (
    Edit,
    inpainting_edit,
    likeness,
    load_pipelines,
    markdown_table,
    run_edit,
    sdedit_edit,
)
from tools.tiny.pairs import HELD_OUT, held_out_scene, inpainting_pair, sdedit_pair
from tools.tiny.scenes import render

SPEC = MODELS["tiny"]
METRICS = {
    "psnr_inside": "PSNR inside (dB)",
    "ssim_inside": "SSIM inside",
    "psnr_outside": "PSNR outside (dB)",
    "ssim_outside": "SSIM outside",
    "edit_ratio": "edited share",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description="Sparse against dense pictures, tiny model.",
    )
    parser.add_argument("--pairs", type=int, default=20, help="edits of each task (default 20)")
    parser.add_argument("--steps", type=int, default=50, help="sampler steps (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first pair (default 0)")
    parser.add_argument("--task", choices=[*map(str, Task), "all"], default="all")
    parser.add_argument("--output", type=Path, default=RESULTS / "quality.json")
    parser.add_argument("--weight_path", type=Path, default=ROOT / "pretrained", help="a folder")
    parser.add_argument("--device", default=None, help="cpu, cuda or mps (default: the best)")
    parser.add_argument("--precision", choices=[*map(str, Precision)], default="fp32")
    return parser


def make_edit(task: Task, number: int) -> Edit:
    """Held-out pair `number` (from 0) of a task as an edit."""
    seed = HELD_OUT + number
    if task is Task.INPAINTING:
        image, mask, prompt = inpainting_pair(seed)
        return inpainting_edit(to_tensor(image), torch.from_numpy(mask), prompt, seed)
    image, edited, prompt = sdedit_pair(seed)
    return sdedit_edit(to_tensor(image), to_tensor(edited), prompt, seed)


def compare(pipelines: dict[RunType, Pipeline], edit: Edit, steps: int) -> dict[str, object]:
    """The figures of one edit."""
    dense, sparse = (run_edit(pipelines[kind], edit, steps) for kind in pipelines)
    return {
        "seed": edit.seed,
        "prompt": edit.prompt,
        "edit_ratio": edit.mask.float().mean().item(),
        **asdict(likeness(dense.image, sparse.image, edit.mask)),
    }


def reconstruction(pipeline: Pipeline, number: int) -> float:
    """PSNR in dB of a held-out scene after the autoencoder, without the posterior's noise."""
    networks = pipeline.networks
    first_stage = networks.engine.first_stage_model
    x = to_tensor(render(held_out_scene(HELD_OUT + number)))
    with torch.inference_mode():
        dtype = first_stage.quant_conv.weight.dtype
        z = first_stage.posterior(x[None].to(networks.device, dtype)).mode()
        return psnr(networks.decode(z * networks.engine.scale_factor), (x + 1) / 2)


def summary(values: Iterable[float]) -> dict[str, float | int | None]:
    """Mean, median and smallest of the finite values, and how many those are."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return {"mean": None, "median": None, "min": None, "count": 0}
    return {
        "mean": statistics.fmean(finite),
        "median": statistics.median(finite),
        "min": min(finite),
        "count": len(finite),
    }


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Run all edits; the figures of `--output`."""
    device = runtime.pick_device(args.device)
    precision = Precision(args.precision)
    runtime.check_precision(precision, device)
    pipelines = load_pipelines(SPEC, ROOT / "configs", args.weight_path, device, precision)
    tasks = list(Task) if args.task == "all" else [Task(args.task)]
    numbers = range(args.seed, args.seed + args.pairs)
    results: dict[str, object] = {}
    with tqdm(total=len(tasks) * args.pairs, desc="editing", unit="pair") as bar:
        for task in tasks:
            edits = []
            for number in numbers:
                edits.append(compare(pipelines, make_edit(task, number), args.steps))
                bar.update()
            figures = {name: summary(edit[name] for edit in edits) for name in METRICS}
            results[task.value] = {"summary": figures, "edits": edits}
    vae = [reconstruction(pipelines[RunType.ORIGINAL], number) for number in numbers]
    path = args.weight_path / SPEC.weight_file("base")
    with safe_open(path, framework="pt") as file:
        weights = file.metadata() or {}
    return {
        "benchmark": "quality",
        "model": SPEC.name,
        "weights": weights,
        "preset": Preset.PUBLISHED.value,
        "precision": precision.value,
        "steps": args.steps,
        "seed": args.seed,
        "pairs": args.pairs,
        "size": list(SPEC.trained_size),
        "device": runtime.describe_device(device),
        "versions": runtime.versions(),
        "commit": commit(),
        "tasks": results,
        "autoencoder_psnr": summary(vae),
    }


def table(figures: dict[str, object]) -> str:
    """The figures as Markdown: one row for every task and metric."""
    rows = [
        (f"{task}: {METRICS[name]}", values)
        for task, result in figures["tasks"].items()
        for name, values in result["summary"].items()
    ]
    rows.append(("autoencoder alone: PSNR (dB)", figures["autoencoder_psnr"]))

    def cell(name: str, value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:.1f}" if "PSNR" in name else f"{value:.4f}"

    kinds = ("mean", "median", "min")
    return markdown_table(
        ("sparse against dense", *kinds),
        [(name, *(cell(name, values[kind]) for kind in kinds)) for name, values in rows],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the JSON file, print the table; the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.pairs < 1 or args.steps < 1 or args.seed < 0:
        parser.error("--pairs and --steps must be at least 1, and --seed at least 0.")
    try:
        check_writable(args.output)
        figures = measure(args)
        write_figures(args.output, figures)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(figures))
    print(f"\n{args.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
