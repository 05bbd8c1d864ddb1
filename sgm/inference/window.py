"""The part of a picture that a network sees of it: which rectangle, and at which size."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.specs import SIZE_MULTIPLE, ModelSpec

logger = logging.getLogger(__name__)

# Margin of a crop around the edit where none is given: a share of the edit's longer side, and the
# least of it in pixels.
MARGIN, LEAST_MARGIN = 0.25, 32
# Times the pixels of the model's size from which a picture counts as larger, and as far larger.
LARGER, FAR_LARGER = 1.25, 2.0


@dataclass(frozen=True)
class Window:
    """A rectangle of a picture.

    Attributes:
        top, left, height, width: of the rectangle, in pixels of the picture.
        size: (height, width) at which the network sees it, multiples of 64.
    """

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    def of(self, x: Tensor) -> Tensor:
        """The rectangle of a picture or mask [..., H, W]: [..., height, width], a view."""
        rows = slice(self.top, self.top + self.height)
        return x[..., rows, self.left : self.left + self.width]

    def seen(self, picture: Tensor) -> Tensor:
        """The rectangle of a picture [3, H, W] at the size that the network sees, [3, h, w]."""
        return _resized(self.of(picture), self.size)

    def seen_levels(self, levels: Tensor) -> Tensor:
        """The rectangle of a mask, bool or float [H, W], at the size that the network sees, [h, w].
        Each of its pixels has the highest level it covers, so that no mark is lost."""
        values = self.of(levels)[None, None].float()
        return F.adaptive_max_pool2d(values, self.size)[0, 0].to(levels.dtype)

    def back(self, picture: Tensor) -> Tensor:
        """The network's picture [3, h, w] at the size of the rectangle, [3, height, width]."""
        return _resized(picture, (self.height, self.width))


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture [3, h, w] at another size; itself at its own."""
    if tuple(picture.shape[1:]) == size:
        return picture
    return F.interpolate(picture[None], size=size, mode="bicubic", antialias=True)[0]


def is_larger(size: Sequence[int], trained: Sequence[int]) -> bool:
    """Whether a picture has clearly more pixels than a model was trained for: a quarter more. Both
    are (height, width)."""
    return math.prod(size) > LARGER * math.prod(trained)


def advise_on_size(size: Sequence[int], spec: ModelSpec, advice: str) -> None:
    """Warn where a whole picture of `size` (height, width) has twice the pixels that a model was
    trained for, or more; `advice` is the end of the sentence."""
    if math.prod(size) >= FAR_LARGER * math.prod(spec.trained_size):
        logger.warning(
            "The %s model was trained at %dx%d (width x height) and the picture is %dx%d; %s.",
            *(spec.name, *spec.trained_size[::-1], *size[::-1], advice),
        )


def window_around(marked: Tensor, trained: tuple[int, int], margin: int | None = None) -> Window:
    """The crop for an edit. It has the proportions of its `size`, as far as the picture goes.

    Args:
        marked: bool [H, W], where the edit is; not empty.
        trained: (height, width) of the model's size; the network gets about as many pixels.
        margin: pixels around the edit; None for a share of it, and at least the model's size, so
            that the crop is never enlarged.
    """
    rows, columns = torch.nonzero(marked.any(1)), torch.nonzero(marked.any(0))
    spans = [(int(found[0]), int(found[-1]) + 1) for found in (rows, columns)]
    around = margin
    if around is None:
        around = max(LEAST_MARGIN, round(MARGIN * max(high - low for low, high in spans)))
    lengths = [high - low + 2 * around for low, high in spans]
    if margin is None:
        lengths = [max(length, least) for length, least in zip(lengths, trained, strict=True)]
    lengths = [min(length, whole) for length, whole in zip(lengths, marked.shape, strict=True)]
    ratio = math.sqrt(lengths[1] / lengths[0])
    side = math.sqrt(math.prod(trained))
    size = tuple(
        max(1, round(length / SIZE_MULTIPLE)) * SIZE_MULTIPLE
        for length in (side / ratio, side * ratio)
    )
    # Widen the side that is short for these proportions, as far as the picture goes.
    height = min(marked.shape[0], max(lengths[0], round(lengths[1] * size[0] / size[1])))
    width = min(marked.shape[1], max(lengths[1], round(lengths[0] * size[1] / size[0])))
    starts = [
        min(max(0, (low + high - length) // 2), whole - length)
        for (low, high), length, whole in zip(spans, (height, width), marked.shape, strict=True)
    ]
    return Window(starts[0], starts[1], height, width, (size[0], size[1]))
