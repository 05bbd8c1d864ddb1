"""Pictures: files to tensors and back, sizes, and writing without half-written files.

Sizes are (height, width) in pixels everywhere. Notices go to the log, results are returned.
"""

import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from sgm.errors import UserError
from sgm.io.files import check_input_file, check_output_path, write_atomically
from sgm.specs import SIZE_MULTIPLE

logger = logging.getLogger(__name__)

# Options of Pillow's `save` by format: nothing lost where the format can.
SAVE_OPTIONS: dict[str, dict[str, object]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
LFS_START = b"version https://git-lfs"
# How Pillow names 16 bits per channel in a file whose picture it reads with 8, and where
# `open_picture` leaves word of it.
DEEP, DEPTH = re.compile(r"[A-Za-z];16[BLN]?'"), "deep"


def load_picture(path: str | Path) -> Image.Image:
    """Read a picture as 8-bit RGB, upright. Alpha is dropped, not composited, as published: where a
    picture is transparent, the colours stored there show. UserError as of `open_picture`."""
    return to_rgb(open_picture(path))


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture in its own mode: of an animation the first frame (with a notice), upright by
    its EXIF data, fully decoded. `info["deep"]` says whether it has more than 8 bits per channel.

    Raises:
        UserError: no such file, a folder, not a picture, truncated or too large to be safe.
    """
    path = Path(path)
    check_input_file(path)
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of what it refuses; big photographs are nothing to warn of.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            frames = getattr(image, "n_frames", 1)
            # MPO is what phones write: a JPEG with previews behind it, not an animation.
            if frames > 1 and image.format != "MPO":
                logger.warning("%s has %d frames; the first one is used.", path, frames)
                image.seek(0)
            deep = image.mode.startswith(("I", "F")) or DEEP.search(str(image.tile)) is not None
            image.load()
            image.info[DEPTH] = deep
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        why = "that Pillow can read; convert it to PNG or JPEG"
        with path.open("rb") as file:
            if file.read(len(LFS_START)) == LFS_START:
                why = "but a Git LFS pointer; fetch the content with `git lfs pull`"
        raise UserError(f"{path} is not a picture {why}.") from error
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which is not "
            "safe to open; make it smaller first."
        ) from error
    # Pillow's decoders raise many types (SyntaxError, struct.error, ...) on damaged files.
    except Exception as error:
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise UserError(
            f"Picture {path} cannot be read ({reason}); it may be damaged or cut short, "
            "so fetch or export it again."
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any Pillow mode to 8-bit RGB; alpha is dropped."""
    if image.mode == "RGB":
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(deep_to_uint8(image)).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # only None with inPlace=True
        return converted
    if image.mode in ("La", "PA"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    return image.convert("RGB")


def deep_to_uint8(image: Image.Image) -> np.ndarray:
    """Scale a one-channel picture of more than 8 bits (mode `I`, `F` or one of the `I;16` family)
    to 8 bits, rounded: uint8 [H, W]. UserError for NaN or infinity.

    White is 65535 in 16-bit modes. For 32-bit integers and floats the file does not say: it is the
    smallest of 1 (floats only), 255, 65535 and 2**31 - 1 that holds every value.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise UserError("The picture holds NaN or infinite values; export it as 8 or 16 bits.")
    top = values.max(initial=0)
    if image.mode.startswith("I;16"):
        white = 65535
    else:
        scales = (1, 255, 65535, 2**31 - 1) if image.mode == "F" else (255, 65535, 2**31 - 1)
        white = next((scale for scale in scales if top <= scale), top)
    return np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as float32 [3, H, W] in [-1, 1]: 2 * v / 255 - 1."""
    return 2 * (to_bytes(image).float() / 255) - 1


def to_bytes(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def to_uint8(picture: Tensor) -> Tensor:
    """Float [..., H, W] in [0, 1] on any device as uint8 of the same shape on the CPU, clamped and
    rounded to the nearest (published: truncated). ValueError for NaN."""
    picture = picture.detach().to("cpu", torch.float32)
    if picture.isnan().any():
        raise ValueError("the picture holds NaN values")
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def to_picture(picture: Tensor) -> Image.Image:
    """Float [3, H, W] in [0, 1] or uint8 [3, H, W] as an RGB picture."""
    data = picture if picture.dtype == torch.uint8 else to_uint8(picture)
    return Image.fromarray(data.cpu().permute(1, 2, 0).contiguous().numpy())


def resize_picture(image: Image.Image, size: tuple[int, int], name: str = "Picture") -> Image.Image:
    """Resize a picture to (height, width) with Lanczos, saying so; unchanged at its own size."""
    wanted = (size[1], size[0])  # Pillow's order: (width, height)
    if image.size == wanted:
        return image
    logger.warning("%s resized from %dx%d to %dx%d (width x height).", name, *image.size, *wanted)
    return image.resize(wanted, Image.Resampling.LANCZOS)


def pad_to_multiple(x: Tensor, multiple: int = SIZE_MULTIPLE) -> Tensor:
    """Pad [..., H, W] of any dtype at the bottom and the right, to the next multiple of so many
    pixels, by reflection (without the edge itself) as often as it takes; a side of 1 is repeated.
    """
    for axis in (-2, -1):
        length = x.shape[axis]
        positions = np.pad(np.arange(length), (0, -length % multiple), mode="reflect")
        x = x.index_select(axis, torch.from_numpy(positions).to(x.device))
    return x


def crop_back(x: Tensor, size: Sequence[int]) -> Tensor:
    """Undo `pad_to_multiple`: the top left (height, width) of [..., H, W]."""
    return x[..., : size[0], : size[1]]


def save_picture(picture: Tensor | Image.Image, path: str | Path) -> None:
    """Write a picture (float [3, H, W] in [0, 1], uint8 [3, H, W], RGB or RGBA) complete or not at
    all, in the format of the extension. UserError if that is unknown, or the file cannot be
    written."""
    path = Path(path)
    check_output_path(path)
    image = picture if isinstance(picture, Image.Image) else to_picture(picture)
    kind = Image.registered_extensions()[path.suffix.lower()]
    write_atomically(path, lambda file: image.save(file, format=kind, **SAVE_OPTIONS.get(kind, {})))
