"""What a preset computes: masks per network and task, and what becomes of the other pixels."""

import math
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from sgm.inference.interpolate import count_of, spread
from sgm.sparse.masks import (
    LEVEL_DILATION,
    SDEDIT_DECODER_DILATION,
    SDEDIT_DILATION,
    MaskPyramid,
    dilate,
    downsample_mask,
)
from sgm.specs import (
    DEFAULT_PROMPT_STEPS,
    DEFAULT_RECORDED,
    DEFAULT_RECORDING_PRECISION,
    Blend,
    RecordingSettings,
)
from sgm.words import Preset, RecordingPrecision

DTYPES = {
    RecordingPrecision.FULL: None,
    RecordingPrecision.BF16: torch.bfloat16,
    RecordingPrecision.INT8: torch.int8,
}


@dataclass(frozen=True)
class Recorded:
    """Which steps of a run are recorded; the others are interpolated.

    Attributes:
        count: how many, at least 2; None for every `every`-th.
        every: most steps from one recorded step to the next.
        order: of the polynomial through the nearest ones.
        power: 1 for even spacing; above 1 they are denser at the first steps.
        precision: in which recordings are kept.
        prompt_steps: full passes under a new prompt that a session makes, to correct its recordings
            by what the prompt changes; 0 for none.
    """

    count: int | None = None
    every: int = 1
    order: int = 1
    power: float = 1.0
    precision: RecordingPrecision = RecordingPrecision.FULL
    prompt_steps: int = 0

    def steps(self, steps: int) -> list[int]:
        """The numbers of the recorded steps of a run of `steps`, rising from 0 to the last."""
        count = count_of(steps, self.every) if self.count is None else self.count
        return spread(steps, count, self.power)

    @property
    def dtype(self) -> torch.dtype | None:
        """In which rows and tokens are kept: int8, bfloat16, or None for the network's."""
        return DTYPES[self.precision]

    def largest(self, size: tuple[int, int]) -> int | None:
        """Pixels of the largest maps that are kept of encoder and decoder, for a picture of `size`
        (height, width): as int8 not those of their two highest levels, which are most of them and
        are computed anew around an edit. None for all."""
        return math.prod(size) // 16 if self.dtype is torch.int8 else None

    def changed(self, settings: RecordingSettings) -> "Recorded":
        """The same with what a person has set instead."""
        given = {name: value for name, value in vars(settings).items() if value is not None}
        if "every" in given:  # so neither their number nor their spacing is that of the preset
            given = {"count": None, "power": 1.0, **given}
        return replace(self, **given)


EVERY_STEP = Recorded()


