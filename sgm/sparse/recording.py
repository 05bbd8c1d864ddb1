"""What a full pass leaves for sparse ones.

A layer records maps as rows [B, P, C], one for each of the P pixels, and keys and values as tokens
[B, P, C]. They may be kept in fewer bytes, and are widened to the dtype of the network when a pass
reads them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sgm.sparse.masks import MaskPyramid, Resolution
from sgm.sparse.norm import Affine, Moments

LARGEST = 127  # code of a quantised map


@dataclass(frozen=True)
class Quantised:
    """A map in fewer bytes.

    Attributes:
        codes: [B, P, C], int8 or bfloat16.
        scale: what the codes are multiplied by, in the dtype of the map: [B, 1, C] for int8, one
            element for bfloat16.
    """

    codes: Tensor
    scale: Tensor

    def widen(self) -> Tensor:
        """The map [B, P, C], in memory of its own."""
        return self.codes.to(self.scale.dtype).mul_(self.scale)

    def add_to(self, total: Tensor, weight: float) -> None:
        """Add the map, times a weight, to a tensor [B, P, C]."""
        total.addcmul_(self.codes, self.scale, value=weight)


@dataclass(frozen=True)
class Part:
    """Some rows of a map. The others are not known, and are zero when it is widened.

    Attributes:
        rows: [B, n, C], perhaps in fewer bytes.
        pixels: int64 [n], the pixel number of each row.
        count: P, the number of pixels of the map.
    """

    rows: Tensor | Quantised
    pixels: Tensor
    count: int

    def widen(self) -> Tensor:
        """The map [B, P, C], in memory of its own."""
        rows = self.rows.widen() if isinstance(self.rows, Quantised) else self.rows
        whole = rows.new_zeros(rows.shape[0], self.count, rows.shape[2])
        return whole.index_copy_(1, self.pixels, rows)


Recorded = Tensor | Quantised | Part | Affine | Moments | Resolution
ROWS = "rows"  # the name of a layer's recorded rows of a whole map


def quantise(x: Tensor, dtype: torch.dtype) -> Tensor | Quantised:
    """A map in fewer bytes: bfloat16, or int8 with a scale for each channel. As it is where that
    would save nothing.

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


def tensors_of(value: Recorded) -> tuple[Tensor, ...]:
    """The tensors of a recorded value."""
    match value:
        case Affine():
            return (value.scale, value.shift)
        case Moments():
            return (value.mean, value.square)
        case Quantised():
            return (value.codes, value.scale)
        case Tensor():
            return (value,)
    return ()


def with_tensors(value: Recorded, change: Callable[[int, Tensor], Tensor]) -> Recorded:
    """A recorded value with each of its tensors replaced by `change(number, tensor)`; numbers are
    places in `tensors_of`."""
    parts = [change(number, part) for number, part in enumerate(tensors_of(value))]
    match value:
        case Affine() | Moments() | Quantised():
            return type(value)(*parts)
        case Tensor():
            return parts[0]
    return value


def size_of(values: Mapping[str, Recorded]) -> Resolution:
    """The (height, width) of a layer's whole map, among its recorded values."""
    size = values["size"]
    assert isinstance(size, tuple)
    return size


def narrowed(value: Recorded, dtype: torch.dtype | None) -> Recorded:
    """A recorded value in fewer bytes, if it is rows or tokens [B, P, C]; None leaves it."""
    if dtype is None or not isinstance(value, Tensor) or value.ndim != 3:
        return value
    return quantise(value, dtype)


def by_dtype(*lists: Sequence[Tensor]) -> list[tuple[list[Tensor], ...]]:
    """Parallel lists of tensors, split into groups in which each list has one dtype. On CUDA an
    operation on many tensors (`torch._foreach_*`) then takes a few launches, and otherwise as many
    as there are tensors."""
    groups: dict[tuple[torch.dtype, ...], list[tuple[Tensor, ...]]] = {}
    for together in zip(*lists, strict=True):
        groups.setdefault(tuple(x.dtype for x in together), []).append(together)
    return [tuple(map(list, zip(*group, strict=True))) for group in groups.values()]


def widened(value: Recorded) -> Recorded:
    """A recorded value in the dtype of the network; a copy of one that is quantised or a part."""
    return value.widen() if isinstance(value, Quantised | Part) else value


@dataclass(eq=False)
class Recording:
    """What one full pass left for sparse ones, by layer and name.

    Attributes:
        masks: bool by resolution, of the only sparse passes that it serves; layers of preset `fast`
            then keep only what these read. None if it serves any masks.
        dtype: of the rows and tokens in it, int8 or bfloat16; None for the network's.
        values: by the names of a layer and of a value of it.
        largest: pixels of the largest maps whose rows are kept, since `SparseState.fill` computes
            the others anew; None for no limit.
    """

    masks: MaskPyramid | None = None
    dtype: torch.dtype | None = None
    values: dict[tuple[str, str], Recorded] = field(default_factory=dict)
    largest: int | None = None

    def keeps(self, values: Mapping[str, Recorded]) -> bool:
        """Whether the rows of a layer are kept, given its values."""
        return self.largest is None or math.prod(size_of(values)) <= self.largest

    @property
    def mask_specific(self) -> bool:
        """Whether it serves the sparse passes of one mask only."""
        return self.masks is not None

    def by_layer(self) -> dict[str, dict[str, Recorded]]:
        """The values of each layer by their names."""
        layers: dict[str, dict[str, Recorded]] = {}
        for (layer, key), value in self.values.items():
            layers.setdefault(layer, {})[key] = value
        return layers

    def size_in_bytes(self) -> int:
        """Bytes of its tensors."""
        parts = (part for value in self.values.values() for part in tensors_of(value))
        return sum(part.numel() * part.element_size() for part in parts)


def each_tensor(recording: Recording, change: Callable[[Tensor], Tensor]) -> Recording:
    """A recording with every tensor replaced by the result of `change`."""

    def changed(value: Recorded) -> Recorded:
        return with_tensors(value, lambda number, part: change(part))

    values = {key: changed(value) for key, value in recording.values.items()}
    return Recording(recording.masks, recording.dtype, values)


def room_for(recording: Recording) -> Recording:
    """Uninitialised memory for the values of a recording like this one, widened."""

    def room(value: Recorded) -> Recorded:
        if isinstance(value, Quantised):
            return torch.empty_like(value.codes, dtype=value.scale.dtype)
        return with_tensors(value, lambda number, part: torch.empty_like(part))

    values = {key: room(value) for key, value in recording.values.items()}
    return Recording(recording.masks, values=values)


def narrow(recording: Recording, dtype: torch.dtype | None) -> Recording:
    """A recording with its rows and tokens in fewer bytes; None leaves it."""
    values = {key: narrowed(value, dtype) for key, value in recording.values.items()}
    return Recording(recording.masks, dtype, values)
