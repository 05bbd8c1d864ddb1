"""Recordings for edits within a region: of the rows of a map, those that any such edit reads.

Keys and values stay whole: every active pixel attends to all of them.
"""

from collections.abc import Callable

from torch import Tensor

from sgm.sparse.masks import MaskPyramid
from sgm.sparse.pixels import DOUBLED, DOWN, DOWN_END, SAME
from sgm.sparse.recording import Recorded, Recording, with_tensors

ROWS = "rows"  # the recorded values that are read by active pixels


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


def bounded(recording: Recording, read: MaskPyramid) -> Recording:
    """A recording with the rows [B, n, C] of these pixels alone."""
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

    def changed(site: str, value: Recorded) -> Recorded:
        size = recording.values[site, "size"]
        assert isinstance(size, tuple)
        pixels, count = read[size].flatten().nonzero()[:, 0], size[0] * size[1]

        def part(number: int, tensor: Tensor) -> Tensor:
            # The second tensor of a quantised map is its scale, which has no rows.
            return tensor if number else change(tensor, pixels.to(tensor.device), count)

        return with_tensors(value, part)

    found = Recording(recording.masks, recording.dtype)
    for (site, key), value in recording.values.items():
        found.values[site, key] = changed(site, value) if key == ROWS else value
    return found
