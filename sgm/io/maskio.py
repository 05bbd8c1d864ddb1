"""Masks: arrays and pictures to a boolean tensor, white or True meaning repaint."""

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
from sgm.io.imageio import deep_to_uint8, open_picture, to_rgb

logger = logging.getLogger(__name__)

# Luminance as in Pillow's mode L (ITU-R 601-2), for arrays with three channels.
LUMINANCE = np.array([0.299, 0.587, 0.114])
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
    """Read a mask and bring it to the picture's size.

    Arrays (`.npy`, `.npz`; never unpickled) hold bool, 0/1, 0/255, grey levels up to 255, or
    floats in [0, 1]. Pictures count by their alpha channel where they have one that is not
    opaque everywhere, else by luminance. Above half is True.

    Args:
        path: the file.
        size: (height, width) of the picture in pixels; another size is resized to it (nearest)
            with a notice.

    Returns:
        bool [H, W] on the CPU, True where the picture is repainted.

    Raises:
        UserError: the file cannot be read, or its shape or values are no mask.
    """
    path = Path(path)
    check_input_file(path)
    mask = _from_array(path) if path.suffix.lower() in (".npy", ".npz") else _from_picture(path)
    return torch.from_numpy(_resized(mask, size, path))


def _resized(mask: np.ndarray, size: tuple[int, int], path: Path) -> np.ndarray:
    """bool [h, w] to bool [height, width], nearest, saying so; a copy at its own size."""
    if mask.shape == size:
        return np.ascontiguousarray(mask)
    height, width = size
    logger.warning(
        "Mask %s resized from %dx%d to the picture's %dx%d (width x height).",
        path,
        mask.shape[1],
        mask.shape[0],
        width,
        height,
    )
    image = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.array(image, dtype=bool)


def _from_picture(path: Path) -> np.ndarray:
    """bool [h, w] of a picture: its alpha channel if that says anything, else its luminance."""
    image = open_picture(path)
    deep = image.mode == "F" or image.mode.startswith("I")
    if image.has_transparency_data and not deep:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        # Many programs save a black-and-white picture with an alpha that is opaque throughout.
        if alpha.min() < 255:
            logger.warning("Mask %s is taken from its alpha channel: opaque is repainted.", path)
            return alpha > 127
    if deep:
        grey, raw = deep_to_uint8(image), np.asarray(image)
    else:
        grey = raw = np.asarray(to_rgb(image).convert("L"))
    # A mask array of 0 and 1 saved as a picture looks black; it cannot mean anything else.
    if image.mode != "F" and raw.max() == 1:
        return raw == 1
    return grey > 127


def _from_array(path: Path) -> np.ndarray:
    """bool [h, w] of an array file."""
    values = _read_array(path)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (1, 3, 4)):
        raise UserError(
            f"Mask {path} has shape {values.shape}; expected (height, width), "
            "or 1, 3 or 4 channels after that."
        )
    if values.size == 0:
        raise UserError(f"Mask {path} has shape {values.shape}, so it holds nothing; make it anew.")
    level = _levels(values, path)
    if level.ndim == 3:
        level = _reduced(level)
    return level > 0.5


def _reduced(level: np.ndarray) -> np.ndarray:
    """float [h, w, 1|3|4] in [0, 1] to [h, w], by the rule for pictures."""
    channels = level.shape[2]
    if channels == 1:
        return level[..., 0]
    if channels == 4 and level[..., 3].min() < 1:
        return level[..., 3]
    return level[..., :3] @ LUMINANCE


def _levels(values: np.ndarray, path: Path) -> np.ndarray:
    """Values of an array as floats of the same shape in [0, 1]; UserError if they are no mask."""
    level = values.astype(np.float64 if values.dtype.kind == "f" else np.float32)
    if not np.isfinite(level).all():
        raise UserError(f"Mask {path} holds NaN or infinite values; expected numbers in [0, 1].")
    low, high = level.min(), level.max()
    if low >= 0 and high <= 1:
        return level
    bytes_like = values.dtype.kind in "ui" or bool(np.isin(level, (0, 255)).all())
    # Integers from 2 to 127 at most are labels, not grey levels: all of them would be black.
    if bytes_like and low >= 0 and 128 <= high <= 255:
        return level / 255
    raise UserError(
        f"Mask {path} holds {values.dtype} values from {low:g} to {high:g}; expected bool, "
        "0/1, 0/255 or floats in [0, 1]."
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
                key = _key_of(names)
                if key:
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


def _key_of(names: list[str]) -> str:
    """Which of the arrays of an archive is the mask; empty where that is not clear."""
    return names[0] if len(names) == 1 else next((k for k in ARCHIVE_KEYS if k in names), "")


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
