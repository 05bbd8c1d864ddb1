"""The active sets of some masks, made on the host and kept on the device of the network."""

from functools import cached_property

import torch

from sgm.sparse.active import ActiveSet, Geometry, bucket
from sgm.sparse.masks import MaskPyramid, Resolution
from sgm.sparse.pixels import PixelGeometry


class SparseStateError(RuntimeError):
    """A sparse pass without the recording or the masks it needs; one sentence."""


# How the outputs of a convolution are chosen: in blocks or pixel by pixel.
AnyGeometry = Geometry | PixelGeometry
# Which active set of some masks: of a convolution, at a resolution of its input.
SetKey = tuple[AnyGeometry, Resolution]


class MaskSets:
    """The active sets of some masks, each made once, when it is first asked for.

    Args:
        masks: bool [h, w] by resolution.
        padded: whether lists of pixels are made as long as their buckets (see
            `sgm.sparse.active.bucket`), as CUDA graphs need it.
    """

    def __init__(self, masks: MaskPyramid, padded: bool) -> None:
        self.masks, self._padded = masks, padded
        self._host = {size: mask.cpu() for size, mask in masks.items()}
        self._sets: dict[SetKey, ActiveSet] = {}

    @cached_property
    def size(self) -> tuple[tuple[Resolution, int], ...]:
        """The resolution and the bucket of each level. Masks of one size share their graphs."""
        return tuple((level, bucket(int(mask.sum()))) for level, mask in self._host.items())

    def get(self, key: SetKey, device: torch.device) -> ActiveSet:
        """A set on a device. Making it waits for the device.

        Raises:
            SparseStateError: the masks lack its resolution.
        """
        if key not in self._sets:
            geometry, size = key
            try:
                active = geometry.active_set(self._host, size)
            except KeyError as error:
                known = ", ".join(f"{h}x{w}" for h, w in self.masks)
                height, width = error.args[0]
                raise SparseStateError(
                    f"The masks have no level of {height}x{width}, which the network comes to; "
                    f"they have {known}. A picture whose sides the network can halve evenly has "
                    "all that it needs."
                ) from None
            active = active.pad() if self._padded else active
            self._sets[key] = active.resolve().to(device)
        return self._sets[key]
