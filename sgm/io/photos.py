"""A picture with what else its file says, all of which a result takes along.

That is the colour profile, transparency, EXIF data and resolution.
"""

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from sgm.io.files import check_output_path, write_atomically
from sgm.io.imageio import DEPTH, open_picture, resize_picture, to_rgb, write_picture

logger = logging.getLogger(__name__)

OPAQUE = 128  # alpha from which a pixel counts as seen
ORIENTATION = 0x0112  # the EXIF tag; it is applied when a picture is read
# What the formats cannot hold, by extension.
WITHOUT_ALPHA = (".jpg", ".jpeg", ".bmp")
WITHOUT_TEXT = (".bmp",)  # no profile, EXIF
LOSSY = (".jpg", ".jpeg")
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
    """A picture as it was read; None for what its file does not say."""

    path: Path
    image: Image.Image  # RGB with 8 bits in sRGB, upright: what a network sees
    own: Image.Image  # the same in the colours of the file; the very same object where it is sRGB
    profile: Profile | None = None  # of `own`; None for sRGB
    alpha: Image.Image | None = None  # its transparency, mode L
    exif: bytes = b""  # without the orientation
    dpi: tuple[float, float] | None = None  # pixels per inch in both directions

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.height, self.image.width

    def resized(self, size: tuple[int, int]) -> "Photo":
        """At (height, width), saying so; itself at its own size."""
        image = resize_picture(self.image, size, f"Picture {self.path}")
        if image is self.image:
            return self
        filter_, wanted = Image.Resampling.LANCZOS, image.size
        own = image if self.own is self.image else self.own.resize(wanted, filter_)
        alpha = self.alpha and self.alpha.resize(wanted, filter_)
        return replace(self, image=image, own=own, alpha=alpha)

    def with_edit(
        self, result: Image.Image, touched: np.ndarray | None, blended: bool
    ) -> Image.Image:
        """A result in the colours of the file, RGB or RGBA.

        Args:
            result: RGB in sRGB, of the same size.
            touched: bool [H, W], where the edit is, if that is known; if most of it was
                transparent, it is to be seen now.
            blended: whether the bytes of the file stand elsewhere.
        """
        own = result if self.profile is None else self.profile.own(result)
        if blended and touched is not None:
            kept = np.where(touched[..., None], np.asarray(own), np.asarray(self.own))
            own = Image.fromarray(kept)
        if self.alpha is not None:
            alpha = np.array(self.alpha)
            if touched is not None and touched.any() and np.median(alpha[touched]) < OPAQUE:
                logger.warning(
                    "The edit lies where %s is transparent; it is opaque now.", self.path
                )
                alpha[touched] = 255
            own = own.copy()
            own.putalpha(Image.fromarray(alpha))
        return own

    def save(self, picture: Image.Image, path: Path, text: str | None = None) -> None:
        """Write a result of `with_edit` as `written` makes it. UserError for an unknown extension,
        or if it cannot be written."""
        check_output_path(path)
        write_atomically(path, lambda file: file.write(self.written(picture, path, text)))

    def written(self, picture: Image.Image, path: Path, text: str | None = None) -> bytes:
        """The content of a result's file, with all that this file says, as far as the format can.

        Args:
            picture: a result of `with_edit`.
            path: its extension decides the format.
            text: how it was made; only PNG keeps it, under `parameters`.
        """
        suffix, file = path.suffix.lower(), io.BytesIO()
        more = dict[str, object]()
        if suffix in WITHOUT_ALPHA and picture.mode == "RGBA":
            logger.warning("%s cannot hold transparency; it is left out.", path)
            picture = picture.convert("RGB")
        if self.profile is not None and suffix not in WITHOUT_TEXT:
            more["icc_profile"] = self.profile.data
        if self.exif and suffix not in WITHOUT_TEXT:
            more["exif"] = self.exif
        if self.dpi is not None and suffix != ".webp":
            more["dpi"] = self.dpi
        if text is not None and suffix == ".png":
            more["pnginfo"] = PngImagePlugin.PngInfo()
            more["pnginfo"].add_text("parameters", text)
        write_picture(picture, file, suffix, more)
        return file.getvalue()


def load_photo(path: Path) -> Photo:
    """Read a picture with what its file says; notices where a result cannot hold it. Alpha is
    dropped for the network, not composited. UserError as of `imageio.open_picture`."""
    opened = open_picture(path)
    if opened.info.get(DEPTH):
        logger.warning("%s has more than 8 bits per channel; the result has 8.", path)
    alpha, data = None, opened.info.get("icc_profile")
    if opened.has_transparency_data and not opened.mode.startswith(("I", "F")):
        alpha = opened.convert("RGBA").getchannel("A")
    plain = opened.convert("L") if opened.mode == "LA" else opened
    profile = None
    if data and plain.mode in ("L", "CMYK", "LAB"):
        own = image = to_srgb(plain, data, str(path))
    else:
        own = image = to_rgb(opened)
        if data and not opened.mode.startswith(("I", "F", "L", "1", "CMYK")):
            profile = rgb_profile(data, str(path))
            image = own if profile is None else profile.shown(own)
    return Photo(path, image, own, profile, alpha, _exif(opened), _dpi(opened.info))


def _exif(image: Image.Image) -> bytes:
    """EXIF as it may be written again: the orientation is applied already."""
    try:
        exif = image.getexif()
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
