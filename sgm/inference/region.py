"""A region of a picture that bounds where its later edits may be, so that less has to be kept."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.errors import UserError
from sgm.inference.inpainting import Inpainting
from sgm.inference.presets import Recipe
from sgm.inference.sdedit import SDEdit
from sgm.inference.stores import Store
from sgm.inference.track import DECODER, ENCODER
from sgm.sparse.masks import MaskPyramid, Resolution, dilate, grown
from sgm.sparse.pixels import DOUBLED, DOWN, DOWN_END, SAME
from sgm.sparse.recording import ROWS, Recorded, Recording, size_of, with_tensors
from sgm.words import RecordingMemory, Task

REGION = "region"  # store key of its mask
MASK = ("", "mask")  # in the recording of that name
# How far a pass of the decoder reads that fills in its two highest levels, at the level before, in
# its pixels: six of the second's convolutions, and half of seven of the highest's.
FILL_REACH = 6


class Region:
    """Where edits may change a picture, and what they read of its recordings.

    Args:
        limit: bool [H, W], where edits and the rings around them may be; sides multiples of 64.
        recipe: of the edits.
    """

    def __init__(self, limit: Tensor, recipe: Recipe) -> None:
        self.limit = limit
        drawn = recipe.sdedit + recipe.sdedit_decoder
        self.drawn_limit = grown(limit, drawn)
        wide = max(drawn, recipe.sdedit_early if recipe.early else 0)
        self._read: Mapping[str, MaskPyramid] = {
            "inpainting": read_by(_levels(limit, recipe)),
            "sdedit": read_by(_levels(grown(limit, wide), recipe)),
            "autoencoder": _read_to_fill(_levels(self.drawn_limit, recipe), limit.shape),
        }

    @classmethod
    def around(cls, mask: Tensor, recipe: Recipe) -> "Region":
        """The region of all edits whose masks lie within a mask, bool [H, W]. ValueError if that is
        empty."""
        if not mask.any():
            raise ValueError("The region is empty, so it allows no edit; leave it out.")
        ring = 0 if recipe.blend is None else recipe.blend.width(mask.shape)
        return cls(grown(mask, ring), recipe)

    def read(self, name: str) -> MaskPyramid:
        """Which pixels edits read of the recording with a name: bool by resolution."""
        if name in (ENCODER, DECODER):
            return self._read["autoencoder"]
        return self._read[Task.SDEDIT if Task.SDEDIT in name else Task.INPAINTING]

    def only_read(self, name: str, recording: Recording) -> Recording:
        """A recording of whole maps with zeros in the rows that no edit reads."""
        read = self.read(name)
        return unbounded(bounded(recording, read), read)

    def holds(self, changed: Tensor, name: str) -> bool:
        """Whether recordings of a name can be brought up to date where a picture has changed, bool
        [H, W], by an edit of the region."""
        return Task.SDEDIT in name or not (changed & ~self.limit).any()

    def recording(self) -> Recording:
        """The region as a recording, to be kept beside the others."""
        return Recording(values={MASK: self.limit})


class BoundedStore(Store):
    """A store that keeps only what edits within a region read of each recording.

    Args:
        store: where that is kept.
        region: of the edits.
    """

    def __init__(self, store: Store, region: Region) -> None:
        self._store, self._region = store, region

    @property
    def place(self) -> RecordingMemory:
        return self._store.place

    def put(self, name: str, recording: Recording) -> None:
        self._store.put(name, bounded(recording, self._region.read(name)))

    def names(self) -> set[str]:
        return self._store.names()

    def forget(self, name: str) -> None:
        self._store.forget(name)

    def get(self, name: str) -> Recording:
        """Rows that no edit reads are zero."""
        return unbounded(self._store.get(name), self._region.read(name))


def size_kept(region: Region | None, name: str, recording: Recording) -> int:
    """Bytes that are kept of the recording with a name: all, or what edits in a region read."""
    kept = recording if region is None else bounded(recording, region.read(name))
    return kept.size_in_bytes()


def check_within(region: Region | None, edit: Inpainting | SDEdit, recipe: Recipe) -> None:
    """Refuse an edit that reaches, with its ring, beyond the region that was recorded; None for the
    whole picture.

    Raises:
        UserError: part of it lies outside.
    """
    if region is None:
        return
    drawn = isinstance(edit, SDEdit)
    asked, touched = edit.marked if drawn else edit.mask > 0, edit.touched(recipe)
    outside = asked & ~region.limit
    if touched is not None:
        outside = outside | touched & ~(region.drawn_limit if drawn else region.limit)
    if outside.any():
        raise UserError(
            f"The edit spans {box(asked)}, and edits within {box(region.limit)} were recorded, "
            "their rings included; edit there, or record a larger region or the whole picture."
        )


def region_in(store: Store, recipe: Recipe) -> Region | None:
    """The region of the recordings in a store; None if they serve the whole picture."""
    if REGION not in store.names():
        return None
    limit = store.get(REGION).values[MASK]
    assert isinstance(limit, Tensor)
    return Region(limit.cpu(), recipe)


def box(mask: Tensor) -> str:
    """The rows and columns of a mask, bool [H, W], as text."""
    sides = [mask.any(axis).nonzero()[:, 0] for axis in (1, 0)]
    (top, bottom), (left, right) = ((int(side[0]), int(side[-1])) for side in sides)
    return f"rows {top} to {bottom}, columns {left} to {right}"


def _levels(limit: Tensor, recipe: Recipe) -> MaskPyramid:
    """Masks that hold those of every edit within a limit: all that it touches at each resolution,
    and their growth there."""
    growth = [recipe.level] if isinstance(recipe.level, int) else list(recipe.level)
    levels: dict[tuple[int, int], Tensor] = {}
    size = (limit.shape[0], limit.shape[1])
    while True:
        touched = F.adaptive_max_pool2d(limit[None, None].float(), size)[0, 0] > 0
        by = growth[min(len(levels), len(growth) - 1)]
        levels[size] = dilate(touched, max(by, recipe.decoder_level))
        if min(size) == 1:
            return levels
        size = (size[0] // 2, size[1] // 2)


def read_by(masks: MaskPyramid) -> MaskPyramid:
    """Which pixels sparse passes read, with these masks or any part of them: bool by resolution,
    the active ones and those around them."""
    found = {}
    for size, active in masks.items():
        read = active
        for geometry in (SAME, DOWN, DOWN_END, DOUBLED):
            outputs = masks.get(geometry.out_size(size))
            if outputs is not None:
                read = read | geometry.read(outputs, size)
        found[size] = read
    return found


def _read_to_fill(masks: MaskPyramid, size: Sequence[int]) -> MaskPyramid:
    """As `read_by`, for encoder and decoder of a picture of `size`: also by the passes that compute
    what their recordings may have left out (`Recorded.largest`). These begin at a quarter of the
    sides, and read farther there."""
    begin = (size[0] // 4, size[1] // 4)
    read = read_by(masks)
    return {**read, begin: read[begin] | grown(masks[begin], FILL_REACH)}


def bounded(recording: Recording, read: MaskPyramid) -> Recording:
    """A recording that keeps, of each map, only the rows [B, n, C] of the pixels that are read
    (bool by resolution). Keys and values stay whole: every active pixel attends to all of them."""
    return _with_rows(recording, read, lambda rows, pixels, count: rows.index_select(1, pixels))


def unbounded(recording: Recording, read: MaskPyramid) -> Recording:
    """The inverse of `bounded`: rows [B, P, C] of whole maps, with zeros at all other pixels."""

    def put(rows: Tensor, pixels: Tensor, count: int) -> Tensor:
        whole = rows.new_zeros(rows.shape[0], count, rows.shape[2])
        return whole.index_copy_(1, pixels, rows)

    return _with_rows(recording, read, put)


def _with_rows(
    recording: Recording, read: MaskPyramid, change: Callable[[Tensor, Tensor, int], Tensor]
) -> Recording:
    """A recording whose rows are changed, given which pixels are read and how many there are."""

    @cache  # layers of one size read the same pixels
    def pixels(size: Resolution, device: torch.device) -> Tensor:
        return read[size].flatten().nonzero()[:, 0].to(device)

    def changed(size: Resolution, value: Recorded) -> Recorded:
        def part(number: int, tensor: Tensor) -> Tensor:
            # The second tensor of a quantised map is its scale, which has no rows.
            if number:
                return tensor
            return change(tensor, pixels(size, tensor.device), math.prod(size))

        return with_tensors(value, part)

    values = {
        (site, key): changed(size_of(found), value) if key == ROWS else value
        for site, found in recording.by_layer().items()
        for key, value in found.items()
    }
    return Recording(recording.masks, recording.dtype, values)
