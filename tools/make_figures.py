"""Draws the pictures of the documentation, `assets/results/*.png`: `python -m tools.make_figures`.

The shipped examples by the tiny model, all at the same noise: input, mask or drawing, dense, sparse
as published, with preset `fast`, and from a recording. One figure shows many edits of one recording
at three seeds, and edits that are accepted one after the other. Seeds are 1, 2 and 3, so that none
was chosen for its picture.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sgm.cli.program import start
from sgm.inference.noise import NamedNoise, fixed_noise
from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import RECIPES
from sgm.inference.refined import refined_edit
from sgm.io.imageio import save_picture
from sgm.specs import SamplingParams
from sgm.words import Backend, Precision, Preset, RunType
from tools.compare import ROOT, Edit, likeness
from tools.demo import NAMES, SPEC, base_prompt, edit_panels, shipped_edits, way_panel
from tools.figure import Panel, Row, draw_figure, overlay
from tools.ways import Made, Way, edit_in, load_ways, make, record

DEVICE, PRECISION = torch.device("cpu"), Precision.FP32
SEEDS = (1, 2, 3)
THINGS = ("a horse", "a house", "trees")
# Where each is painted: (top, bottom, left, right) in pixels of 256x512. As in the scenes that the
# tiny model knows, a horse stands in front, and houses and trees before the hills.
PLACES = ((100, 240, 275, 425), (92, 190, 160, 270), (36, 190, 424, 508))
REMARK = (
    "PSNR: against the dense picture, in the edit. As published, nothing is blended, and a sparse "
    "edit can end in a visible step at its border; preset fast puts the edit into the input "
    "picture with a soft transition."
)
WARM_REMARK = " From a recording: the second edit of a recorded picture."
RECORDING_REMARK = (
    "Every row is one recording of the picture on the left. Every edit made three full passes for "
    "its prompt, and else sparse ones alone. In the last row each edit was accepted before the "
    "next: the recording was brought up to date where the picture had changed."
)


@dataclass(frozen=True)
class Drawn:
    """A figure of edits in several ways.

    Attributes:
        title: which model or models.
        edits: numbers of the shipped edits.
        turbo: with the few-step model.
        refined: with the refiner after the base; nothing can be recorded for that.
    """

    title: str
    edits: tuple[int, ...]
    turbo: bool = False
    refined: bool = False


COMPARISONS = {
    "inpainting": Drawn("base", (0,)),
    "sdedit0": Drawn("base", (1,)),
    "sdedit1": Drawn("base", (2,)),
    "refiner": Drawn("base and refiner", (0, 1), refined=True),
    "turbo": Drawn("few-step model", (0, 1), turbo=True),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.make_figures", description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="sampler steps (default 50)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "assets/results", help="folder of the figures"
    )
    parser.add_argument(
        "--weight_path", type=Path, default=ROOT / "pretrained", help="folder of the weights"
    )
    every = tuple(FIGURES)
    parser.add_argument(
        "--only", nargs="+", choices=every, default=every, help="which figures (default: all)"
    )
    return parser


def refined(way: Way, edit: Edit, args: argparse.Namespace) -> Made:
    """An edit by the base model and then the refiner."""
    preset = Preset.FAST if way is Way.FAST else Preset.PUBLISHED
    run_type = RunType.ORIGINAL if way is Way.DENSE else RunType.SIGE

    def load(refiner: bool) -> Pipeline:
        files = (ROOT / "configs", args.weight_path, DEVICE, PRECISION, Backend.AUTO)
        return Pipeline.load(SPEC, run_type, *files, preset, refiner, progress=False)

    params = SamplingParams(edit.prompt, seed=edit.seed, steps=args.steps, scale=edit.scale)
    wanted = edit.request(RECIPES[preset].blend)
    result = refined_edit(load, wanted, params, fixed_noise(NamedNoise(edit.seed)))
    return Made(result.image, sum(result.seconds.values()))


def comparison(drawn: Drawn, args: argparse.Namespace) -> tuple[str, list[Row], str]:
    """Title, rows and remark of a figure of edits in several ways."""
    ways = [way for way in Way if not (drawn.refined and way is Way.WARM)]
    steps = None if drawn.turbo else args.steps
    if not drawn.refined:
        pipelines = load_ways(SPEC, args.weight_path, DEVICE, PRECISION, drawn.turbo)
    rows = []
    for edit in (shipped_edits()[number] for number in drawn.edits):
        if drawn.refined:
            made = {way: refined(way, edit, args) for way in ways}
        else:
            made = {way: make(way, pipelines, edit, base_prompt(edit), steps) for way in ways}
        dense, panels = made[Way.DENSE], edit_panels(edit)
        for way, one in made.items():
            psnr = likeness(dense.image, one.image, edit.mask).psnr_inside
            panels.append(way_panel(way, one, dense.seconds / one.seconds, psnr))
        rows.append(Row(NAMES[edit.task], f'"{edit.prompt}", seed {edit.seed}', panels))
    count = "4 steps" if drawn.turbo else f"{args.steps} steps"
    each = " each" if drawn.refined else ""
    remark = REMARK + WARM_REMARK * (Way.WARM in ways)
    return f"Tiny {drawn.title}, {count}{each}", rows, remark


def many_edits(args: argparse.Namespace) -> tuple[str, list[Row], str]:
    """Title, rows and remark of the figure of one recording with many edits."""
    fast = load_ways(SPEC, args.weight_path, DEVICE, PRECISION)[Way.FAST]
    field = shipped_edits()[0]
    masks = [_rectangle(field.mask, *place) for place in PLACES]
    rows = []
    for seed, accepted in (*((seed, False) for seed in SEEDS), (SEEDS[0], True)):
        edit = replace(field, seed=seed)
        session, seconds = record(fast, edit, base_prompt(edit), args.steps)
        panels = [_recorded(edit, masks, seconds)]
        for thing, mask in zip(THINGS, masks, strict=True):
            result = edit_in(session, replace(edit, prompt=_prompt(thing), mask=mask))
            caption = f"{sum(result.seconds.values()):.1f} s"
            if accepted:
                session.accept(result)
                panels.append(Panel(result.image, f"Then {thing}", f"{caption}, accepted"))
            else:
                panels.append(Panel(result.image, thing.capitalize(), caption))
        what = "One after the other" if accepted else "One recording, three edits"
        rows.append(Row(what, f"seed {seed}", panels))
    title = f"Record once, edit many: tiny base, {args.steps} steps, preset fast"
    return title, rows, RECORDING_REMARK


def _prompt(thing: str) -> str:
    return f"a photograph of {thing} on a grassland"


def _recorded(edit: Edit, masks: Sequence[Tensor], seconds: float) -> Panel:
    """The picture of a recording with everything marked that is to be edited."""
    marked = torch.stack(list(masks)).any(dim=0)
    return Panel(overlay((edit.image + 1) / 2, marked), "Input", f"Recorded in {seconds:.1f} s")


def _rectangle(like: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """A mask as large as another one, True in a rectangle."""
    mask = torch.zeros_like(like)
    mask[top:bottom, left:right] = True
    return mask


Draw = Callable[[argparse.Namespace], tuple[str, list[Row], str]]
FIGURES: dict[str, Draw] = {
    **{name: lambda args, d=drawn: comparison(d, args) for name, drawn in COMPARISONS.items()},
    "recording": many_edits,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the edits and write one figure each; the exit code."""
    args = build_parser().parse_args(argv)
    for name in args.only:
        title, rows, remark = FIGURES[name](args)
        path = args.output / f"{name}.png"
        save_picture(draw_figure(title, rows, [remark]), path)
        print(path)
    return 0


if __name__ == "__main__":
    start("tools.make_figures", main, logging.WARNING)
