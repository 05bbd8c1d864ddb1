"""Active sets: which outputs of a convolution are computed, and which inputs they read.

SIGE (Li et al., 2022, section 3.2) works in square blocks. Here a block is only a way to choose
outputs: an `ActiveSet` is a list of output pixels with the table of their neighbours, so that a
set chosen per pixel runs through the same operators.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from sgm.sparse.masks import MaskPyramid, Resolution

OUTSIDE = -1


@dataclass(frozen=True)
class Geometry:
    """Shape of a convolution and of the blocks in which its outputs are chosen.

    Attributes:
        kernel, stride: of the convolution.
        padding, padding_end: zeros at the top and left, and at the bottom and right.
        out_block: outputs along the side of a block.
    """

    kernel: int
    stride: int
    padding: int
    padding_end: int
    out_block: int

    @property
    def in_block(self) -> int:
        """Inputs along the side of a block."""
        return (self.out_block - 1) * self.stride + self.kernel

    def out_length(self, length: int) -> int:
        """Outputs along an axis of `length` inputs."""
        return (length + self.padding + self.padding_end - self.kernel) // self.stride + 1

    @property
    def block_stride(self) -> int:
        """Inputs from one block to the next."""
        return self.out_block * self.stride

    def active_set(self, masks: MaskPyramid, size: Resolution) -> "ActiveSet":
        """The published active set for an input map of `size` (height, width).

        Raises:
            KeyError: the masks lack this resolution.
        """
        return block_active_set(masks[size], self)


# The blocks of the published engine.
CONV3X3 = Geometry(kernel=3, stride=1, padding=1, padding_end=1, out_block=4)
CONV1X1 = Geometry(kernel=1, stride=1, padding=0, padding_end=0, out_block=4)
UNET_DOWN = Geometry(kernel=3, stride=2, padding=1, padding_end=1, out_block=2)
VAE_DOWN = Geometry(kernel=3, stride=2, padding=0, padding_end=1, out_block=2)


def active_blocks(mask: Tensor, geometry: Geometry) -> Tensor:
    """The blocks whose input window holds a True pixel.

    Args:
        mask: bool [H, W] at the resolution of the convolution's input.

    Returns:
        int64 [N, 2]: row and column of each block's first input, row-major; may be negative.
    """
    height, width = mask.shape
    size, step, pad = geometry.in_block, geometry.block_stride, geometry.padding
    counts = [-(-(length + pad) // step) for length in (height, width)]
    # Zeros beyond the last pixel, so that the last blocks are whole.
    after = [
        max(0, (count - 1) * step + size - pad - length)
        for count, length in zip(counts, (height, width), strict=True)
    ]
    padded = F.pad(mask[None, None].float(), (pad, after[1], pad, after[0]))
    hit = F.max_pool2d(padded, size, stride=step)[0, 0][: counts[0], : counts[1]] > 0
    return hit.nonzero() * step - pad


def _flat(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Row-major pixel numbers; `OUTSIDE` where a position is not in the picture."""
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside, rows * width + columns, OUTSIDE)