@dataclass(frozen=True)
class Recipe:
    """Dilations in pixels, all by a plus (see `dilate`).

    Attributes:
        level: growth of the masks of UNet and encoder at every resolution, or at the picture's
            size, half of it and so on; the last number holds for all that follow.
        sdedit: growth of the difference of two pictures before any of its masks are made.
        decoder_level: growth of the decoder's masks at every resolution, inpainting.
        sdedit_decoder: growth of the difference before the decoder's masks are made, SDEdit, on
            top of `sdedit`.
        blend: how the edit is put into the input, which stands unchanged elsewhere; None leaves
            the network's picture everywhere.
        hold: whether the latents around an edit are those of the unedited picture at every step: in
            inpainting with one noise at all levels, in SDEdit as it is denoised for itself. Only
            then recordings can be interpolated, and kept. As published, inpainting draws a noise
            for every step, and SDEdit puts nothing back.
        recorded, sdedit_recorded: which steps of a run are recorded.
        sparse_decode: without kept recordings, decode by a full pass of the unedited picture, which
            records, and a sparse one (published); or else by one full pass of the edited picture,
            which is less work, and exact.
        early, sdedit_early: share of the steps, from the first, in which `sdedit` is
            `sdedit_early` instead: at high noise the layout is decided, and more has to give way.
    """

    level: int | tuple[int, ...]
    sdedit: int
    decoder_level: int
    sdedit_decoder: int
    blend: Blend | None
    hold: bool = False
    recorded: Recorded = EVERY_STEP
    sdedit_recorded: Recorded = EVERY_STEP
    sparse_decode: bool = True
    early: float = 0.0
    sdedit_early: int = 0

    def with_recordings(self, settings: RecordingSettings) -> "Recipe":
        """The same recipe with what a person has set of the recordings, for both tasks."""
        return replace(
            self,
            recorded=self.recorded.changed(settings),
            sdedit_recorded=self.sdedit_recorded.changed(settings),
        )

    def inpainting(self, mask: Tensor) -> MaskPyramid:
        """Masks of UNet and encoder for a mask, bool [H, W]."""
        return downsample_mask(mask, self.level)

    def inpainting_decoder(self, mask: Tensor) -> MaskPyramid:
        """Masks of the decoder for a mask, bool [H, W]."""
        return downsample_mask(mask, self.decoder_level)

    def sdedit_masks(self, difference: Tensor) -> MaskPyramid:
        """Masks of UNet and encoder for a difference of two pictures, bool [H, W]."""
        return downsample_mask(dilate(difference, self.sdedit), self.level)

    def sdedit_steps(self, difference: Tensor, masks: MaskPyramid) -> "StepMasks":
        """Masks of the UNet step by step, for a difference, bool [H, W], and its `sdedit_masks`."""
        if not self.early:
            return StepMasks(masks)
        early = downsample_mask(dilate(difference, self.sdedit_early), self.level)
        return StepMasks(masks, early, self.early)

    def sdedit_region(self, difference: Tensor) -> Tensor:
        """Where the picture may change in SDEdit: bool [H, W]."""
        return dilate(dilate(difference, self.sdedit), self.sdedit_decoder)

    def sdedit_decoder_masks(self, difference: Tensor) -> MaskPyramid:
        """Masks of the decoder for a difference, bool [H, W]."""
        return downsample_mask(self.sdedit_region(difference), 0)


@dataclass(frozen=True, eq=False)
class StepMasks:
    """Masks of the UNet, which may differ from step to step."""

    late: MaskPyramid  # of most steps
    early: MaskPyramid | None = None  # of the first `share` of them; None for the late ones
    share: float = 0.0

    def at(self, step: int, steps: int) -> MaskPyramid:
        """Masks of a step, counted from 0, in a run of so many steps."""
        if self.early is None or step >= int(self.share * steps):
            return self.late
        return self.early

    def change(self, steps: int) -> int:
        """The first step with the late masks in a run of so many; 0 where the masks stay."""
        return 0 if self.early is None else int(self.share * steps)

    @property
    def all(self) -> tuple[MaskPyramid, ...]:
        """The different masks, in the order of their use."""
        return (self.late,) if self.early is None else (self.early, self.late)

    @property
    def first(self) -> MaskPyramid:
        """The masks of the first step, which are the widest."""
        return self.late if self.early is None else self.early


PUBLISHED = Recipe(
    level=LEVEL_DILATION,
    sdedit=SDEDIT_DILATION,
    decoder_level=LEVEL_DILATION,
    sdedit_decoder=SDEDIT_DECODER_DILATION,
    blend=None,
)
RECORDED = Recorded(
    count=DEFAULT_RECORDED,
    order=2,
    power=1.15,
    precision=DEFAULT_RECORDING_PRECISION,
    prompt_steps=DEFAULT_PROMPT_STEPS,
)
FAST = Recipe(
    level=(1, 1, 1, 2, 1),  # two more latent pixels: cheap, and worth most (benchmarks/quality.py)
    sdedit=7,
    decoder_level=1,
    sdedit_decoder=8,
    blend=Blend(),
    hold=True,
    recorded=RECORDED,
    sdedit_recorded=replace(RECORDED, power=2.0),
    sparse_decode=False,
    early=0.4,  # worth 3 dB (benchmarks/quality.py)
    sdedit_early=40,
)
RECIPES = MappingProxyType({Preset.PUBLISHED: PUBLISHED, Preset.FAST: FAST})
