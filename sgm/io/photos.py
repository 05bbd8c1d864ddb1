"""A picture with what else its file says, all of which a result takes along.

That is the colour profile, transparency, EXIF data and resolution. The command line, the page and
Python programs have one `Photo` for the picture that an edit is made to, and for its result.
"""

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin
from torch import Tensor

from sgm.io import imageio
from sgm.io.files import check_output_path, write_atomically

logger = logging.getLogger(__name__)

OPAQUE = 128  # alpha from which a pixel counts as seen
ORIENTATION, TURNED = 0x0112, range(2, 9)  # the EXIF tag, and its values for any but upright
WITHOUT_ALPHA = ("JPEG", "BMP")  # formats that cannot hold it
JPEG_EXIF = 65_533  # bytes of EXIF data that a JPEG can hold
LOSSY = (".jpg", ".jpeg")
# What `Image.info` and the options of `Image.save` call alike; a format that cannot hold one of
# them leaves it out.
KEPT = ("icc_profile", "exif", "dpi")
# How colours are converted to sRGB, which the networks know, and back.
INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
ALIKE = 2  # largest difference, of 255, of colours in a profile that is as good as sRGB


@dataclass(frozen=True, eq=False)
class Profile:
    """A colour space of RGB pictures, and the ways between it and sRGB; None for both where it is
    as good as sRGB."""

    data: bytes  # the ICC profile as files carry it
    to_srgb: ImageCms.ImageCmsTransform | None
    from_srgb: ImageCms.ImageCmsTransform | None

    def shown(self, picture: Image.Image) -> Image.Image:
        """An RGB picture in these colours as one in sRGB."""
        return _applied(picture, self.to_srgb)

    def own(self, picture: Image.Image) -> Image.Image:
        """An RGB picture in sRGB as one in these colours."""
        return _applied(picture, self.from_srgb)


def _applied(picture: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    if transform is None:
        return picture
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None  # only None with inPlace=True
    return converted


def rgb_profile(data: bytes, name: str) -> Profile | None:
    """The profile of an RGB picture, from ICC data; None, with a notice that names the picture, if
    it is damaged."""
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(data)), ImageCms.createProfile("sRGB")
        there = ImageCms.buildTransform(own, srgb, "RGB", "RGB", INTENT, FLAGS)
        back = ImageCms.buildTransform(srgb, own, "RGB", "RGB", INTENT, FLAGS)
    except (ImageCms.PyCMSError, OSError, ValueError):
        logger.warning("The colour profile of %s is damaged; its colours are taken as sRGB.", name)
        return None
    steps = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), -1).reshape(1, -1, 3)
    probe = Image.fromarray(steps.astype(np.uint8))
    difference = np.abs(np.asarray(_applied(probe, there)).astype(int) - steps)
    return Profile(data, None, None) if difference.max() <= ALIKE else Profile(data, there, back)


