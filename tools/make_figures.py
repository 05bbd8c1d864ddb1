"""Draws the README's pictures, `assets/results/*.png`: `python -m tools.make_figures`.

The examples of the README's commands by the tiny model at the same noise: dense, sparse as
published, and sparse with `--preset fast`, which leaves no seam.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from sgm.cli.program import start
from sgm.inference.noise import NamedNoise, fixed_noise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.presets import RECIPES
from sgm.inference.refined import refined_edit
from sgm.io.imageio import save_picture
from sgm.specs import Backend, Precision, Preset, RunType, SamplingParams
from tools.compare import ROOT, Edit, likeness
from tools.demo import NAMES as TASKS
from tools.demo import SPEC, shipped_edits
from tools.figure import Panel, Row, draw_figure, overlay

DENSE_AND_SPARSE = (RunType.ORIGINAL, RunType.SIGE)
TURBO = (RunType.TURBO, RunType.SIGE_TURBO)


@dataclass(frozen=True)
class Drawn:
    """What a figure shows: some of the shipped edits, by which run types, with a refiner or not."""

    title: str
    edits: tuple[int, ...]
    run_types: tuple[RunType, RunType] = DENSE_AND_SPARSE
    refined: bool = False


FIGURES = {
    "inpainting": Drawn("Base", (0,)),
    "sdedit0": Drawn("Base", (1,)),
    "sdedit1": Drawn("Base", (2,)),
    "refiner": Drawn("Base and refiner", (0, 1), refined=True),
    "turbo": Drawn("Few steps", (0, 1), TURBO),
}
# Of the refiner's inpainting. With the README's 53 the tiny refiner leaves the grass empty.
REFINER_SEED = 42
DEVICE = torch.device("cpu")
REMARK = (
    "PSNR: against the dense picture, in the edit. As published, nothing is blended: a sparse edit "
    "can end in a visible step at its border. --preset fast puts the edit into the input picture "
    "with a soft transition."
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.make_figures", description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="sampler steps (default 50)")
    parser.add_argument("--output", type=Path, default=ROOT / "assets/results", help="a folder")
    parser.add_argument("--weight_path", type=Path, default=ROOT / "pretrained", help="a folder")
    every = tuple(FIGURES)
    parser.add_argument("--only", nargs="+", choices=every, default=every, help="some of them")
    return parser


def result(
    edit: Edit, kind: RunType, preset: Preset, refined: bool, args: argparse.Namespace
) -> EditResult:
    """One edit. All steps have one noise, as those of preset `fast`, so that pictures compare."""

    def load(refiner: bool) -> Pipeline:
        files = (ROOT / "configs", args.weight_path, DEVICE, Precision.FP32, Backend.AUTO)
        return Pipeline.load(SPEC, kind, *files, preset, refiner, progress=False)

    wanted = edit.request(RECIPES[preset].blend)
    steps = None if kind.turbo else args.steps
    params = SamplingParams(edit.prompt, seed=edit.seed, steps=steps)
    noise = fixed_noise(NamedNoise(edit.seed))
    if refined:
        return refined_edit(load, wanted, params, noise)
    return load(False).edit(wanted, params, noise)


def row(drawn: Drawn, edit: Edit, args: argparse.Namespace) -> Row:
    """Input, edit, dense, sparse, and sparse with the preset that leaves no seam."""
    dense, sparse = drawn.run_types
    image, inpainting = (edit.image + 1) / 2, edit.edited is None
    shown = overlay(image, edit.mask) if inpainting else (edit.edited + 1) / 2
    reference = result(edit, dense, Preset.PUBLISHED, drawn.refined, args)
    panels = [
        Panel(image, "Input", f"{image.shape[2]} x {image.shape[1]} pixels"),
        Panel(shown, "Mask" if inpainting else "Edit", f"{edit.mask.float().mean():.1%} of it"),
        Panel(reference.image, "Original (dense)", seconds(reference)),
    ]
    for preset in Preset:
        found = result(edit, sparse, preset, drawn.refined, args)
        alike = likeness(reference.image, found.image, edit.mask)
        caption = f"{seconds(found)}, PSNR {alike.psnr_inside:.1f} dB"
        panels.append(Panel(found.image, f"SIGE, --preset {preset}", caption))
    return Row(TASKS[edit.task], f'{drawn.title}, "{edit.prompt}", seed {edit.seed}', panels)


def seconds(made: EditResult) -> str:
    """How long an edit took, end to end."""
    return f"{sum(made.seconds.values()):.1f} s"


def draw(name: str, args: argparse.Namespace) -> None:
    """One figure."""
    drawn, edits = FIGURES[name], shipped_edits()
    chosen = [edits[number] for number in drawn.edits]
    if drawn.refined:
        chosen[0] = replace(chosen[0], seed=REFINER_SEED)
    rows = [row(drawn, edit, args) for edit in chosen]
    steps = "4 steps" if drawn.run_types is TURBO else f"{args.steps} steps"
    each = " each" if drawn.refined else ""
    figure = draw_figure(f"Tiny model, {drawn.title.lower()}, {steps}{each}", rows, [REMARK])
    _save(figure, args.output / f"{name}.png")


def _save(figure: Image.Image, path: Path) -> None:
    save_picture(figure, path)
    print(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the edits and write one figure each; the exit code."""
    args = build_parser().parse_args(argv)
    for name in args.only:
        draw(name, args)
    return 0


if __name__ == "__main__":
    start("tools.make_figures", main, logging.WARNING)
