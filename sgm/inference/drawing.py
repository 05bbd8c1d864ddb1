"""Where a picture was drawn on: the drawing, and not what a lossy format did to the rest.

Compression changes every pixel a little, more where the picture is rough, and to both sides; a
drawing shifts the colours of many neighbours to one side. So the difference is smoothed, and
measured against the noise that is usual in this pair for pixels as rough.
"""

import logging

import torch.nn.functional as F
from torch import Tensor

from sgm.inference.border import blur
from sgm.sparse.masks import DIFFERENCE_THRESHOLD, difference_mask, grown

logger = logging.getLogger(__name__)

# A drawing is named as found among other differences if these are so much more of the picture.
OTHER_DIFFERENCES = 0.01
DIFFUSE = 0.4  # share of the picture from which differences look like no drawing
SMOOTHING = 1.5  # sigma in pixels: half of what compression does to a pixel, its neighbours undo
ROUGHNESS = 4.0  # sigma of the window in which roughness is measured
# Times the usual noise at which a pixel is part of the drawing if it is next to one that is
# certainly so.
LIKELY, CERTAIN = 5.0, 10.0
LEAST = 6 / 127.5  # of the smoothed difference, for a certain pixel
REACH = 8  # pixels from a certain one to a likely one: a block of the common formats
SPECK = 4  # pixels in 5x5 under which a difference is a speck
SAME = 1.3  # times as many differences as visible ones: soft strokes, and no compression
MUCH = 24 / 127.5  # a median change that no compression makes


def where_drawn(init: Tensor, edited: Tensor, blended: bool) -> Tensor:
    """Where a picture was drawn on, bool [H, W], from that before and after, both [3, H, W] in
    [-1, 1]. Says what was taken for noise. Where the edit is not `blended` into the unedited
    picture, every difference counts (published)."""
    different = difference_mask(init, edited)
    if not blended:
        return different
    drawing = find_drawing(init, edited)
    if not drawing.any():  # nothing stands out, so all that differs was meant
        return different
    all_of_it, found = different.float().mean().item(), drawing.float().mean().item()
    if all_of_it > found + OTHER_DIFFERENCES:
        logger.warning(
            "The pictures differ a little nearly everywhere, as after lossy compression (%.1f%%); "
            "%.1f%% counts as drawn on. If that is wrong, a mask says where (--mask_path).",
            *(100 * all_of_it, 100 * found),
        )
    if found > DIFFUSE:
        logger.warning(
            "%.0f%% of the picture differs from the original, which looks like no drawing; a mask "
            "says where the edit is (--mask_path).",
            100 * found,
        )
    return drawing


def find_drawing(init: Tensor, edited: Tensor) -> Tensor:
    """Every difference but specks, bool [H, W], if the rest of two pictures [3, H, W] in [-1, 1] is
    the same, pixel for pixel; or else what stands out from the noise."""
    raw = difference_mask(init, edited)
    if _clean(init, edited, raw):
        return _without_specks(raw)
    changed = ((init - edited) != 0).any(0)
    shift = blur(edited - init, SMOOTHING).abs().amax(0)
    rough = blur((init - blur(init, SMOOTHING)).abs(), ROUGHNESS).amax(0) + DIFFERENCE_THRESHOLD / 2
    noise = (shift / rough)[changed].median() * rough
    certain = (shift > CERTAIN * noise) & (shift > LEAST) & raw
    likely = (shift > LIKELY * noise) & (shift > LEAST / 2) & raw
    certain = _without_specks(certain)
    return certain | (likely & grown(certain, REACH))


def _clean(init: Tensor, edited: Tensor, raw: Tensor) -> bool:
    """Whether nothing but a drawing changed the picture: what changed, changed much, or is little
    more than what is seen and leaves half of the picture as it was."""
    size = (init - edited).abs().amax(0)
    changed = size > 0
    if not changed.any() or size[changed].median() > MUCH:
        return True
    return bool(changed.sum() <= SAME * raw.sum()) and bool(changed.float().mean() < 0.5)


def _without_specks(mask: Tensor) -> Tensor:
    """A mask without the pixels that have hardly any others around them."""
    around = F.avg_pool2d(mask[None, None].float(), 5, 1, 2)[0, 0] * 25
    return mask & (around > SPECK - 0.5)
