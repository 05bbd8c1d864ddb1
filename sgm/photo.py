"""What a person says about pictures, masks and seeds, apart from the edit itself.

Nothing here imports torch; `sgm.specs` has the other options of a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

AUTO, WHOLE = "auto", "none"  # of `padding_mask_crop`, besides pixels
# Pixels of the ring in which an edit fades out, and the longer side of the picture it is for.
FEATHER, FEATHER_SIDE = 8, 1024


@dataclass(frozen=True)
class Blend:
    """How an edit is put into the picture.

    Attributes:
        feather: width in pixels of the ring around the edit in which it fades into the picture, and
            which is sampled with it; 0 for a hard edge; None for the default, 8 for a picture of
            1024 pixels (its longer side) and others in proportion.
        match_border: whether the edit takes on the colours and the grain of its surroundings.
    """

    feather: int | None = None
    match_border: bool = True

    def width(self, size: Sequence[int]) -> int:
        """Of the ring in pixels, for a picture of `size` (height, width)."""
        if self.feather is not None:
            return self.feather
        return max(1, round(FEATHER * max(size) / FEATHER_SIDE))


@dataclass(frozen=True)
class PhotoOptions:
    """Options of a run about pictures, masks and seeds.

    Attributes:
        mask_grow: pixels by which what was marked or drawn on is grown, in all directions.
        invert_mask: whether black is repainted instead of white.
        blend: how the edit is put into the picture; None leaves the network's picture everywhere.
        padding_mask_crop: pixels around the edit that are shown to the network with it, in place
            of the whole picture; `auto` for a margin and only if the picture is larger than the
            model's size; None for the whole picture.
        seeds: one result for each of several seeds; empty for the one of `SamplingParams`.
        metadata: whether a PNG says how it was made.
        overwrite: whether files that are there may be replaced.
    """

    mask_grow: int = 0
    invert_mask: bool = False
    blend: Blend | None = None
    padding_mask_crop: int | str | None = None
    seeds: tuple[int, ...] = ()
    metadata: bool = True
    overwrite: bool = False
