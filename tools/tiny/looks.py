"""What people see first of an edit: whether the object is there, seams, softness.

The edits are the held-out ones of `pairs`. A picture counts as showing the object that was asked
for if the judge finds that one, and no other, in the region of the edit.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sgm.metrics import LUMA
from tools.compare import markdown_table
from tools.tiny.captions import NOUNS
from tools.tiny.judge import Box, Judge, object_in

ALWAYS_NAMED = "horse"  # by the prompts for a scene that has one, whatever is asked for


@dataclass(frozen=True)
class Looks:
    """Of one edited picture.

    Attributes:
        found: 1 where the judge finds the object that was asked for, else 0.
        border_step: how much more the colours step at the border of the edit than they did in the
            input, in grey levels of 255; below 0 where they step less.
    """

    found: float
    border_step: float


def looks(
    judge: Judge,
    picture: Image.Image,
    source: Image.Image,
    mask: Tensor,
    border: Tensor,
    name: str,
) -> Looks:
    """Measure what people see first of an edited picture.

    Args:
        picture, source: the result, and what the edit started from; RGB, of one size.
        mask: bool [H, W], True where it was edited.
        border: bool [H, W], True within the border: the mask, or where something was drawn, whose
            own outline is no seam, a little more.
        name: of the object that was asked for.
    """
    found = object_in(judge, picture, bounds(mask)) == name
    step = colour_step(picture, border) - colour_step(source, border)
    return Looks(float(found), step)


def bounds(mask: Tensor) -> Box:
    """The box around the True pixels of a bool mask [H, W], which has some."""
    rows, columns = (mask.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def colour_step(picture: Image.Image, mask: Tensor) -> float:
    """Mean difference of the colours of neighbours on either side of a mask's border, in grey
    levels of 255; 0 where the mask has no border in the picture."""
    pixels = torch.from_numpy(np.array(picture)).float()
    steps = []
    for axis in (0, 1):
        crosses = mask.diff(dim=axis)  # True where one of two neighbours is in the mask
        steps.append(pixels.diff(dim=axis).abs().mean(dim=2)[crosses])
    found = torch.cat(steps)
    return found.mean().item() if found.numel() else 0.0


def sharpness(made: Tensor, x: Tensor) -> float:
    """How much of the contrast between neighbours a reconstruction keeps.

    Args:
        made, x: the reconstruction and the picture, [3, H, W] of one range.

    Returns:
        1 for as sharp as the picture, less for softer.
    """
    return contrast(made) / contrast(x)


def contrast(picture: Tensor) -> float:
    """Root of the mean square of the differences between neighbours' brightness."""
    luma = (picture.double() * torch.tensor(LUMA, dtype=torch.float64)[:, None, None]).sum(dim=0)
    squares = [luma.diff(dim=axis).square().mean() for axis in (0, 1)]
    return torch.stack(squares).sum().sqrt().item()


def asked_for(prompt: str) -> str:
    """The object that a prompt of a held-out edit asks for.

    Raises:
        ValueError: it names none.
    """
    words = prompt.replace(",", " ").split()
    named = [noun for noun in NOUNS if noun in words or f"{noun}s" in words]
    if not named:
        raise ValueError(f"The prompt {prompt!r} names none of {', '.join(NOUNS)}.")
    others = [noun for noun in named if noun != ALWAYS_NAMED]
    return (others or named)[0]


def object_table(figures: Mapping[str, Any]) -> str:
    """How often the object that was asked for is found, as Markdown: a row for every object."""
    runs = ("dense", "published", "fast", "warm")
    found: dict[str, dict[str, list[float]]] = {}
    for task, results in figures["tasks"].items():
        for run in runs:
            for edit in results[run]["edits"]:
                row = found.setdefault(f"{task}, {edit['object']}", {name: [] for name in runs})
                row[run].append(edit["found"])
    rows = [
        (name, str(len(row["dense"])), *(percent(statistics.fmean(row[run])) for run in runs))
        for name, row in found.items()
    ]
    return markdown_table(("asked for", "edits", *runs), rows)


def percent(value: float | None) -> str:
    """A share of the table; a dash where there is none."""
    return "-" if value is None else f"{100 * value:.0f} %"