def to_srgb(image: Image.Image, data: bytes, name: str) -> Image.Image:
    """A grey, CMYK or LAB picture with a profile as RGB in sRGB; as Pillow converts it, with a
    notice, if the profile does not fit."""
    try:
        srgb, own = ImageCms.createProfile("sRGB"), io.BytesIO(data)
        converted = ImageCms.profileToProfile(image, own, srgb, INTENT, "RGB", flags=FLAGS)
    except (ImageCms.PyCMSError, OSError, ValueError):
        logger.warning("The colour profile of %s is damaged; it is left out.", name)
        return image.convert("RGB")
    assert converted is not None  # only None with inPlace=True
    return converted


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture as it was read or handed over, or as edits have left it; None for what it does not
    say."""

    image: Image.Image  # RGB with 8 bits in sRGB: what a network sees
    own: Image.Image  # the same in the colours of the file; the very same object where it is sRGB
    profile: Profile | None = None  # of `own`; None for sRGB
    alpha: Image.Image | None = None  # its transparency, mode L
    exif: bytes = b""  # without the orientation, if that was applied
    dpi: tuple[float, float] | None = None  # pixels per inch in both directions
    path: Path | None = None  # of its file

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.height, self.image.width

    @property
    def picture(self) -> Image.Image:
        """In the colours of the file, RGB or RGBA; what else the file says stands in `info`, where
        Pillow keeps it too."""
        picture = self.own.copy()
        if self.alpha is not None:
            picture.putalpha(self.alpha)
        data = self.profile and self.profile.data
        says = {"icc_profile": data, "exif": self.exif, "dpi": self.dpi}
        picture.info = {key: value for key, value in says.items() if value}
        return picture

    def resized(self, size: tuple[int, int]) -> "Photo":
        """At (height, width), saying so; itself at its own size."""
        image = imageio.resize_picture(self.image, size, f"Picture {self.path}")
        if image is self.image:
            return self
        filter_, wanted = Image.Resampling.LANCZOS, image.size
        own = image if self.own is self.image else self.own.resize(wanted, filter_)
        alpha = self.alpha and self.alpha.resize(wanted, filter_)
        return replace(self, image=image, own=own, alpha=alpha)

    def with_edit(self, result: Tensor, touched: Tensor | None, blended: bool) -> "Photo":
        """This photo after an edit.

        Args:
            result: in sRGB, float [3, H, W] in [0, 1] or uint8 [3, H, W]; padded or not.
            touched: bool [H, W], where the edit is, if that is known; padded or not. If most of it
                was transparent, it is to be seen now.
            blended: whether the bytes of the file stand elsewhere.
        """
        image = imageio.to_picture(imageio.crop_back(result, self.size))
        own = image if self.profile is None else self.profile.own(image)
        inside = None if touched is None else imageio.crop_back(touched, self.size).numpy()
        if blended and inside is not None:
            own = Image.fromarray(np.where(inside[..., None], own, self.own))
        alpha = self.alpha
        if alpha is not None and inside is not None and inside.any():
            levels = np.array(alpha)
            if np.median(levels[inside]) < OPAQUE:
                name = _name(self.path)
                logger.warning("The edit lies where %s is transparent; it is opaque now.", name)
                levels[inside] = 255
                alpha = Image.fromarray(levels)
        return replace(self, image=image, own=own, alpha=alpha)

    def save(self, path: Path, text: str | None = None) -> None:
        """Write it as `written` makes it. UserError for an unknown extension, or if it cannot be
        written."""
        check_output_path(path)
        write_atomically(path, lambda file: file.write(self.written(path, text)))

    def written(self, path: Path, text: str | None = None) -> bytes:
        """The content of a file of it, with all that its own file says, as far as the format can.

        Args:
            path: its extension decides the format.
            text: how it was made; only PNG keeps it, under `parameters`.
        """
        kind, file = Image.registered_extensions()[path.suffix.lower()], io.BytesIO()
        picture, options = as_saved(self.picture, kind, str(path))
        if text is not None and kind == "PNG":
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_text("parameters", text)
        picture.save(file, format=kind, **options)
        return file.getvalue()


def as_saved(picture: Image.Image, kind: str, name: str) -> tuple[Image.Image, dict[str, Any]]:
    """What of a `Photo.picture` a format (by Pillow's name) can hold, with a notice if that is
    without transparency, and options of Pillow's `save` with what its `info` says. `name` is that
    of the file in the notice."""
    if kind in WITHOUT_ALPHA and picture.mode == "RGBA":
        logger.warning("%s cannot hold transparency; it is left out.", name)
        picture = picture.convert("RGB")
    says = {key: picture.info[key] for key in KEPT if key in picture.info}
    if kind == "JPEG" and len(says.get("exif", b"")) > JPEG_EXIF:
        logger.warning("%s cannot hold so much EXIF data; it is left out.", name)
        del says["exif"]
    return picture, {**imageio.SAVE_OPTIONS.get(kind, {}), **says}


def load_photo(path: Path) -> Photo:
    """Read a picture, upright, with what its file says, as `photo_of` does. UserError as of
    `imageio.open_picture`."""
    return photo_of(imageio.open_picture(path), path)


def photo_of(opened: Image.Image, path: Path | None = None) -> Photo:
    """A picture of any Pillow mode with what it says; notices where a result cannot hold it. Alpha
    is dropped for the network, not composited. `path` is of its file, if it was read."""
    name, shades = _name(path), opened.mode.startswith(("I", "F"))
    if opened.info.get(imageio.DEPTH, shades):
        logger.warning("The result has 8 bits per channel; %s has more than 8 bits.", name)
    alpha, data = None, opened.info.get("icc_profile")
    if opened.has_transparency_data and not shades:
        alpha = opened.convert("RGBA").getchannel("A")
    plain = opened.convert("L") if opened.mode == "LA" else opened
    profile = None
    if data and plain.mode in ("L", "CMYK", "LAB"):
        own = image = to_srgb(plain, data, name)
    else:
        own = image = imageio.to_rgb(opened)
        if data and not opened.mode.startswith(("I", "F", "L", "1", "CMYK")):
            profile = rgb_profile(data, name)
            image = own if profile is None else profile.shown(own)
    return Photo(image, own, profile, alpha, _exif(opened), _dpi(opened.info), path)


def _name(path: Path | None) -> str:
    """How messages call a picture."""
    return "the picture" if path is None else str(path)


def _exif(image: Image.Image) -> bytes:
    """EXIF as it may be written again. Reading a file applies its orientation; of a picture in
    memory it stays, with a notice."""
    try:
        exif = image.getexif()
        if exif.get(ORIENTATION) in TURNED:
            logger.warning(
                "The picture's EXIF data says to turn it, which holds for files only: it is taken "
                "as it lies in memory. Give its path, or use PIL.ImageOps.exif_transpose."
            )
        else:
            exif.pop(ORIENTATION, None)
        return exif.tobytes() if len(exif) else b""
    # Pillow's reader raises many types (SyntaxError, struct.error, ...) on damaged data.
    except Exception:
        logger.warning("The EXIF data of a picture is damaged; it is left out.")
        return b""


def _dpi(info: Mapping[object, object]) -> tuple[float, float] | None:
    """Pixels per inch, if the file says so in numbers that a file can hold."""
    dpi = info.get("dpi")
    if not isinstance(dpi, tuple) or len(dpi) != 2:
        return None
    across, down = (float(value) for value in dpi)
    return (across, down) if 0 < across < 65536 and 0 < down < 65536 else None
