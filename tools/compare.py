"""Runs the same edit with the dense and with the sparse networks, and says how far apart they are.

Both runs get the same noise (`NamedNoise`), so that what differs is what the networks compute.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sgm import runtime
from sgm.inference.inpainting import Inpainting
from sgm.inference.networks import recording, sparse
from sgm.inference.noise import NamedNoise, Noise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.sdedit import SDEdit
from sgm.io.files import check_input_file
from sgm.photo import Blend
from sgm.profiling.macs import Macs, count_macs
from sgm.sparse.masks import (
    SDEDIT_DECODER_DILATION,
    SDEDIT_DILATION,
    MaskPyramid,
    difference_mask,
    dilate,
    inpainting_pyramid,
    sdedit_pyramid,
)
from sgm.specs import LATENT_CHANNELS, LATENT_FACTOR, ModelSpec, Precision, RunType, Task
from tools.metrics import psnr, ssim

ROOT = Path(__file__).resolve().parents[1]
RUN_TYPES = (RunType.ORIGINAL, RunType.SIGE)
MIDDLE_TIMESTEP = 500  # of 1000, where one pass of the UNet is measured


@dataclass(frozen=True, eq=False)
class Edit:
    """One edit of one picture.

    Attributes:
        task: decides which of the pictures count.
        prompt, seed: of the run; the seed is that of the noise too.
        image: the unedited picture [3, H, W] in [-1, 1], sides multiples of 64.
        mask: bool [H, W], True where it is edited: where to repaint, or where it was drawn on.
        edited: the picture that was drawn on [3, H, W] in [-1, 1]; None for inpainting.
    """

    task: Task
    prompt: str
    seed: int
    image: Tensor
    mask: Tensor
    edited: Tensor | None = None

    def request(self, blend: Blend | None = None) -> Inpainting | SDEdit:
        """What a pipeline is asked for."""
        if self.edited is None:
            return Inpainting(self.image, self.mask, blend)
        return SDEdit(self.image, self.edited, blend=blend)

    @property
    def pyramid(self) -> MaskPyramid:
        """The masks of the UNet."""
        inpainting = self.task is Task.INPAINTING
        return inpainting_pyramid(self.mask) if inpainting else sdedit_pyramid(self.mask)


def inpainting_edit(image: Tensor, mask: Tensor, prompt: str, seed: int) -> Edit:
    """An edit by a mask; shapes as in `Edit`."""
    return Edit(Task.INPAINTING, prompt, seed, image, mask)


def sdedit_edit(image: Tensor, edited: Tensor, prompt: str, seed: int) -> Edit:
    """An edit by drawing on the picture; shapes as in `Edit`."""
    return Edit(Task.SDEDIT, prompt, seed, image, difference_mask(image, edited), edited)


def load_pipelines(
    spec: ModelSpec,
    config_path: Path,
    weight_path: Path,
    device: torch.device,
    precision: Precision,
) -> dict[RunType, Pipeline]:
    """The dense and the sparse networks of a model family, with the same weights.

    Raises:
        UserError: a file is missing or does not fit.
    """
    check_input_file(weight_path / spec.weight_file("base"))
    return {
        run_type: Pipeline.load(
            spec, run_type, config_path, weight_path, device, precision, progress=False
        )
        for run_type in RUN_TYPES
    }


def run_edit(
    pipeline: Pipeline,
    edit: Edit,
    steps: int,
    progress: bool = False,
    noise: Noise | None = None,
) -> EditResult:
    """Make an edit, by default with named noise, which is the same for any other pipeline."""
    noise = NamedNoise(edit.seed) if noise is None else noise
    common = {"seed": edit.seed, "steps": steps, "progress": progress, "noise": noise}
    if edit.edited is None:
        return pipeline.inpaint(edit.image, edit.mask, edit.prompt, **common)
    return pipeline.sdedit(edit.image, edit.edited, edit.prompt, **common)


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


@dataclass(frozen=True)
class PassCost:
    """One pass of the UNet at guidance batch 2.

    Attributes:
        macs: multiply-accumulates.
        seconds: median.
    """

    macs: Macs
    seconds: float


def unet_inputs(pipeline: Pipeline, edit: Edit) -> tuple[Tensor, ...]:
    """What a guided step hands to the UNet: x [2, 4, h, w], timesteps [2], context, y."""
    networks = pipeline.networks
    height, width = edit.mask.shape
    c, uc = networks.condition(edit.prompt, "", (height, width))
    shape = (2, LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR)
    x = NamedNoise(edit.seed)("profile", shape).to(networks.device)
    timesteps = torch.full((2,), MIDDLE_TIMESTEP, device=networks.device)
    batch = {key: torch.cat([uc[key], c[key]]) for key in c}
    x = x.contiguous(memory_format=torch.channels_last)
    return x, timesteps, batch["crossattn"], batch["vector"]


def unet_costs(
    pipelines: dict[RunType, Pipeline], edit: Edit, repeats: int = 15
) -> dict[RunType, PassCost]:
    """Count and time one dense and one sparse pass of the UNet for an edit.

    The two are timed in turns, so that whatever else the machine does meets both. The recording
    that the sparse pass reads is made before.
    """
    device, masks = pipelines[RunType.SIGE].networks.device, edit.pyramid
    precision = pipelines[RunType.SIGE].precision
    seconds: dict[RunType, list[float]] = {kind: [] for kind in RUN_TYPES}
    macs = {}
    with torch.inference_mode(), runtime.precision_scope(precision, device):
        unets = {kind: pipelines[kind].networks.unet for kind in RUN_TYPES}
        inputs = unet_inputs(pipelines[RunType.ORIGINAL], edit)
        with recording(unets[RunType.SIGE]):
            unets[RunType.SIGE](*inputs)
        for number in range(repeats + 2):
            for kind, unet in unets.items():
                with sparse(unet, masks if kind.sparse else None):
                    if number == 0:  # also the first pass, which builds the active sets
                        macs[kind] = count_macs(unet, *inputs)
                        continue
                    elapsed = _timed(lambda unet=unet: unet(*inputs), device)
                    if number > 1:  # one more pass to warm up
                        seconds[kind].append(elapsed)
    return {kind: PassCost(macs[kind], statistics.median(seconds[kind])) for kind in RUN_TYPES}


def _timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the device's queue included."""
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


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
