"""The edit put into the input picture: whole where it was asked for, then fading out in a ring.

Beyond the ring not a value of the input changes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.inference.border import match_border
from sgm.inference.grain import grain_for
from sgm.specs import Blend


def distance(mask: Tensor, limit: int) -> Tensor:
    """How far each pixel lies from a mask, bool [H, W]: float32 [H, W], 0 inside, elsewhere the
    Euclidean distance in pixels to the nearest masked one, between centres; `limit + 1` beyond
    the limit, in pixels."""
    reached = mask[None, None].float()
    row = limit + 1 - reached[0, 0]
    for _ in range(limit):
        reached = F.max_pool2d(reached, (1, 3), stride=1, padding=(0, 1))
        row -= reached[0, 0]
    # Rows that see nothing within the limit must not come near by a step up or down.
    squares = torch.where(row > limit, float("inf"), row.square())
    padded = F.pad(squares, (0, 0, limit, limit), value=float("inf"))
    height = mask.shape[0]
    nearest = squares
    for step in range(-limit, limit + 1):
        shifted = padded[limit + step : limit + step + height]
        nearest = torch.minimum(nearest, shifted + step * step)
    return torch.where(nearest > limit**2, limit + 1, nearest.sqrt())


def opacity(levels: Tensor, feather: int) -> Tensor:
    """Weight of the edit at each pixel, float32 [H, W].

    Args:
        levels: bool or float [H, W] in [0, 1], 1 where the picture is to change; between 0 and 1
            the soft border that was drawn, which stays as it is.
        feather: width in pixels of the ring around the pixels of level 1, in which the weight
            falls to 0; 0 for none.
    """
    levels = levels.float()
    near = (1 - distance(levels >= 1, feather) / (feather + 1)).clamp(min=0)
    return torch.maximum(levels, near * near * (3 - 2 * near))


def opacity_of_drawing(drawing: Tensor, region: Tensor, margin: int, feather: int) -> Tensor:
    """Weight of an edit that was drawn: 1 on the drawing, falling to 0 from its edge to the end of
    the ring, since around the drawing the network only repaints what is there.

    Args:
        drawing: bool [H, W].
        region: bool [H, W], the drawing and what is sampled with it.
        margin: pixels from the drawing to the end of the region.
        feather: width of the ring around the region, as for `opacity`.

    Returns:
        float32 [H, W], nowhere above that of the region; without a ring, the region's.
    """
    if not feather:
        return opacity(region, 0)
    return torch.minimum(opacity(drawing, margin + feather), opacity(region, feather))


def composite(edited: Tensor, source: Tensor, weight: Tensor) -> Tensor:
    """`edited` [3, H, W] where the weight [H, W] is 1, a mixture where it is less, and where it is
    0 `source`: exactly, value for value."""
    return torch.where(weight > 0, torch.lerp(source, edited, weight), source)


def grained(edited: Tensor, source: Tensor, weight: Tensor) -> Tensor:
    """`composite`, with grain like that of the surroundings in the edit. Where the two are mixed,
    the grain of the source is weaker, and as much more is added.

    Args:
        edited, source: [3, H, W] in [0, 1].
        weight: opacity of the edit, float32 [H, W].
    """
    grain = grain_for(edited, source, weight) * (weight * (2 - weight)).sqrt()
    return (composite(edited, source, weight) + grain).clamp(0, 1)


def blended(
    edited: Tensor, source: Tensor, levels: Tensor, blend: Blend, weight: Tensor | None = None
) -> Tensor:
    """The network's picture put into the input: [3, H, W], `source` itself where the weight is 0.

    Args:
        edited, source: [3, H, W] in [0, 1].
        levels: where the edit is, as for `opacity`; its colours are matched to what is around.
        blend: the width of the ring, and whether colours and grain are matched.
        weight: opacity of the edit, float32 [H, W]; None for that of the levels.
    """
    feather = blend.width(levels.shape)
    around = opacity(levels, feather)
    weight = around if weight is None else weight
    if not blend.match_border:
        return composite(edited, source, weight)
    return grained(match_border(edited, source, around, feather), source, weight)
