"""What the values of a mask mean: two of them, a soft black and white, or nothing clear.

Levels are float32 [h, w] in [0, 1]: 1 is repainted, 0 stays, between them lies a soft border.
"""

import logging

import numpy as np
from PIL import Image

from sgm.errors import UserError
from sgm.io.imageio import deep_to_uint8, to_rgb

logger = logging.getLogger(__name__)

SNAP = 0.04  # levels so near to 0 or 1 are 0 or 1: lossy formats leave white not quite white
# Grey values of a picture whose two halves are each so narrow and so far apart are two values.
TIGHT, APART = 12.0, 24.0
# Share of a soft mask that is nearly black or white, and how near (of 255) that is.
EXTREME_SHARE, NEAR = 0.5, 16
GREY = 24  # largest difference of the channels of a grey pixel; lossy formats tint a little
CLEAR_SHARE = 0.001  # share of transparent pixels from which transparency means something
OPAQUE = 128  # alpha from which a pixel counts as visible
# Luminance of RGB (ITU-R 601-2, as Pillow's mode L).
LUMINANCE = np.array([0.299, 0.587, 0.114])


def snapped(levels: np.ndarray) -> np.ndarray:
    """Levels with those near 0 and 1 put there, and the rest stretched between them."""
    return ((levels - SNAP) / (1 - 2 * SNAP)).clip(0, 1).astype(np.float32)


def two_values(values: np.ndarray, name: str) -> np.ndarray | None:
    """Levels of an array [h, w] of any real dtype that holds exactly two values, the larger meaning
    repaint; None if it holds more, or one."""
    low, high = values.min(), values.max()
    chosen = values == high
    if low == high or not (chosen | (values == low)).all():
        return None
    if (low, high) not in ((0, 1), (0, 255), (0, 65535)):
        logger.warning(
            "%s holds two values, %g and %g: where it is %g is repainted.",
            *(name, low, high, high),
        )
    return chosen.astype(np.float32)


def picture_levels(image: Image.Image, name: str) -> np.ndarray:
    """Levels of a mask picture, by its alpha channel or by its brightness.

    Alpha speaks where part of the picture is transparent: if one colour is left to be seen, that is
    what was painted; if a photograph, it was erased where it is to be repainted; if black and
    white, that is the mask.

    Raises:
        UserError: the values are no mask.
    """
    deep = image.mode == "F" or image.mode.startswith("I")
    if deep:
        raw = np.asarray(image)
        found = two_values(raw, name)
        return _grey_levels(deep_to_uint8(image)[..., None], name) if found is None else found
    rgb = np.asarray(to_rgb(image))
    if not image.has_transparency_data:
        return _grey_levels(rgb, name)
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    visible = alpha >= OPAQUE
    if (~visible).mean() < CLEAR_SHARE or not visible.any():
        return _grey_levels(rgb, name)
    seen = _luminance(rgb[visible])
    if seen.max() - seen.min() < APART:
        logger.warning("%s is taken from its alpha channel: opaque is repainted.", name)
        return snapped(alpha / 255)
    try:
        return np.where(visible, _grey_levels(np.where(visible[..., None], rgb, 0), name), 0)
    except UserError:
        logger.warning(
            "%s is a picture with a transparent part: what was erased is repainted.", name
        )
        return snapped(1 - alpha / 255)


def _luminance(rgb: np.ndarray) -> np.ndarray:
    """float32 [...] from uint8 [..., 1 or 3]."""
    if rgb.shape[-1] == 1:
        return rgb[..., 0].astype(np.float32)
    return rgb.astype(np.float32) @ LUMINANCE.astype(np.float32)


def _grey_levels(rgb: np.ndarray, name: str) -> np.ndarray:
    """Levels of uint8 [h, w, 1 or 3] by brightness.

    Raises:
        UserError: neither two values nor a soft black and white.
    """
    grey = _luminance(rgb)
    low, high = float(grey.min()), float(grey.max())
    plain = low == high
    if plain and (low < NEAR or low > 255 - NEAR):
        # A mask array of ones saved as a picture looks black; it cannot mean anything else.
        return np.full(grey.shape, float(low > 255 - NEAR or low == 1), np.float32)
    found = None if plain else two_values(grey.round(2), name)
    if found is not None:
        return found
    if not plain:
        middle = (low + high) / 2
        below, above = grey[grey <= middle], grey[grey > middle]
        first, second = float(below.mean()), float(above.mean())
        if max(below.std(), above.std()) < TIGHT and second - first > APART:
            return snapped((grey - first) / (second - first))
    extreme = float(((grey < NEAR) | (grey > 255 - NEAR)).mean())
    colourless = int((rgb.max(-1) - rgb.min(-1)).max()) <= GREY
    if colourless and extreme >= EXTREME_SHARE and high > 255 - NEAR:
        return snapped(grey / 255)
    raise UserError(
        f"{name} is not clear: it holds more than two values, and {extreme:.0%} of it is "
        "black or white; paint white where to repaint and black elsewhere, or give two values."
    )
