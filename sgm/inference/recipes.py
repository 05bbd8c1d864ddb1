"""What a preset computes: masks per network and task, and what becomes of the other pixels."""

from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import Tensor

from sgm.sparse.masks import (
    LEVEL_DILATION,
    SDEDIT_DECODER_DILATION,
    SDEDIT_DILATION,
    MaskPyramid,
    dilate,
    downsample_mask,
)
from sgm.specs import Preset


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
        feather: width in pixels of the transition inside the edited region to the input, which
            stands unchanged outside; None leaves the network's picture everywhere.
        refresh: in inpainting the surroundings of an edit are held to the picture with one fixed
            noise, and recorded every so many steps; between these, recordings are means of two
            (`sgm.inference.between`). None is the published loop, which draws noise for every step
            and records at each.
        sdedit_refresh: the same for SDEdit, where the unedited picture is stepped along and the
            last recording stands until the next.
        sdedit_leading: share of the steps, from the first, that are all recorded in SDEdit.
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
    feather: int | None
    refresh: int | None
    sdedit_refresh: int = 1
    sdedit_leading: float = 0.0
    sparse_decode: bool = True
    early: float = 0.0
    sdedit_early: int = 0

    def refreshed(self, steps: int) -> "Recipe":
        """With recordings made every so many steps, whatever the task."""
        return replace(self, refresh=steps, sdedit_refresh=steps)

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
        """Masks of the UNet step by step; `masks` are those of `sdedit_masks`."""
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
    """Masks of the UNet, which may differ from step to step.

    Attributes:
        late: of most steps.
        early: of the first `share` of them; None for the late ones.
        share: 0 to 1.
    """

    late: MaskPyramid
    early: MaskPyramid | None = None
    share: float = 0.0

    def at(self, step: int, steps: int) -> MaskPyramid:
        """Those of a step, from 0, of so many."""
        if self.early is None or step >= int(self.share * steps):
            return self.late
        return self.early

    @property
    def first(self) -> MaskPyramid:
        """Those of the first steps, where there are any: the wider ones."""
        return self.late if self.early is None else self.early


PUBLISHED = Recipe(
    level=LEVEL_DILATION,
    sdedit=SDEDIT_DILATION,
    decoder_level=LEVEL_DILATION,
    sdedit_decoder=SDEDIT_DECODER_DILATION,
    feather=None,
    refresh=None,
)
FAST = Recipe(
    level=(1, 1, 1, 2, 1),  # two more latent pixels: cheap, and worth most (benchmarks/quality.py)
    sdedit=7,
    decoder_level=1,
    sdedit_decoder=8,
    feather=4,
    refresh=4,  # costs about a tenth of a dB at 50 steps (benchmarks/quality.py)
    sdedit_refresh=5,
    sdedit_leading=0.15,  # without these even every third step costs 1 dB (benchmarks/quality.py)
    sparse_decode=False,
    early=0.4,  # worth 3 dB (benchmarks/quality.py)
    sdedit_early=40,
)
RECIPES = MappingProxyType({Preset.PUBLISHED: PUBLISHED, Preset.FAST: FAST})
