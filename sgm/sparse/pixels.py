"""Active sets of single pixels, and the few pixels around them that a convolution reads.

A network of preset `fast` hands on nothing but the rows of its active pixels, as a map
[B, C, n, 1]. A 3x3 convolution also reads neighbours that are not active; those come from the
recording. So the map that it reads is short: the active rows, then the recorded rows around them.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from sgm.sparse.active import OUTSIDE, ActiveSet, bucket, fill_up
from sgm.sparse.masks import MaskPyramid, Resolution


@dataclass(frozen=True, eq=False)
class PixelSet(ActiveSet):
    """An active set whose input map is the active rows followed by recorded ones.

    Attributes:
        around: int64 [m], pixel numbers in the whole input map of the rows that are recorded;
            `inputs` counts them from the number of active inputs on.
    """

    around: Tensor = field(kw_only=True)

    @property
    def support(self) -> None:
        """None: every row of the short map is read, in its order."""
        return None

    @cached_property
    def table(self) -> Tensor:
        """int64 [n, kernel * kernel]: `inputs`, with the number of rows for a zero."""
        return torch.where(self.inputs == OUTSIDE, self.in_size[0], self.inputs)

    def pad(self) -> Self:
        """The same set with lists as long as their buckets. In the short map the padded active rows
        come first, then the padded recorded ones."""
        active = self.in_size[0] - len(self.around)
        wide, around = bucket(active), fill_up(self.around)
        moved = torch.where(self.inputs >= active, self.inputs + wide - active, self.inputs)
        longer = replace(self, inputs=moved, around=around, in_size=(wide + len(around), 1))
        return super(PixelSet, longer).pad()


@dataclass(frozen=True)
class PixelGeometry:
    """Shape of a convolution whose outputs are chosen pixel by pixel.

    Attributes:
        kernel, stride: of the convolution.
        padding, padding_end: zeros at the top and left, and at the bottom and right.
        scale: the input is first enlarged by this, by nearest neighbours.
        short: whether the input comes as the rows of its active pixels, and not as a whole map.
    """

    kernel: int
    stride: int = 1
    padding: int = 0
    padding_end: int = 0
    scale: int = 1
    short: bool = True

    def out_length(self, length: int) -> int:
        """Outputs along an axis of `length` inputs."""
        padded = length * self.scale + self.padding + self.padding_end
        return (padded - self.kernel) // self.stride + 1

    def active_set(self, masks: MaskPyramid, size: Resolution) -> ActiveSet:
        """The set for an input map of `size` (height, width).

        Raises:
            KeyError: the masks lack a resolution.
        """
        out_size = self.out_size(size)
        outputs = masks[out_size].flatten().nonzero()[:, 0]
        inputs = self._inputs(outputs, size, out_size)
        if not self.short:
            return ActiveSet(size, out_size, outputs, inputs)
        return _shorten(masks[size].flatten(), out_size, outputs, inputs)

    def out_size(self, size: Resolution) -> Resolution:
        """Height and width of the output of an input map."""
        return self.out_length(size[0]), self.out_length(size[1])

    def read(self, outputs: Tensor, size: Resolution) -> Tensor:
        """The pixels of an input map that some outputs read, bool [h, w].

        Args:
            outputs: bool, of `out_size(size)`.
        """
        inputs = self._inputs(outputs.flatten().nonzero()[:, 0], size, self.out_size(size))
        read = torch.zeros(size[0] * size[1], dtype=torch.bool, device=outputs.device)
        read[inputs[inputs != OUTSIDE]] = True
        return read.unflatten(0, size)

    def _inputs(self, outputs: Tensor, size: Resolution, out_size: Resolution) -> Tensor:
        """Pixel numbers in the input map that each output reads; `OUTSIDE` reads zero."""
        tap = torch.arange(self.kernel, device=outputs.device) - self.padding

        def along(position: Tensor, length: int) -> Tensor:
            at = position[:, None] * self.stride + tap  # [n, kernel], in the enlarged map
            inside = (at >= 0) & (at < length * self.scale)
            return torch.where(inside, at // self.scale, OUTSIDE)

        rows = along(outputs // out_size[1], size[0])[:, :, None]
        columns = along(outputs % out_size[1], size[1])[:, None, :]
        numbers = rows * size[1] + columns
        return torch.where((rows < 0) | (columns < 0), OUTSIDE, numbers).flatten(1)


def _shorten(active: Tensor, out_size: Resolution, outputs: Tensor, inputs: Tensor) -> PixelSet:
    """Renumber `inputs` from the whole map (bool [P]: which are active) to the short one."""
    read = torch.zeros_like(active)
    read[inputs[inputs != OUTSIDE]] = True
    around = (read & ~active).nonzero()[:, 0]
    numbers = torch.full((len(active) + 1,), OUTSIDE, device=active.device)  # the last: outside
    count = int(active.sum())
    numbers[:-1][active] = torch.arange(count, device=active.device)
    numbers[around] = torch.arange(len(around), device=active.device) + count
    return PixelSet((count + len(around), 1), out_size, outputs, numbers[inputs], around=around)


# 3x3 convolutions that read a short map: of the same size; of stride 2, padded on every side; of
# stride 2, padded at the end; of a map doubled by nearest neighbours.
SAME = PixelGeometry(3, padding=1, padding_end=1)
DOWN = PixelGeometry(3, 2, padding=1, padding_end=1)
DOWN_END = PixelGeometry(3, 2, padding_end=1)
DOUBLED = PixelGeometry(3, padding=1, padding_end=1, scale=2)
# The pixels of a map themselves.
PIXELS = PixelGeometry(kernel=1, short=False)
