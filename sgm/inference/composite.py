"""The edit put into the input picture: unchanged outside, a soft transition inside."""

import torch
import torch.nn.functional as F
from torch import Tensor


def depth(mask: Tensor, limit: int) -> Tensor:
    """How far inside a mask each pixel lies.

    Args:
        mask: bool [H, W].
        limit: largest depth that is told apart.

    Returns:
        float32 [H, W]: 0 outside, then 1, 2, ... counted in all eight directions, up to `limit`.
        The border of the picture is no border of the mask.
    """
    outside = (~mask)[None, None].float()
    total = torch.zeros_like(outside)
    for _ in range(limit):
        total += 1 - outside
        outside = F.max_pool2d(outside, 3, stride=1, padding=1)
    return total[0, 0]


def opacity(mask: Tensor, feather: int) -> Tensor:
    """Weight of the edit at each pixel.

    Args:
        mask: bool [H, W], where the picture may change.
        feather: width of the transition in pixels, at least 1; narrower where the mask is.

    Returns:
        float32 [H, W]: 0 outside, rising inside, 1 from a depth of `feather` on, or at the
        deepest pixels of a part that is thinner.
    """
    inside = depth(mask, feather + 1)
    size = 2 * feather + 1
    deepest = inside[None, None]
    for window, padding in (((size, 1), (feather, 0)), ((1, size), (0, feather))):
        deepest = F.max_pool2d(deepest, window, stride=1, padding=padding)
    return (inside / deepest[0, 0].clamp(min=1)).clamp(max=1)


def composite(edited: Tensor, source: Tensor, mask: Tensor, feather: int) -> Tensor:
    """`edited` inside the mask, `source` outside: exactly, value for value.

    Args:
        edited, source: [3, H, W] in [0, 1].
        mask, feather: as for `opacity`.

    Returns:
        [3, H, W].
    """
    weight = opacity(mask, feather)
    mixed = torch.lerp(source, edited, weight)
    return torch.where(mask, mixed, source)
