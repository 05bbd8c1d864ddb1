"""Pictures and masks as Python programs hand them over: paths, PIL pictures, arrays, tensors."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sgm.errors import UserError
from sgm.io import imageio, maskio
from sgm.io.masklevels import picture_levels
from sgm.io.photos import Photo, Profile, load_photo, photo_of

# A path, a PIL picture, an array [H, W] or [H, W, 1, 3 or 4], or a tensor [1, 3 or 4, H, W]; whole
# numbers are of 8 or 16 bits, others in [0, 1]. Of four channels the last is transparency. Arrays
# and tensors are in sRGB, or if drawn on, in the colours of the picture before.
Picture = str | PathLike[str] | Image.Image | np.ndarray | Tensor
# A path, a PIL picture, or an array or tensor [H, W] with values as in a file; white: repaint.
Mask = str | PathLike[str] | Image.Image | np.ndarray | Tensor

CHANNELS = (1, 3, 4)  # grey, RGB, RGB and transparency
WHITE = {"uint8": 255, "uint16": 65535}  # by dtype; of others it is 1


class Given(NamedTuple):
    """A picture that was handed over."""

    seen: Tensor  # as the networks take it: [3, H, W] in [-1, 1], float32 on the CPU
    photo: Photo  # what a result takes along; of an array or a tensor nothing but its 8 bits


def read(
    picture: Picture, size: tuple[int, int] | None = None, profile: Profile | None = None
) -> Given:
    """Read a picture. The networks are shown a path and a PIL picture in sRGB, and no
    transparency; a result takes both along again.

    Args:
        size: (height, width) of the unedited picture, if this is one that was drawn on.
        profile: of that picture, in whose colours an array or a tensor is then too.

    Raises:
        UserError: it cannot be read, or has another shape, range or size.
    """
    if isinstance(picture, str | PathLike):
        photo = load_photo(Path(picture))
        seen = imageio.to_tensor(photo.image)
    elif isinstance(picture, Image.Image):
        photo = photo_of(picture.copy())  # the caller may go on drawing on it
        seen = imageio.to_tensor(photo.image)
    else:
        seen = _array_tensor(picture)
        image = imageio.to_picture((seen + 1) / 2)
        if profile is not None:
            image = profile.shown(image)
            seen = imageio.to_tensor(image)
        photo = Photo(image, image)
    if size is not None and photo.size != tuple(size):
        raise UserError(
            f"The drawing has {seen.shape[2]}x{seen.shape[1]} pixels, expected {size[1]}x"
            f"{size[0]} as the picture; draw on the picture, or resize."
        )
    return Given(seen, photo)


def _array_tensor(picture: object) -> Tensor:
    """An array or a tensor as the networks take it, at its own precision."""
    values = _channels_first(picture)
    scaled = values.astype(np.float32) / WHITE.get(values.dtype.name, 1)
    if not 0 <= scaled.min() <= scaled.max() <= 1:  # nor NaN
        raise UserError(
            f"The picture holds {values.dtype} values from {values.min():g} to {values.max():g}; "
            "expected uint8, uint16 or numbers in [0, 1]."
        )
    whole = np.broadcast_to(scaled[:3], (3, *scaled.shape[1:]))
    return torch.from_numpy(whole * np.float32(2) - 1)


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
