"""Masks: arrays and pictures to levels from 0 to 1, white or True meaning repaint."""

import io
import logging
import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sgm.errors import UserError
from sgm.io.files import check_input_file
from sgm.io.imageio import open_picture
from sgm.io.masklevels import LUMINANCE, picture_levels, snapped, two_values

logger = logging.getLogger(__name__)

# The key numpy gives an unnamed array; `mask` is what people call a named one.
ARCHIVE_KEYS = ("mask", "arr_0")
# Names of an archive's arrays that a message lists.
MAX_NAMES = 8
# Values of an array that is read: as many as Pillow takes for safe in the pixels of a picture.
MAX_VALUES = 178_956_970
# Bytes in which the header of a mask must end: the most that version 1 of the format can have.
MAX_HEADER = 2**16 + 10
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def load_mask(path: str | Path, size: tuple[int, int]) -> Tensor:
    """A mask as `load_levels` reads it, without its softness: bool [H, W], True to repaint."""
    return load_levels(path, size) > 0.5


def load_levels(path: str | Path, size: tuple[int, int], invert: bool = False) -> Tensor:
    """Read a mask: float32 [H, W] in [0, 1] on the CPU, 1 where the picture is repainted.

    Arrays (`.npy`, `.npz`; never unpickled) hold bool, any two values, grey levels up to 255, or
    floats in [0, 1]. Pictures hold two values, of which the brighter is repainted, or a soft black
    and white; see `masklevels` for those with transparency.

    Args:
        size: (height, width) of the picture in pixels, to which another is resized with a notice.
        invert: repaint what the mask leaves alone.

    Raises:
        UserError: the file cannot be read, its shape or values are no mask, or its sides are
            those of the picture swapped.
    """
    path = Path(path)
    check_input_file(path)
    name = f"Mask {path}"
    if path.suffix.lower() in (".npy", ".npz"):
        levels = array_levels(_read_array(path), name)
    else:
        levels = picture_levels(open_picture(path), name)
    return fitted(1 - levels if invert else levels, size, name)


def fitted(levels: np.ndarray, size: tuple[int, int], name: str) -> Tensor:
    """Levels [h, w] for a picture of `size`; arguments, result and errors as of `load_levels`."""
    if 0 < levels.max() <= 0.5:
        raise UserError(
            f"{name} is brightest at {levels.max():.2f} of white, so it marks nothing for "
            "certain; paint white where to repaint."
        )
    return torch.from_numpy(_resized(levels, size, name))


def _resized(levels: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """Levels [h, w] at [height, width], saying so; a copy at their own size. Without a soft border
    there is none afterwards."""
    if levels.shape == size:
        return np.ascontiguousarray(levels, dtype=np.float32)
    (rows, columns), (height, width) = levels.shape, size
    if (columns, rows) == size:
        raise UserError(
            f"{name} is {columns}x{rows} and the picture {width}x{height} (width x height): "
            "its sides are swapped; turn it (an array: transpose it)."
        )
    logger.warning(
        "%s resized from %dx%d to the picture's %dx%d (width x height).",
        *(name, columns, rows, width, height),
    )
    soft = ((levels > 0) & (levels < 1)).any()
    filter_ = Image.Resampling.BILINEAR if soft else Image.Resampling.NEAREST
    image = Image.fromarray(np.ascontiguousarray(levels, dtype=np.float32))
    return np.array(image.resize((width, height), filter_))


def array_levels(values: np.ndarray, name: str) -> np.ndarray:
    """Levels [h, w] of an array, by the rules of `load_levels`; `name` begins its messages.
    UserError if it is no mask."""
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise UserError(
            f"{name} has shape {values.shape}; expected (height, width), "
            "or 1, 3 or 4 channels after that."
        )
    if values.size == 0:
        raise UserError(f"{name} has shape {values.shape}, so it holds nothing; make it anew.")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim == 2 and np.isfinite(values).all() and values.min() >= 0:
        found = two_values(values, name)
        if found is not None:
            return found
    level = _levels(values, name)
    if level.ndim == 3:  # by the rule for pictures
        opaque = level.shape[2] == 3 or level[..., 3].min() == 1
        level = level[..., :3] @ LUMINANCE if opaque else level[..., 3]
        found = two_values(level, name)
        if found is not None:
            return found
    return snapped(level)


def _levels(values: np.ndarray, name: str) -> np.ndarray:
    """Values of an array as floats of the same shape in [0, 1]; UserError if they are no mask."""
    level = values.astype(np.float64 if values.dtype.kind == "f" else np.float32)
    if not np.isfinite(level).all():
        raise UserError(f"{name} holds NaN or infinite values; expected numbers in [0, 1].")
    low, high = level.min(), level.max()
    if low >= 0 and high <= 1:
        return level
    bytes_like = values.dtype.kind in "ui" or bool(np.isin(level, (0, 255)).all())
    # More than two integers up to 127 at most are labels, not grey levels.
    if bytes_like and low >= 0 and 128 <= high <= 255:
        return level / 255
    raise UserError(
        f"{name} holds {values.dtype} values from {low:g} to {high:g}; expected bool, "
        "two values, grey levels up to 255 or floats in [0, 1]."
    )


def _read_array(path: Path) -> np.ndarray:
    """The array of a `.npy` or `.npz` file, without ever unpickling."""
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
            file.seek(0)
            if not zipped:
                return _read_checked(file, path.stat().st_size, path)
            with zipfile.ZipFile(file) as archive:
                parts = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
                names = list(parts)
                known = [name for name in ARCHIVE_KEYS if name in names]
                key = names[0] if len(names) == 1 else next(iter(known), None)
                if key is not None:
                    with archive.open(parts[key]) as member:
                        return _read_checked(member, parts[key].file_size, path)
    except UserError:
        raise
    # numpy and zipfile report damaged files by many types (BadZipFile, EOFError, zlib.error, ...).
    except Exception as error:
        raise UserError(
            f"Mask {path} cannot be read as a numpy array (it is damaged); save it again with "
            "numpy.save as bool."
        ) from error
    found = ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")
    raise UserError(
        f"Mask {path} must hold one array or one named 'mask'; its arrays: {found or 'none'}."
    )


def _read_checked(file: IO[bytes], size: int, path: Path) -> np.ndarray:
    """An array out of `size` bytes, read only if its header promises a mask of a size that pictures
    have: a file may claim any, and an archive of a megabyte unpack to gigabytes.

    Raises:
        UserError: it is no such mask.
        ValueError: it is damaged; one of many types, see `_read_array`.
    """
    head = io.BytesIO(file.read(MAX_HEADER))  # a header may claim to be of any length, too
    shape, _, dtype = _HEADERS[np.lib.format.read_magic(head)](head)
    if dtype.hasobject:
        raise UserError(
            f"Mask {path} cannot be read as a numpy array (it holds Python objects); save it again "
            "with numpy.save as bool."
        )
    if dtype.kind not in "buif":
        raise UserError(
            f"Mask {path} holds {dtype} values; expected bool, 0/1, 0/255 or floats in [0, 1]."
        )
    if math.prod(shape) > MAX_VALUES:
        raise UserError(
            f"Mask {path} claims {math.prod(shape):,} values, and more than {MAX_VALUES:,} are not "
            "safe to read; make it smaller first."
        )
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError("it is cut short")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)
