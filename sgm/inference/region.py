"""A region of a picture that bounds where its later edits may be, so that less has to be kept."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from sgm.errors import UserError
from sgm.inference.inpainting import Inpainting
from sgm.inference.presets import Recipe
from sgm.inference.sdedit import SDEdit
from sgm.inference.stores import Store
from sgm.inference.track import DECODER, ENCODER
from sgm.sparse.bounds import bounded, read_by, unbounded
from sgm.sparse.masks import MaskPyramid, dilate
from sgm.sparse.recording import Recording
from sgm.words import RecordingMemory, Task

REGION = "region"  # store key of its mask
MASK = ("", "mask")  # in the recording of that name


class Region:
    """Where edits may change a picture, and what they read of its recordings.

    Args:
        limit: bool [H, W], where edits and the rings around them may be; sides multiples of 64.
        recipe: of the edits.
    """

    def __init__(self, limit: Tensor, recipe: Recipe) -> None:
        self.limit = limit
        drawn = recipe.sdedit + recipe.sdedit_decoder
        self._drawn_limit = grown(limit, drawn)
        wide = max(drawn, recipe.sdedit_early if recipe.early else 0)
        self._read: Mapping[str, MaskPyramid] = {
            "inpainting": read_by(_levels(limit, recipe)),
            "sdedit": read_by(_levels(grown(limit, wide), recipe)),
            "autoencoder": read_by(_levels(self._drawn_limit, recipe)),
        }

    @classmethod
    def around(cls, mask: Tensor, recipe: Recipe) -> "Region":
        """That of edits whose masks lie in a mask, bool [H, W]; ValueError for an empty one."""
        if not mask.any():
            raise ValueError("The region is empty, so it allows no edit; leave it out.")
        ring = 0 if recipe.blend is None else recipe.blend.width(mask.shape)
        return cls(grown(mask, ring), recipe)

    def read(self, name: str) -> MaskPyramid:
        """Which pixels edits read of the recording of a name."""
        if name in (ENCODER, DECODER):
            return self._read["autoencoder"]
        return self._read[Task.SDEDIT if Task.SDEDIT in name else Task.INPAINTING]

    def only_read(self, name: str, recording: Recording) -> Recording:
        """A recording of whole maps with zeros in the rows that no edit reads."""
        read = self.read(name)
        return unbounded(bounded(recording, read), read)

    def holds_edit(self, edit: Inpainting | SDEdit, recipe: Recipe) -> bool:
        """Whether an edit, with what changes around it, lies within."""
        limit = self._drawn_limit if isinstance(edit, SDEdit) else self.limit
        touched = edit.touched(recipe)
        beyond = marked_by(edit) & ~self.limit
        return not (beyond if touched is None else beyond | touched & ~limit).any()

    def holds(self, changed: Tensor, name: str) -> bool:
        """Whether recordings of a name can be brought up to date where a picture has changed, bool
        [H, W], by an edit of the region."""
        return Task.SDEDIT in name or not (changed & ~self.limit).any()

    def recording(self) -> Recording:
        """As it is kept beside the recordings."""
        kept = Recording()
        kept.values[MASK] = self.limit
        return kept


class BoundedStore(Store):
    """A store that keeps, and gives back, what edits within a region read.

    Args:
        store: where it is kept.
        region: of the edits.
    """

    def __init__(self, store: Store, region: Region) -> None:
        self._store, self._region = store, region

    @property
    def place(self) -> RecordingMemory:
        """See `Store.place`."""
        return self._store.place

    def put(self, name: str, recording: Recording) -> None:
        """See `Store.put`."""
        self._store.put(name, bounded(recording, self._region.read(name)))

    def names(self) -> set[str]:
        """See `Store.names`."""
        return self._store.names()

    def forget(self, name: str) -> None:
        """See `Store.forget`."""
        self._store.forget(name)

    def get(self, name: str) -> Recording:
        """See `Store.get`; rows that no edit reads are zero."""
        return unbounded(self._store.get(name), self._region.read(name))


def size_kept(region: Region | None, name: str, recording: Recording) -> int:
    """Bytes that are kept of the recording of a name."""
    kept = recording if region is None else bounded(recording, region.read(name))
    return kept.size_in_bytes()


def check_within(region: Region | None, edit: Inpainting | SDEdit, recipe: Recipe) -> None:
    """Refuse an edit outside of the region that was recorded; None for the whole picture.

    Raises:
        UserError: part of it lies outside.
    """
    if region is not None and not region.holds_edit(edit, recipe):
        raise UserError(
            f"The edit spans {box(marked_by(edit))}, and edits within {box(region.limit)} were "
            "recorded, their rings included; edit there, or record a larger region or the whole "
            "picture."
        )


def marked_by(edit: Inpainting | SDEdit) -> Tensor:
    """Where an edit was asked for, bool [H, W]."""
    return edit.marked if isinstance(edit, SDEdit) else edit.mask > 0


def region_in(store: Store, recipe: Recipe) -> Region | None:
    """The region of the recordings in a store; None if they serve the whole picture."""
    if REGION not in store.names():
        return None
    limit = store.get(REGION).values[MASK]
    assert isinstance(limit, Tensor)
    return Region(limit.cpu(), recipe)


def grown(mask: Tensor, distance: int) -> Tensor:
    """A mask, bool [H, W], grown by a square: it holds every other growth by this distance."""
    return F.max_pool2d(mask[None, None].float(), 2 * distance + 1, 1, distance)[0, 0] > 0


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
