"""Recorded maps kept in fewer bytes: int8 with a scale a channel, or bfloat16.

A map is narrowed as it is recorded and widened where a sparse pass, or a weighted sum, reads it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 127


@dataclass(frozen=True)
class Quantised:
    """A map in fewer bytes.

    Attributes:
        codes: [B, P, C], int8 or bfloat16.
        scale: what they are multiplied by, [B, 1, C] or of one element, in the dtype of the map.
    """

    codes: Tensor
    scale: Tensor

    def widen(self) -> Tensor:
        """The map [B, P, C], in memory of its own."""
        return self.codes.to(self.scale.dtype).mul_(self.scale)

    def add_to(self, total: Tensor, weight: float) -> None:
        """Add the map, times a weight, to a tensor [B, P, C]."""
        total.addcmul_(self.codes, self.scale, value=weight)


def quantise(x: Tensor, dtype: torch.dtype) -> Tensor | Quantised:
    """A map in fewer bytes, or as it is where that would save none.

    Args:
        x: rows or tokens [B, P, C], floating point.
        dtype: int8, or bfloat16.
    """
    if x.element_size() <= dtype.itemsize or not x.shape[1]:
        return x
    if dtype is not torch.int8:
        return Quantised(x.to(dtype), x.new_ones(()))
    # The codes are those of the scale as it is rounded here, so it adds no error of its own.
    scale = (x.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=torch.finfo(x.dtype).tiny)
    return Quantised((x / scale).round().clamp(-LARGEST, LARGEST).to(torch.int8), scale)
