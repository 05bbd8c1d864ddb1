"""Colour profiles: a picture's own colours to sRGB, which the networks know, and back."""

import io
import logging
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

logger = logging.getLogger(__name__)

INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
ALIKE = 2  # largest difference, of 255, of colours in a profile that is as good as sRGB


@dataclass(frozen=True, eq=False)
class Profile:
    """A colour space of RGB pictures.

    Attributes:
        data: the ICC profile as files carry it.
        to_srgb, from_srgb: between it and sRGB; None for both where it is as good as sRGB.
    """

    data: bytes
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
