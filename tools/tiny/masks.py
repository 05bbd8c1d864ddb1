"""The masks that the UNet practises inpainting with: around an object, as people paint them, or
anywhere."""

from dataclasses import dataclass

import numpy as np

from tools.tiny.layout import Scene
from tools.tiny.scenes import SIZE, object_box

MASKS = 2  # of each scene, drawn beforehand, since the encoder is to see the scene without them
WHOLE, NOTHING = -1, -2  # in place of a mask's number: all is masked, as in SDEdit, or nothing
WHOLE_SHARE, NOTHING_SHARE = 0.35, 0.07  # of the samples; nothing is masked where one is recorded
ANYWHERE_SHARE = 0.15  # of the masks are not around an object
SMALLEST, LARGEST = 0.12, 0.6  # sides of these, of the picture's
NEAR, FAR = 24, 64  # pixels that a mask is larger than its object at each side, at most
FAR_SHARE = 0.25  # of the masks around an object are as large as that
ELLIPSES_SHARE = 0.2  # of them


@dataclass(frozen=True)
class Painted:
    """A mask on a scene.

    Attributes:
        box: (top, left, bottom, right) in pixels: of the object that it is around, or of the mask.
        outline: in the same way, of what is painted.
        around_object: whether it is around an object.
        ellipse: whether the ellipse around the outline is painted, and not the rectangle.
    """

    box: tuple[int, int, int, int]
    outline: tuple[int, int, int, int]
    around_object: bool
    ellipse: bool

    @property
    def mask(self) -> np.ndarray:
        """Bool [256, 512], True where to repaint; made anew, as thousands of masks are kept."""
        return ellipse_around(self.outline) if self.ellipse else rectangle(self.outline)


def paint(scene: Scene, name: str, rng: np.random.Generator) -> Painted:
    """A mask on a scene, most of the time around one of its objects of that name."""
    if rng.random() < ANYWHERE_SHARE:
        size = [int(rng.uniform(SMALLEST, LARGEST) * length) for length in SIZE]
        top, left = (int(rng.integers(0, n - m)) for n, m in zip(SIZE, size, strict=True))
        box = (top, left, top + size[0], left + size[1])
        return Painted(box, box, around_object=False, ellipse=False)
    found = [obj for obj in scene.objects if obj.name == name]
    box = object_box(found[int(rng.integers(len(found)))], *SIZE)
    most = FAR if rng.random() < FAR_SHARE else NEAR
    top, left, bottom, right = (int(n) for n in rng.integers(0, most + 1, 4))
    grown = (box[0] - top, box[1] - left, box[2] + bottom, box[3] + right)
    return Painted(box, grown, around_object=True, ellipse=rng.random() < ELLIPSES_SHARE)


def rectangle(box: tuple[int, int, int, int]) -> np.ndarray:
    """The pixels of a box (top, left, bottom, right), bool [256, 512]."""
    top, left, bottom, right = box
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    return (top <= y) & (y < bottom) & (left <= x) & (x < right)


def ellipse_around(box: tuple[int, int, int, int]) -> np.ndarray:
    """The smallest ellipse of a box's proportions that holds it, as a mask, bool [256, 512]."""
    top, left, bottom, right = box
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    down = (2 * y - top - bottom) / (bottom - top)
    along = (2 * x - left - right) / (right - left)
    return down**2 + along**2 < 2


def drawn_masks(rng: np.random.Generator, count: int) -> np.ndarray:
    """Numbers of masks, int64 [count]: below `MASKS` those of a scene, or `WHOLE` or `NOTHING`."""
    each = (1 - WHOLE_SHARE - NOTHING_SHARE) / MASKS
    shares = [NOTHING_SHARE, WHOLE_SHARE, *[each] * MASKS]
    return rng.choice([NOTHING, WHOLE, *range(MASKS)], count, p=shares)
