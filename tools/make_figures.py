"""Draws the README's pictures, `assets/results/*.png`: `python -m tools.make_figures`.

The three examples of the README's commands, dense and sparse at the same noise, by the tiny model.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sgm import runtime
from sgm.errors import UserError
from sgm.imageio import save_picture
from sgm.specs import Precision
from tools.compare import ROOT, load_pipelines
from tools.demo import SPEC, figure_row, notes, run_all, shipped_edits
from tools.figure import draw_figure

NAMES = ("inpainting", "sdedit0", "sdedit1")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.make_figures", description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="sampler steps (default 50)")
    parser.add_argument("--output", type=Path, default=ROOT / "assets/results", help="a folder")
    parser.add_argument("--weight_path", type=Path, default=ROOT / "pretrained", help="a folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the edits and write one figure each; the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = build_parser().parse_args(argv)
    device = torch.device("cpu")
    try:
        pipelines = load_pipelines(SPEC, ROOT / "configs", args.weight_path, device, Precision.FP32)
        outcomes = run_all(pipelines, shipped_edits(), args.steps)
        for name, outcome in zip(NAMES, outcomes, strict=True):
            heading = f"Tiny model, {args.steps} steps, fp32 on {runtime.describe_device(device)}"
            figure = draw_figure(heading, [figure_row(outcome)], notes([outcome])[1:])
            save_picture(figure, args.output / f"{name}.png")
            print(args.output / f"{name}.png")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
