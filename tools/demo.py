"""Edits the shipped pictures with the tiny model in four ways: `python -m tools.demo`.

Dense, sparse as published, with preset `fast`, and a second edit from a recording; inpainting and
SDEdit. All have the same noise. Writes one figure and prints one table, the fastest first.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sgm import runtime
from sgm.cli.program import start
from sgm.inference.pipeline import Pipeline
from sgm.io.files import check_output_path
from sgm.io.imageio import load_picture, save_picture, to_tensor
from sgm.io.maskio import load_mask
from sgm.specs import MODELS, TINY_SCALE
from sgm.words import Precision, Task
from tools.compare import (
    ROOT,
    Edit,
    inpainting_edit,
    likeness,
    markdown_table,
    run_edit,
    sdedit_edit,
)
from tools.figure import Panel, Row, draw_figure, overlay
from tools.ways import Made, Way, load_ways, make, unet_macs

SPEC = MODELS["tiny"]
ASSETS = ROOT / "assets"
MASK_SIZE = (512, 1024)  # of the shipped mask, (height, width)
SEED = 1  # of every edit that is shown; chosen before any picture was seen
STRENGTH = 0.6  # of SDEdit
GRASSLAND = "a photograph of a grassland"  # what the picture of the inpainting shows
INPAINTING_PROMPT = "a photograph of a horse on a grassland"
SDEDIT_PROMPTS = (
    "A fantasy landscape, trending on artstation",
    "A fantasy beach landscape, trending on artstation",
)
NAMES = {Task.INPAINTING: "Inpainting", Task.SDEDIT: "SDEdit"}
HEAD = ("task, way", "seconds", "faster", "UNet GMAC", "fewer", "PSNR in the edit")


@dataclass(frozen=True)
class Outcome:
    """An edit in all ways; dictionaries by way, the fastest first.

    Attributes:
        edit: what was asked for.
        made: the pictures and their times.
        macs: multiply-accumulates of the UNet.
        psnr: in the edit, against the dense picture; dB.
    """

    edit: Edit
    made: dict[Way, Made]
    macs: dict[Way, int]
    psnr: dict[Way, float]

    def faster(self, way: Way) -> float:
        """Seconds of the dense edit by those of a way."""
        return self.made[Way.DENSE].seconds / self.made[way].seconds


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo",
        description="Edit the shipped pictures with the tiny model, dense and sparse.",
    )
    parser.add_argument("--steps", type=int, default=50, help="sampler steps (default 50)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("outputs/demo.png"),
        help="the figure (default outputs/demo.png)",
    )
    parser.add_argument("--device", default=None, help="cpu, cuda or mps (default: the best)")
    parser.add_argument(
        "--precision",
        choices=[*map(str, Precision)],
        default="fp32",
        help="numbers to compute with (default fp32)",
    )
    parser.add_argument(
        "--weight_path", type=Path, default=ROOT / "pretrained", help="folder of the weights"
    )
    return parser


def shipped_edits() -> list[Edit]:
    """The three examples that are shipped (inpainting, SDEdit 0, SDEdit 1), at the size the tiny
    model was trained for.

    Raises:
        UserError: an asset is missing.
    """
    height, width = SPEC.trained_size

    def tensor(name: str) -> Tensor:
        image = load_picture(ASSETS / name)
        # Not `resize_picture`, which tells the user that it resizes.
        return to_tensor(image.resize((width, height), Image.Resampling.LANCZOS))

    mask = load_mask(ASSETS / "inpainting/masks/0.npy", MASK_SIZE)
    share = F.interpolate(mask[None, None].float(), size=(height, width), mode="area")[0, 0]
    picture = tensor("inpainting/original/0.png")
    edits = [inpainting_edit(picture, share > 0.5, INPAINTING_PROMPT, SEED)]
    for number, prompt in enumerate(SDEDIT_PROMPTS):
        pictures = [tensor(f"img2img/{kind}/{number}.png") for kind in ("original", "edited")]
        edits.append(sdedit_edit(*pictures, prompt, SEED, STRENGTH))
    return [replace(edit, scale=TINY_SCALE) for edit in edits]


def base_prompt(edit: Edit) -> str:
    """What the unedited picture of a shipped edit shows: the prompt that it is recorded under."""
    return GRASSLAND if edit.task is Task.INPAINTING else edit.prompt


def outcome(pipelines: Mapping[Way, Pipeline], edit: Edit, steps: int) -> Outcome:
    """Make an edit in every way, and measure."""
    for pipeline in pipelines.values():
        run_edit(pipeline, edit, steps=3)  # the first run of a shape pays for choosing kernels
    made = {}
    for way in Way:
        print(f"{NAMES[edit.task]}, {way} ...", file=sys.stderr)
        made[way] = make(way, pipelines, edit, base_prompt(edit), steps)
    counted = {
        way: unet_macs(pipeline, edit.request(pipeline.recipe.blend), steps)
        for way, pipeline in pipelines.items()
    }
    macs = {way: count.record + count.edit for way, count in counted.items()}
    macs[Way.WARM] = counted[Way.FAST].edit
    dense = made[Way.DENSE].image
    psnr = {way: likeness(dense, made[way].image, edit.mask).psnr_inside for way in Way}
    order = sorted(made, key=lambda way: made[way].seconds)
    return Outcome(edit, {way: made[way] for way in order}, macs, psnr)


def rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """The lines of the table for one edit."""
    dense = outcome.macs[Way.DENSE]
    return [
        (
            f"{NAMES[outcome.edit.task]}, {way}",
            f"{made.seconds:.2f}",
            f"{outcome.faster(way):.2f}x",
            f"{outcome.macs[way] / 1e9:.1f}",
            f"{dense / outcome.macs[way]:.2f}x",
            "-" if way is Way.DENSE else decibels(outcome.psnr[way]),
        )
        for way, made in outcome.made.items()
    ]


def decibels(value: float) -> str:
    """A PSNR in words; infinite where two pictures are equal."""
    return "equal" if math.isinf(value) else f"{value:.1f} dB"


def notes(outcomes: Sequence[Outcome]) -> list[str]:
    """What the table does not say by itself, one paragraph each."""
    recordings = ", ".join(
        f"{NAMES[one.edit.task]} {one.made[Way.WARM].record_seconds:.2f} s" for one in outcomes
    )
    return [
        f"From a recording: the second edit of a picture that was recorded before ({recordings}).",
        "As published, every step makes a full pass, which records, and then a sparse one: the "
        "pass is faster than a dense one and the edit is not. Preset fast makes few full passes in "
        "all, and an edit from a recording none.",
        "GMAC: all UNet passes of the edit, published convention, fused attention not counted. "
        "PSNR: against the dense picture at the same noise, in the edit.",
    ]


def edit_panels(edit: Edit) -> list[Panel]:
    """The picture, and what is asked for: its mask, or the drawing on it."""
    image, share = (edit.image + 1) / 2, f"{edit.mask.float().mean().item():.1%} of the picture"
    inpainting = edit.edited is None
    changed = overlay(image, edit.mask) if inpainting else (edit.edited + 1) / 2
    return [
        Panel(image, "Input", f"{image.shape[2]} x {image.shape[1]} pixels"),
        Panel(changed, "Mask" if inpainting else "Drawing", share),
    ]


def way_panel(way: Way, made: Made, faster: float, psnr: float) -> Panel:
    """The picture of one way, with its time and how close it is to the dense one."""
    if way is Way.DENSE:
        return Panel(made.image, "Dense", f"{made.seconds:.1f} s")
    caption = f"{made.seconds:.1f} s, {faster:.1f}x dense\nPSNR {decibels(psnr)}"
    return Panel(made.image, way.capitalize(), caption)


def figure_row(outcome: Outcome) -> Row:
    """The pictures of one edit with their labels."""
    edit = outcome.edit
    panels = [
        way_panel(way, made, outcome.faster(way), outcome.psnr[way])
        for way, made in outcome.made.items()
    ]
    explanation = f'"{edit.prompt}", seed {edit.seed}'
    return Row(NAMES[edit.task], explanation, [*edit_panels(edit), *panels])


def headline(outcomes: Sequence[Outcome]) -> str:
    """How much faster than a dense edit the fastest way of each task is."""
    fastest = []
    for one in outcomes:
        way = next(iter(one.made))
        fastest.append(f"{NAMES[one.edit.task]} {way}: {one.faster(way):.1f}x")
    return f"{', '.join(fastest)} as fast as dense"


def demonstrate(args: argparse.Namespace) -> None:
    """Load, run, write the figure, print the table.

    Raises:
        UserError: the weights, an asset or the output cannot be used.
    """
    check_output_path(args.output)
    device = runtime.pick_device(args.device)
    precision = Precision(args.precision)
    runtime.check_precision(precision, device)
    pipelines = load_ways(SPEC, args.weight_path, device, precision)
    one_of_each_task = shipped_edits()[:2]
    outcomes = [outcome(pipelines, edit, args.steps) for edit in one_of_each_task]
    setting = f"Tiny model, {args.steps} steps, {precision}, {runtime.describe_device(device)}"
    title, remarks = headline(outcomes), notes(outcomes)
    figure = draw_figure(title, [figure_row(one) for one in outcomes], [*remarks, setting + "."])
    save_picture(figure, args.output)
    print(f"{title}\n{setting}\n")
    print(markdown_table(HEAD, [row for one in outcomes for row in rows(one)]))
    print("\n" + "\n".join(remarks))
    print(f"\nFigure: {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 4 <= args.steps <= 1000:
        parser.error("--steps must be from 4 to 1000.")
    demonstrate(args)
    return 0


if __name__ == "__main__":
    start("tools.demo", main, logging.WARNING)
