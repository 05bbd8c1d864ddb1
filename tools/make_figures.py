"""Draws the README's pictures, `assets/results/*.png`: `python -m tools.make_figures`.

The examples of the README's commands by the tiny model, dense and sparse at the same noise; with
the refiner and in few steps also with the remedy for seams, `--preset fast`.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from sgm import runtime
from sgm.errors import UserError
from sgm.imageio import save_picture
from sgm.inference.inpainting import Inpainting
from sgm.inference.noise import NamedNoise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.refined import refined_edit
from sgm.inference.sdedit import SDEdit
from sgm.specs import Backend, Precision, Preset, RunType, SamplingParams
from tools.compare import ROOT, Edit, likeness, load_pipelines
from tools.demo import NAMES as TASKS
from tools.demo import SPEC, figure_row, notes, run_all, shipped_edits
from tools.figure import Panel, Row, draw_figure, overlay

BASE_NAMES = ("inpainting", "sdedit0", "sdedit1")
EXTENSIONS = {
    "refiner": ((RunType.ORIGINAL, RunType.SIGE), True, "Base and refiner"),
    "turbo": ((RunType.TURBO, RunType.SIGE_TURBO), False, "Few steps"),
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
    every = (*BASE_NAMES, *EXTENSIONS)
    parser.add_argument("--only", nargs="+", choices=every, default=every, help="some of them")
    return parser


def draw_base(names: Sequence[str], args: argparse.Namespace) -> None:
    """The figures of the base model, with time and MACs of a pass."""
    if not names:
        return
    pipelines = load_pipelines(SPEC, ROOT / "configs", args.weight_path, DEVICE, Precision.FP32)
    edits = dict(zip(BASE_NAMES, shipped_edits(), strict=True))
    outcomes = run_all(pipelines, [edits[name] for name in names], args.steps)
    for name, outcome in zip(names, outcomes, strict=True):
        heading = f"Tiny model, {args.steps} steps, fp32 on {runtime.describe_device(DEVICE)}"
        figure = draw_figure(heading, [figure_row(outcome)], notes([outcome])[1:])
        _save(figure, args.output / f"{name}.png")


def extension_result(
    edit: Edit, kind: RunType, preset: Preset, refined: bool, args: argparse.Namespace
) -> EditResult:
    """One edit with the refiner or in a few steps."""

    def load(refiner: bool) -> Pipeline:
        files = (ROOT / "configs", args.weight_path, DEVICE, Precision.FP32, Backend.AUTO)
        return Pipeline.load(SPEC, kind, *files, preset, refiner, progress=False)

    inpainting = edit.edited is None
    wanted = Inpainting(edit.image, edit.mask) if inpainting else SDEdit(edit.image, edit.edited)
    steps = None if kind.turbo else args.steps
    params, noise = SamplingParams(edit.prompt, seed=edit.seed, steps=steps), NamedNoise(edit.seed)
    if refined:
        return refined_edit(load, wanted, params, noise)
    return load(False).edit(wanted, params, noise)


def extension_row(name: str, edit: Edit, args: argparse.Namespace) -> Row:
    """Input, edit, dense, sparse, and sparse with the preset that leaves no seam."""
    (dense, sparse), refined, title = EXTENSIONS[name]
    image, inpainting = (edit.image + 1) / 2, edit.edited is None
    shown = overlay(image, edit.mask) if inpainting else (edit.edited + 1) / 2
    panels = [
        Panel(image, "Input", f"{image.shape[2]} x {image.shape[1]} pixels"),
        Panel(shown, "Mask" if inpainting else "Edit", f"{edit.mask.float().mean():.1%} of it"),
    ]
    reference = extension_result(edit, dense, Preset.PUBLISHED, refined, args).image
    panels.append(Panel(reference, "Original (dense)", ""))
    for preset in Preset:
        picture = extension_result(edit, sparse, preset, refined, args).image
        alike = likeness(reference, picture, edit.mask)
        caption = f"PSNR {alike.psnr_inside:.1f} dB"
        panels.append(Panel(picture, f"SIGE, --preset {preset}", caption))
    explanation = f'{title}, "{edit.prompt}", seed {edit.seed}'
    return Row(TASKS[edit.task], explanation, panels)


def draw_extension(name: str, args: argparse.Namespace) -> None:
    """The figure of the refiner or of turbo: an inpainting and an SDEdit."""
    edits = shipped_edits()[:2]
    if name == "refiner":
        edits[0] = replace(edits[0], seed=REFINER_SEED)
    rows = [extension_row(name, edit, args) for edit in edits]
    steps = "4 steps" if name == "turbo" else f"{args.steps} steps each"
    figure = draw_figure(f"Tiny model, {EXTENSIONS[name][2].lower()}, {steps}", rows, [REMARK])
    _save(figure, args.output / f"{name}.png")


def _save(figure: Image.Image, path: Path) -> None:
    save_picture(figure, path)
    print(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Make the edits and write one figure each; the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = build_parser().parse_args(argv)
    try:
        draw_base([name for name in BASE_NAMES if name in args.only], args)
        for name in EXTENSIONS:
            if name in args.only:
                draw_extension(name, args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
