"""Edits the shipped pictures with the tiny model, dense and sparse: `python -m tools.demo`.

Both tasks, original and SIGE, at the same noise. Writes one figure and prints one table.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sgm import runtime
from sgm.cli.program import start
from sgm.inference.noise import Noise, sequential_noise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.io.files import check_output_path
from sgm.io.imageio import load_picture, save_picture, to_tensor
from sgm.io.maskio import load_mask
from sgm.specs import MODELS, Precision, RunType, Task
from tools.compare import (
    ROOT,
    RUN_TYPES,
    Edit,
    Likeness,
    PassCost,
    inpainting_edit,
    likeness,
    load_pipelines,
    markdown_table,
    run_edit,
    sdedit_edit,
    unet_costs,
)
from tools.figure import Panel, Row, draw_figure, overlay

SPEC = MODELS["tiny"]
ASSETS = ROOT / "assets"
MASK_SIZE = (512, 1024)  # of the shipped mask, (height, width)
# Prompts and seeds of the commands in the README.
INPAINTING = ("a photograph of a horse on a grassland", 53)
SDEDIT = (
    ("A fantasy landscape, trending on artstation", 11),
    ("A fantasy beach landscape, trending on artstation", 95),
)
NAMES = {Task.INPAINTING: "Inpainting", Task.SDEDIT: "SDEdit"}
LABELS = {RunType.ORIGINAL: "original", RunType.SIGE: "SIGE"}
HEAD = (
    "task, run type",
    "encode s",
    "sample s",
    "decode s",
    "total s",
    "UNet GMAC",
    "UNet ms",
    "edited",
    "PSNR in",
    "SSIM in",
    "PSNR out",
    "SSIM out",
)


@dataclass(frozen=True)
class Outcome:
    """Everything that is shown of one edit; dictionaries by run type."""

    edit: Edit
    results: dict[RunType, EditResult]
    costs: dict[RunType, PassCost]
    likeness: Likeness

    def total(self, kind: RunType) -> float:
        """Seconds of a run without loading."""
        return sum(self.results[kind].seconds.values())


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo",
        description="Edit the shipped pictures with the tiny model, dense and sparse.",
    )
    parser.add_argument("--steps", type=int, default=50, help="sampler steps (default 50)")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo.png"), help="the figure")
    parser.add_argument("--device", default=None, help="cpu, cuda or mps (default: the best)")
    parser.add_argument("--precision", choices=[*map(str, Precision)], default="fp32")
    parser.add_argument("--weight_path", type=Path, default=ROOT / "pretrained", help="a folder")
    return parser


def shipped_edits() -> list[Edit]:
    """The README's three examples (inpainting, SDEdit 0, SDEdit 1), at the size the tiny model was
    trained for.

    Raises:
        UserError: an asset is missing.
    """
    height, width = SPEC.trained_size

    def tensor(name: str) -> Tensor:
        image = load_picture(ASSETS / name)
        # Not `resize_picture`: here the resizing is no surprise to tell the user of.
        return to_tensor(image.resize((width, height), Image.Resampling.LANCZOS))

    mask = load_mask(ASSETS / "inpainting/masks/0.npy", MASK_SIZE)
    share = F.interpolate(mask[None, None].float(), size=(height, width), mode="area")[0, 0]
    edits = [inpainting_edit(tensor("inpainting/original/0.png"), share > 0.5, *INPAINTING)]
    for number, words in enumerate(SDEDIT):
        pictures = [tensor(f"img2img/{kind}/{number}.png") for kind in ("original", "edited")]
        edits.append(sdedit_edit(*pictures, *words))
    return edits


def _noise(edit: Edit) -> Noise | None:
    """Dense and sparse inpainting draw the same numbers in the published order, so there the
    pictures are those of the README's commands; SDEdit needs named noise to compare the two."""
    return sequential_noise if edit.task is Task.INPAINTING else None


def run_all(pipelines: dict[RunType, Pipeline], edits: Sequence[Edit], steps: int) -> list[Outcome]:
    """Make every edit with every pipeline, and measure."""
    outcomes = []
    for edit in edits:
        for pipeline in pipelines.values():
            run_edit(pipeline, edit, steps=2)  # the first run of a shape pays for choosing kernels
        results = {}
        for kind, pipeline in pipelines.items():
            print(f"{NAMES[edit.task]}, {LABELS[kind]} ...", file=sys.stderr)
            results[kind] = run_edit(pipeline, edit, steps, True, _noise(edit))
        costs = unet_costs(pipelines, edit)
        alike = likeness(*(results[kind].image for kind in RUN_TYPES), edit.mask)
        outcomes.append(Outcome(edit, results, costs, alike))
    return outcomes


def rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """The lines of the table for one edit."""
    found = []
    for kind in RUN_TYPES:
        seconds, cost = outcome.results[kind].seconds, outcome.costs[kind]
        alike = outcome.likeness
        figures = (
            _decibels(alike.psnr_inside),
            f"{alike.ssim_inside:.3f}",
            _decibels(alike.psnr_outside),
            f"{alike.ssim_outside:.3f}",
        )
        found.append(
            (
                f"{NAMES[outcome.edit.task]}, {LABELS[kind]}",
                *(f"{seconds[stage]:.2f}" for stage in ("encode", "sample", "decode")),
                f"{outcome.total(kind):.2f}",
                f"{cost.macs.total / 1e9:.2f}",
                f"{cost.seconds * 1e3:.1f}",
                f"{outcome.edit.mask.float().mean().item():.1%}",
                *(figures if kind.sparse else ("-",) * len(figures)),
            )
        )
    return found


def _decibels(value: float) -> str:
    return "equal" if math.isinf(value) else f"{value:.1f}"


def notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What the table does not say by itself, one sentence or two a line."""
    passes = []
    for outcome in outcomes:
        dense, sparse = (outcome.costs[kind] for kind in RUN_TYPES)
        passes.append(
            f"{NAMES[outcome.edit.task]}: {dense.seconds * 1e3:.1f} ms dense, "
            f"{sparse.seconds * 1e3:.1f} ms sparse ({dense.seconds / sparse.seconds:.2f}x), with "
            f"{dense.macs.total / sparse.macs.total:.2f}x fewer MACs"
        )
    return [
        "A SIGE run records with a full pass and then makes a sparse pass at every step, so from "
        "end to end it takes longer than the original: what is saved is in the sparse pass.",
        f"One pass of the UNet (median): {'; '.join(passes)}.",
        "GMAC: published convention, fused attention not counted. PSNR (dB) and SSIM: SIGE against "
        "original at equal noise, in the edit and more than 45 pixels away from it.",
    ]


def figure_row(outcome: Outcome) -> Row:
    """The pictures of one edit with their labels."""
    edit, alike = outcome.edit, outcome.likeness
    image = (edit.image + 1) / 2
    inpainting = edit.edited is None
    changed = overlay(image, edit.mask) if inpainting else (edit.edited + 1) / 2
    share = f"{edit.mask.float().mean().item():.1%} of the picture"
    dense, sparse = (outcome.costs[kind] for kind in RUN_TYPES)
    panels = [
        Panel(image, "Input", f"{image.shape[2]} x {image.shape[1]} pixels"),
        Panel(changed, "Mask" if inpainting else "Edit", share),
    ]
    measured = (
        (RunType.ORIGINAL, dense, ""),
        (RunType.SIGE, sparse, f", PSNR in the edit {_decibels(alike.psnr_inside)} dB"),
    )
    for kind, cost, more in measured:
        caption = (
            f"UNet pass {cost.seconds * 1e3:.0f} ms, {cost.macs.total / 1e9:.2f} GMAC\n"
            f"Whole run {outcome.total(kind):.1f} s{more}"
        )
        title = "Original (dense)" if kind is RunType.ORIGINAL else "SIGE (sparse)"
        panels.append(Panel(outcome.results[kind].image, title, caption))
    return Row(NAMES[edit.task], f'"{edit.prompt}", seed {edit.seed}', panels)


def demonstrate(args: argparse.Namespace) -> None:
    """Load, run, write the figure, print the table.

    Raises:
        UserError: the weights, an asset or the output cannot be used.
    """
    check_output_path(args.output)
    device = runtime.pick_device(args.device)
    precision = Precision(args.precision)
    runtime.check_precision(precision, device)
    pipelines = load_pipelines(SPEC, ROOT / "configs", args.weight_path, device, precision)
    outcomes = run_all(pipelines, shipped_edits()[:2], args.steps)  # one of each task
    name = runtime.describe_device(device)
    heading = f"Tiny model, {args.steps} steps, {precision} on {name}"
    remarks = notes(outcomes)
    save_picture(
        draw_figure("SDXL-SIGE: " + heading, [figure_row(o) for o in outcomes], remarks),
        args.output,
    )
    print(f"{heading}\n")
    print(markdown_table(HEAD, [row for outcome in outcomes for row in rows(outcome)]))
    print("\n" + "\n".join(remarks))
    print(f"\nFigure: {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 2 <= args.steps <= 1000:
        parser.error("--steps must be from 2 to 1000.")
    demonstrate(args)
    return 0


if __name__ == "__main__":
    start("tools.demo", main, logging.WARNING)
