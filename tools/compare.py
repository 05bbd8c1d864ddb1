"""Runs the same edit with the dense and with the sparse networks, and says how far apart they are.

Both runs get the same noise (`NamedNoise`), so that what differs is what the networks compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sgm.inference.inpainting import Inpainting
from sgm.inference.noise import NamedNoise, Noise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.sdedit import SDEdit
from sgm.metrics import psnr, ssim
from sgm.sparse.masks import (
    SDEDIT_DECODER_DILATION,
    SDEDIT_DILATION,
    difference_mask,
    dilate,
)
from sgm.specs import Blend, SamplingParams
from sgm.words import Task

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, eq=False)
class Edit:
    """One edit of one picture.

    Attributes:
        task: decides which of the pictures count.
        prompt, seed: of the run; the seed is that of the noise too.
        image: the unedited picture [3, H, W] in [-1, 1], sides multiples of 64.
        mask: bool [H, W], True where it is edited: where to repaint, or where it was drawn on.
        edited: the picture that was drawn on [3, H, W] in [-1, 1]; None for inpainting.
        strength: SDEdit: share of the schedule that is run.
        scale: classifier-free guidance.
    """

    task: Task
    prompt: str
    seed: int
    image: Tensor
    mask: Tensor
    edited: Tensor | None = None
    strength: float = 0.8
    scale: float = 6.0

    def request(self, blend: Blend | None = None) -> Inpainting | SDEdit:
        """What a pipeline is asked for."""
        if self.edited is None:
            return Inpainting(self.image, self.mask, blend)
        return SDEdit(self.image, self.edited, self.strength, blend=blend)


def inpainting_edit(image: Tensor, mask: Tensor, prompt: str, seed: int) -> Edit:
    """An edit by a mask; arguments as in `Edit`."""
    return Edit(Task.INPAINTING, prompt, seed, image, mask)


def sdedit_edit(
    image: Tensor, edited: Tensor, prompt: str, seed: int, strength: float = 0.8
) -> Edit:
    """An edit by drawing on the picture; arguments as in `Edit`."""
    mask = difference_mask(image, edited)
    return Edit(Task.SDEDIT, prompt, seed, image, mask, edited, strength)


def run_edit(
    pipeline: Pipeline,
    edit: Edit,
    steps: int | None,
    progress: bool = False,
    noise: Noise | None = None,
) -> EditResult:
    """Make an edit.

    Args:
        steps: sampler steps; None for the model's default.
        progress: show a bar on stderr.
        noise: source of the random draws; None for named noise of the edit's seed, which is the
            same for every pipeline.
    """
    noise = NamedNoise(edit.seed) if noise is None else noise
    params = SamplingParams(edit.prompt, "", edit.seed, steps, edit.scale, edit.strength)
    return pipeline.edit(edit.request(pipeline.recipe.blend), params, noise, progress)


def far_from(mask: Tensor) -> Tensor:
    """What counts as outside of an edit: bool [H, W], True farther away than the published
    decoder looks for changes around it (its two dilations, of 5 and of 40 pixels)."""
    return ~dilate(dilate(mask, SDEDIT_DILATION), SDEDIT_DECODER_DILATION)


@dataclass(frozen=True)
class Likeness:
    """How alike two results of an edit are, where it is and far from it; PSNR in dB. NaN where
    there are no such pixels, infinite where they are equal."""

    psnr_inside: float
    ssim_inside: float
    psnr_outside: float
    ssim_outside: float


def likeness(a: Tensor, b: Tensor, mask: Tensor) -> Likeness:
    """Compare two pictures [3, H, W] in [0, 1] inside `mask` (bool [H, W]) and in `far_from`."""

    def measured(metric: Callable[[Tensor, Tensor, Tensor], float], where: Tensor) -> float:
        try:
            return metric(a, b, where)
        except ValueError:  # nothing to compare: an edit from edge to edge, or at the very edge
            return math.nan

    outside = far_from(mask)
    return Likeness(
        measured(psnr, mask), measured(ssim, mask), measured(psnr, outside), measured(ssim, outside)
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as text; the first column left, the others right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        first, *others = cells
        padded = [first.ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    return "\n".join(line(row) for row in (head, rule, *rows))
