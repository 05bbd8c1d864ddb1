"""Pictures and masks as Python programs hand them over: paths, PIL pictures, arrays, tensors."""

import logging
from collections.abc import Sequence
from os import PathLike

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sgm.errors import UserError
from sgm.io import imageio, maskio
from sgm.io.masklevels import picture_levels
from sgm.io.photos import ORIENTATION

logger = logging.getLogger(__name__)

# A path, a PIL picture, an array [H, W] or [H, W, 1, 3 or 4], or a tensor [1, 3 or 4, H, W]; whole
# numbers are of 8 or 16 bits, others in [0, 1]. Of four channels the last is transparency.
Picture = str | PathLike[str] | Image.Image | np.ndarray | Tensor
# A path, a PIL picture, or an array or tensor [H, W] with values as in a file; white: repaint.
Mask = str | PathLike[str] | Image.Image | np.ndarray | Tensor

CHANNELS = (1, 3, 4)  # grey, RGB, RGB and transparency
WHITE = {"uint8": 255, "uint16": 65535}  # by dtype; of others it is 1


def to_tensor(picture: Picture) -> Tensor:
    """A picture as the networks take it: [3, H, W] in [-1, 1], float32 on the CPU; transparency is
    dropped. UserError if it cannot be read, or has another shape or range."""
    if isinstance(picture, str | PathLike):
        return imageio.to_tensor(imageio.load_picture(picture))
    if isinstance(picture, Image.Image):
        if picture.getexif().get(ORIENTATION, 1) != 1:
            logger.warning(
                "The picture's EXIF data says to turn it, which holds for files only: it is taken "
                "as it lies in memory. Give its path, or use PIL.ImageOps.exif_transpose."
            )
        return imageio.to_tensor(imageio.to_rgb(picture))
    values = _channels_first(picture)
    scaled = values.astype(np.float32) / WHITE.get(values.dtype.name, 1)
    if not 0 <= scaled.min() <= scaled.max() <= 1:  # nor NaN
        raise UserError(
            f"The picture holds {values.dtype} values from {values.min():g} to {values.max():g}; "
            "expected uint8, uint16 or numbers in [0, 1]."
        )
    whole = np.broadcast_to(scaled[:3], (3, *scaled.shape[1:]))
    return torch.from_numpy(whole * np.float32(2) - 1)


def profile_of(picture: Picture) -> bytes | None:
    """The ICC profile of a picture, which its result needs too, since the networks see the values
    as they are; None if it has none, or if `to_tensor` converts its colours to RGB."""
    if isinstance(picture, str | PathLike):
        with Image.open(picture) as opened:
            return profile_of(opened)
    own = isinstance(picture, Image.Image) and picture.mode in ("RGB", "RGBA", "P")
    return picture.info.get("icc_profile") if own else None


def _channels_first(picture: object) -> np.ndarray:
    """Values [C, H, W] of an array or a tensor; UserError if it is no picture by its shape."""
    if isinstance(picture, Tensor):
        values, wanted = _on_host(picture), "a tensor [3, H, W]"
    elif isinstance(picture, np.ndarray):
        values, wanted = picture, "an array [H, W, 3]"
        values = np.moveaxis(values[..., None] if values.ndim == 2 else values, -1, 0)
    else:
        raise UserError(
            f"The picture is of type {type(picture).__name__}; expected a path, a PIL picture, an "
            "array [H, W, 3] or a tensor [3, H, W]."
        )
    if values.ndim != 3 or values.shape[0] not in CHANNELS or not values.size:
        raise UserError(
            f"The picture has shape {tuple(picture.shape)}; expected {wanted}, or 1 or 4 channels."
        )
    if values.dtype.kind not in "buif":
        raise UserError(f"The picture holds {values.dtype} values; expected numbers.")
    return values


def _on_host(x: Tensor) -> np.ndarray:
    """A tensor as an array; any floating point as float32, since numpy lacks some of its types."""
    x = x.detach().cpu()
    return (x.float() if x.is_floating_point() else x).numpy()


def to_drawing(picture: Picture, size: Sequence[int]) -> Tensor:
    """A picture that was drawn on, as `to_tensor` gives it; UserError unless it has the `size`
    (height, width) of the unedited one."""
    drawn = to_tensor(picture)
    if drawn.shape[1:] != (size[0], size[1]):
        raise UserError(
            f"The drawing has {drawn.shape[2]}x{drawn.shape[1]} pixels, expected {size[1]}x"
            f"{size[0]} as the picture; draw on the picture, or resize."
        )
    return drawn


def to_levels(mask: Mask, size: Sequence[int]) -> Tensor:
    """A mask for a picture of `size` (height, width): float32 [H, W] in [0, 1] on the CPU, 1 where
    to repaint. Values mean what they mean in a file: bool, any two (the brighter is repainted),
    grey levels up to 255, or floats in [0, 1]. A file or a PIL picture of another size is resized,
    with a notice.

    Raises:
        UserError: a file or values that are no mask, or an array or a tensor of another size.
    """
    height, width = size
    if isinstance(mask, str | PathLike):
        return maskio.load_levels(mask, (height, width))
    if isinstance(mask, Image.Image):
        return maskio.fitted(picture_levels(mask, "The mask"), (height, width), "The mask")
    values = _on_host(mask) if isinstance(mask, Tensor) else np.asarray(mask)
    if values.dtype.kind not in "buif":
        raise UserError(
            f"The mask holds {values.dtype} values; expected a path, a PIL picture, or an array or "
            "a tensor [H, W] of bool or numbers."
        )
    if isinstance(mask, Tensor) and values.ndim > 2 and set(values.shape[:-2]) == {1}:
        values = values.reshape(values.shape[-2:])  # batch and channel of one
    if values.shape[:2] != (height, width):
        raise UserError(
            f"The mask has shape {values.shape} and the picture is {(height, width)} (height, "
            "width); give a mask of the picture's size."
        )
    levels = maskio.array_levels(values, "The mask")
    return maskio.fitted(levels, (height, width), "The mask")


def padded(picture: Picture) -> tuple[Tensor, tuple[int, int]]:
    """A picture as `to_tensor` gives it, padded to multiples of 64, and its own (height, width)."""
    source = to_tensor(picture)
    return imageio.pad_to_multiple(source), (source.shape[1], source.shape[2])
