"""Opening an uploaded photo: a limit on its pixels, and a size to work at."""

import math
import warnings
from pathlib import Path

from PIL import Image

from sgm.errors import UserError
from sgm.io.imageio import open_picture
from sgm.io.photos import Photo, load_photo
from sgm.specs import SIZE_MULTIPLE

MAX_UPLOAD = 64_000_000  # pixels; 8 bytes each while a photo is read


def open_photo(path: Path, max_pixels: int) -> tuple[Photo, tuple[int, int] | None]:
    """Read a photo to work with.

    Args:
        path: of the file.
        max_pixels: of the result; a larger photo is made smaller.

    Returns:
        The photo, and (width, height) of the file if it was made smaller.

    Raises:
        UserError: no picture, or one of too many pixels.
    """
    check_upload(path)
    photo = load_photo(path)
    size = working_size((photo.image.height, photo.image.width), max_pixels)
    smaller = photo.resized(size)
    return smaller, None if smaller is photo else photo.image.size


def check_upload(path: Path) -> None:
    """Look at the size of a picture before its pixels are read.

    Raises:
        UserError: there are too many.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
    except Exception:
        open_picture(path)  # says what is wrong with it
        raise
    if width * height > MAX_UPLOAD:
        raise UserError(
            f"The photo has {width} × {height} pixels and at most {MAX_UPLOAD / 1e6:.0f} million "
            "are read; make it smaller first."
        )


def working_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """(height, width) to work at: those of the photo, or smaller with the same proportions.

    Raises:
        UserError: so long and narrow that padding to the networks' multiples would be most of it.
    """
    scale = min(1.0, math.sqrt(max_pixels / (size[0] * size[1])))
    height, width = (max(1, round(side * scale)) for side in size)
    padded = [-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in (height, width)]
    if math.prod(padded) > 2 * max(max_pixels, SIZE_MULTIPLE**2):
        raise UserError(
            f"The photo has {size[1]} × {size[0]} pixels, which is too long and narrow; crop it."
        )
    return height, width