def bucket(count: int) -> int:
    """The length to which a list of `count` is padded: at most an eighth longer above 512.

    Multiples of 64, the rows of a kernel's tile; from 1024 on sixteen lengths an octave.
    """
    step = max(64, 1 << max(0, count.bit_length() - 5))
    return -(-count // step) * step


def fill_up(pixels: Tensor) -> Tensor:
    """A list [n] of pixels made as long as its bucket by repeating its last one."""
    if not pixels.numel():
        return pixels
    return torch.cat([pixels, pixels[-1:].expand(bucket(len(pixels)) - len(pixels))])


@dataclass(frozen=True, eq=False)
class ActiveSet:
    """The outputs to compute at one resolution, and the inputs that they read.

    Attributes:
        in_size, out_size: (height, width) of the input and the output map.
        outputs: int64 [n], pixel numbers in the output map; `OUTSIDE` for an output of a block
            that sticks out of it (computed like the others, as published, and never written).
        inputs: int64 [n, kernel * kernel], pixel numbers in the input map that each output reads,
            row-major over the kernel; `OUTSIDE` reads zero.
        padded: whether every list has one of a few lengths (`bucket`), so that the lists of
            another mask often fit in the same memory. Lists of pixels that are written or read
            then end in repetitions, which write or read the same values again.
        geometry, corners: of a set of whole blocks their shape, and int64 [N, 2], row and column
            of each block's first input; None for any other set.
    """

    in_size: tuple[int, int]
    out_size: tuple[int, int]
    outputs: Tensor
    inputs: Tensor
    padded: bool = field(default=False, kw_only=True)
    geometry: Geometry | None = field(default=None, kw_only=True)
    corners: Tensor | None = field(default=None, kw_only=True)

    @property
    def count(self) -> int:
        """Number of outputs, those outside included."""
        return self.outputs.numel()

    @cached_property
    def _support_and_table(self) -> tuple[Tensor, Tensor]:
        support, table = torch.unique(self.inputs, return_inverse=True)
        if support.numel() and support[0] == OUTSIDE:  # sorted, so it stands first
            support = support[1:]
            table = torch.where(table == 0, support.numel(), table - 1)
        if not self.padded:
            return support, table
        longer = fill_up(support)
        return longer, torch.where(table == support.numel(), longer.numel(), table)

    @property
    def support(self) -> Tensor | None:
        """int64 [m]: the different pixels of the input map that are read, ascending; None for all
        of them, in their order."""
        return self._support_and_table[0]

    @property
    def table(self) -> Tensor:
        """int64 [n, kernel * kernel]: positions in `support`; m stands for a zero."""
        return self._support_and_table[1]

    @cached_property
    def inside(self) -> Tensor | None:
        """float32 [n, 1]: 1 for outputs inside the map and 0 for others; None if all are inside."""
        found = self.outputs != OUTSIDE
        return None if bool(found.all()) else found.float()[:, None]

    @cached_property
    def written(self) -> tuple[Tensor, Tensor | None]:
        """int64 [m] each: output pixels inside the map, and their positions in `outputs`, or None
        for all in order."""
        positions = (self.outputs != OUTSIDE).nonzero()[:, 0]
        if self.padded:
            positions = fill_up(positions)
        elif len(positions) == self.count:
            return self.outputs, None
        return self.outputs[positions], positions

    @cached_property
    def outputs32(self) -> Tensor:
        """`outputs` as int32 [n]."""
        return self.outputs.int()

    @cached_property
    def inputs32(self) -> Tensor:
        """`inputs` as int32 [kernel * kernel, n]: the outputs of a tile lie side by side."""
        return self.inputs.t().int().contiguous()

    @cached_property
    def compact32(self) -> tuple[Tensor, Tensor]:
        """`support` as int32 [m], and `table` as int32 [kernel * kernel, n] with `OUTSIDE` where
        a zero is read."""
        table = torch.where(self.table == self.support.numel(), OUTSIDE, self.table)
        return self.support.int(), table.t().int().contiguous()

    @cached_property
    def corners32(self) -> tuple[Tensor, Tensor]:
        """`corners` as int32 [N, 2], and the same of each block's first output; of sets of blocks
        only."""
        assert self.geometry is not None and self.corners is not None
        first = (self.corners + self.geometry.padding) // self.geometry.stride
        # The result of `nonzero` may lie in memory column by column.
        return self.corners.int().contiguous(), first.int().contiguous()

    def pad(self) -> Self:
        """The same set with lists as long as their buckets; no longer one of whole blocks.

        The outputs that are added are `OUTSIDE` and read nothing: computed, never written.
        """
        more = bucket(self.count) - self.count
        outputs = F.pad(self.outputs, (0, more), value=OUTSIDE)
        inputs = F.pad(self.inputs, (0, 0, 0, more), value=OUTSIDE)
        return replace(
            self, outputs=outputs, inputs=inputs, padded=True, geometry=None, corners=None
        )

    def resolve(self) -> Self:
        """Make now the derived tables that wait for the device, so that no step has to wait;
        returns itself."""
        _ = self.written, self.inside
        if self.inputs.shape[1] > 1:
            _ = self.table
        return self

    def to(self, device: torch.device) -> Self:
        """A copy on another device, derived tables included: a set is made where its mask is, and
        moved whole."""
        return self._each(lambda tensor: tensor.to(device))

    def clone(self) -> Self:
        """A copy in memory of its own, derived tables included."""
        return self._each(Tensor.clone)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with the results of `change` for its tensors."""
        changed = copy(self)
        for name, value in vars(self).items():
            vars(changed)[name] = pytree.tree_map_only(Tensor, change, value)
        return changed


def block_active_set(mask: Tensor, geometry: Geometry) -> ActiveSet:
    """The published active set: all outputs of all active blocks, block by block.

    Args:
        mask: bool [H, W] at the resolution of the convolution's input.
    """
    height, width = mask.shape
    g = geometry
    out_size = (g.out_length(height), g.out_length(width))
    corners = active_blocks(mask, g)  # [N, 2]
    side = torch.arange(g.out_block, device=mask.device)
    shape = (len(corners), g.out_block, g.out_block)
    rows = (corners[:, 0, None, None] + side[:, None] * g.stride).expand(shape).reshape(-1)
    columns = (corners[:, 1, None, None] + side[None] * g.stride).expand(shape).reshape(-1)
    outputs = _flat((rows + g.padding) // g.stride, (columns + g.padding) // g.stride, *out_size)
    tap = torch.arange(g.kernel, device=mask.device)
    tap_rows = (rows[:, None, None] + tap[:, None]).expand(-1, g.kernel, g.kernel)
    tap_columns = (columns[:, None, None] + tap[None]).expand(-1, g.kernel, g.kernel)
    inputs = _flat(tap_rows, tap_columns, height, width).reshape(len(rows), g.kernel**2)
    return ActiveSet((height, width), out_size, outputs, inputs, geometry=g, corners=corners)
