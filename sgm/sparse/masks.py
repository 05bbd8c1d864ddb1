"""Where an edit is: difference masks, dilation and the pyramid of one mask per resolution.

Published behaviour of SIGE (Li et al., 2022, section 3) and its SDXL port.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Resolution = tuple[int, int]
MaskPyramid = Mapping[Resolution, Tensor]

DIFFERENCE_THRESHOLD = 2e-2
LEVEL_THRESHOLD = 0.3
LEVEL_EPSILON = 1e-3

# Published dilations, in pixels of the picture or of each level.
LEVEL_DILATION = 1
SDEDIT_DILATION = 5
SDEDIT_DECODER_DILATION = 40


def difference_mask(a: Tensor, b: Tensor) -> Tensor:
    """Where two pictures differ by more than 2e-2 in any channel.

    Args:
        a, b: [C, H, W], values in [-1, 1].

    Returns:
        bool [H, W].
    """
    return ((a - b).abs() > DIFFERENCE_THRESHOLD).any(dim=0)


def dilate(mask: Tensor, distance: int) -> Tensor:
    """Grow a mask by a plus: every pixel within `distance` along its own row or column.

    Args:
        mask: bool [H, W].
        distance: pixels; 0 or less returns the mask.
    """
    if distance <= 0:
        return mask
    return _reach(mask, distance) | _reach(mask.t(), distance).t()


def grown(mask: Tensor, distance: int) -> Tensor:
    """Grow a mask, bool [H, W], by a square: every pixel within `distance` in both directions, so
    that it holds every other growth by this distance."""
    return _reach(_reach(mask, distance).t(), distance).t()


def _reach(mask: Tensor, distance: int) -> Tensor:
    """Whether a pixel is within `distance` of a masked one in its own row, bool [H, W]."""
    length = mask.shape[1]
    before = F.pad(mask.cumsum(1), (1, 0))  # masked pixels left of each, and of the end
    at = torch.arange(length, device=mask.device)
    end = before.index_select(1, (at + distance + 1).clamp(max=length))
    return end > before.index_select(1, (at - distance).clamp(min=0))


def downsample_mask(mask: Tensor, dilation: int | Sequence[int]) -> dict[Resolution, Tensor]:
    """One mask per resolution, halving down to a single pixel in height or width.

    A level is `map > min(0.3, max - 1e-3)`, dilated; the float map itself goes on to the next
    level by bilinear resizing. The published pyramid stops at a smallest size, and floods a level
    whose largest value falls under 1e-3 (a lone pixel far up). Here it goes down as far as any
    network needs, and such a level keeps what half its maximum selects.

    Args:
        mask: bool [H, W] at the picture's resolution.
        dilation: pixels of growth at every level, or of the first levels one by one; the last
            number holds for all that follow.

    Returns:
        (h, w) -> bool [h, w], from (H, W) down.

    Raises:
        ValueError: the mask is empty: there is nothing to compute, and so no sparse pass.
    """
    if not mask.any():
        raise ValueError("The mask is empty, so there is nothing to edit; return the picture.")
    growth = [dilation] if isinstance(dilation, int) else list(dilation)
    levels: dict[Resolution, Tensor] = {}
    values = mask.float()
    while True:
        peak = values.max().item()
        threshold = min(LEVEL_THRESHOLD, peak - LEVEL_EPSILON)
        if threshold <= 0:
            threshold = peak / 2
        height, width = values.shape
        distance = growth[min(len(levels), len(growth) - 1)]
        levels[height, width] = dilate(values > threshold, distance)
        if min(height, width) == 1:
            return levels
        values = _halve(values)


def _halve(values: Tensor) -> Tensor:
    """Half the size by bilinear resizing; never to nothing but zeros."""
    height, width = values.shape
    size = (height // 2, width // 2)
    half = F.interpolate(values[None, None], size=size, mode="bilinear", align_corners=False)
    if not half.any():  # odd sizes skip pixels when they are halved
        half = F.adaptive_max_pool2d(values[None, None], size)
    return half[0, 0]


def inpainting_pyramid(mask: Tensor) -> MaskPyramid:
    """Masks of an inpainting run, for UNet, encoder and decoder; mask is bool [H, W]."""
    return downsample_mask(mask, LEVEL_DILATION)


def cover(pyramid: MaskPyramid, region: Tensor) -> MaskPyramid:
    """A pyramid whose levels also hold all that a region touches: beside a large part, halving
    loses thin strokes and small spots.

    Args:
        region: bool [H, W] at the picture's resolution.
    """
    values = region[None, None].float()
    return {
        size: level | (F.adaptive_max_pool2d(values, size)[0, 0] > 0)
        for size, level in pyramid.items()
    }
