"""Bold, few-shaped drawings of the objects a scene can hold.

Every shape is described once in the object's own units (x to the right, y up, the foot's middle
at the origin, the object one unit high) and placed by scaling, so a drawing looks the same at
every resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from tools.tiny.layout import RGB, Palette, PlacedObject

Points = list[tuple[float, float]]

# What an object may touch, in its own units: (left, bottom, right, top), y up. Left and right are
# for the object that is not flipped.
EXTENTS: dict[str, tuple[float, float, float, float]] = {
    "horse": (-0.6, -0.06, 0.7, 1.03),
    "tree": (-0.46, -0.06, 0.46, 1.02),
    "house": (-0.72, -0.05, 0.72, 1.02),
    "sun": (-0.82, -0.82, 0.82, 0.82),
    "boat": (-0.62, -0.1, 0.62, 1.02),
    "palm": (-0.5, -0.06, 0.6, 1.12),
    "castle": (-0.56, -0.04, 0.56, 1.02),
}

HORSE_COATS: tuple[tuple[RGB, RGB], ...] = (
    ((150, 88, 46), (70, 38, 22)),
    ((70, 54, 50), (30, 24, 26)),
    ((238, 232, 222), (196, 184, 168)),
)
TREE_CROWNS: tuple[RGB, ...] = ((58, 122, 52), (86, 140, 48), (200, 120, 48))
HOUSE_WALLS: tuple[tuple[RGB, RGB], ...] = (
    ((240, 228, 204), (176, 72, 52)),
    ((226, 214, 206), (96, 84, 96)),
)
BOAT_SAILS: tuple[tuple[RGB, RGB], ...] = (
    ((250, 246, 238), (150, 60, 48)),
    ((248, 214, 120), (74, 60, 84)),
)

HORSE_OUTLINE: Points = [
    (0.395, 1.0), (0.45, 0.93), (0.55, 0.81), (0.635, 0.71), (0.645, 0.655), (0.60, 0.63),
    (0.55, 0.65), (0.49, 0.705), (0.43, 0.735), (0.395, 0.72), (0.38, 0.64), (0.365, 0.57),
    (0.345, 0.50), (0.32, 0.43), (0.30, 0.37), (0.285, 0.22), (0.28, 0.10), (0.30, 0.0),
    (0.19, 0.0), (0.195, 0.10), (0.19, 0.22), (0.175, 0.36), (0.05, 0.36), (-0.08, 0.375),
    (-0.17, 0.41), (-0.205, 0.36), (-0.265, 0.25), (-0.275, 0.19), (-0.265, 0.10),
    (-0.24, 0.0), (-0.355, 0.0), (-0.36, 0.10), (-0.38, 0.23), (-0.375, 0.32), (-0.41, 0.45),
    (-0.415, 0.57), (-0.355, 0.675), (-0.20, 0.70), (-0.05, 0.675), (0.10, 0.71),
    (0.20, 0.82), (0.28, 0.92), (0.345, 0.965),
]  # fmt: skip
HORSE_FAR_LEGS: tuple[Points, ...] = (
    [(0.20, 0.45), (0.18, 0.2), (0.16, 0.08), (0.17, 0.0), (0.065, 0.0), (0.075, 0.1),
     (0.07, 0.22), (0.03, 0.45)],
    [(-0.12, 0.45), (-0.16, 0.26), (-0.145, 0.1), (-0.12, 0.0), (-0.225, 0.0), (-0.235, 0.1),
     (-0.25, 0.26), (-0.30, 0.45)],
)  # fmt: skip
HORSE_MANE: Points = [
    (0.40, 0.985), (0.34, 0.985), (0.27, 0.945), (0.19, 0.86), (0.11, 0.75), (0.08, 0.68),
    (0.15, 0.66), (0.22, 0.72), (0.28, 0.80), (0.34, 0.88), (0.42, 0.92),
]  # fmt: skip
HORSE_TAIL: Points = [
    (-0.36, 0.68), (-0.43, 0.68), (-0.50, 0.60), (-0.53, 0.45), (-0.55, 0.25), (-0.50, 0.20),
    (-0.44, 0.28), (-0.42, 0.45), (-0.39, 0.58),
]  # fmt: skip
HORSE_BELLY: Points = [
    (0.33, 0.46), (0.26, 0.36), (0.17, 0.355), (0.05, 0.36), (-0.08, 0.375), (-0.17, 0.41),
    (-0.24, 0.38), (-0.10, 0.45), (0.05, 0.46), (0.2, 0.47),
]  # fmt: skip


def spline(points: Points, steps: int = 5) -> np.ndarray:
    """Close a smooth (Catmull-Rom) curve through `points`; returns (len(points) * steps, 2)."""
    p1 = np.asarray(points, dtype=np.float64)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (p[:, None, :] for p in (p0, p1, p2, p3))
    curve = b + 0.5 * t * ((c - a) + t * ((2 * a - 5 * b + 4 * c - d) + t * (3 * (b - c) + d - a)))
    return curve.reshape(-1, 2)


@cache
def horse_shapes() -> dict[str, np.ndarray]:
    """The horse's smooth outlines by part, each (points, 2)."""
    return {
        "tail": spline(HORSE_TAIL),
        "far0": spline(HORSE_FAR_LEGS[0]),
        "far1": spline(HORSE_FAR_LEGS[1]),
        "body": spline(HORSE_OUTLINE),
        "belly": spline(HORSE_BELLY),
        "mane": spline(HORSE_MANE),
    }


@cache
def glow_mask(size: int) -> Image.Image:
    """A soft disc falling off from the middle, `size` x `size`, mode L."""
    ramp = (np.arange(64) + 0.5) / 32 - 1
    r = np.hypot(ramp[:, None], ramp[None, :])
    soft = np.clip(1 - r, 0, 1) ** 1.5 * 190
    return Image.fromarray(soft.astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR)


class Brush:
    """Draws one object on an image in the object's own units.

    image: RGB, drawn on in place. tint: multiplies every colour.
    """

    def __init__(
        self, image: Image.Image, obj: PlacedObject, tint: tuple[float, float, float]
    ) -> None:
        self.image = image
        self.draw = ImageDraw.Draw(image)
        self.scale = obj.size * image.height
        self.x, self.y = obj.x * image.width, obj.y * image.height
        self.mirror = -1.0 if obj.flip else 1.0
        self.tint = tint

    def ink(self, colour: RGB, light: float = 1.0) -> RGB:
        """The colour in this light, 0..255 each."""
        r, g, b = (
            max(0, min(255, round(c * t * light))) for c, t in zip(colour, self.tint, strict=True)
        )
        return r, g, b

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel position of a point given in the object's units."""
        return self.x + self.mirror * x * self.scale, self.y - y * self.scale

    def shape(self, points: Points | np.ndarray, colour: RGB) -> None:
        """Fill a polygon."""
        foot, scale = np.array((self.x, self.y)), self.scale * np.array((self.mirror, -1.0))
        pixels = np.asarray(points, dtype=np.float64) * scale + foot
        self.draw.polygon(pixels.ravel().tolist(), fill=colour)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """Fill an upright ellipse with half axes rx, ry."""
        cx, cy = self.at(x, y)
        rx, ry = rx * self.scale, ry * self.scale
        self.draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=colour)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: RGB) -> None:
        """Fill a rectangle between two corners."""
        self.shape([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def soft(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """Blend in a soft ellipse (a glow, a shadow) with half axes rx, ry."""
        cx, cy = self.at(x, y)
        w, h = max(1, round(2 * rx * self.scale)), max(1, round(2 * ry * self.scale))
        mask = glow_mask(64).resize((w, h), Image.Resampling.BILINEAR)
        self.image.paste(colour, (round(cx - w / 2), round(cy - h / 2)), mask)


def draw_horse(brush: Brush, variant: int) -> None:
    """A standing horse from the side."""
    coat, hair = HORSE_COATS[variant % len(HORSE_COATS)]
    parts = horse_shapes()
    brush.soft(-0.03, 0.0, 0.5, 0.055, brush.ink((24, 40, 20)))
    brush.shape(parts["tail"], brush.ink(hair))
    brush.shape(parts["far0"], brush.ink(coat, 0.68))
    brush.shape(parts["far1"], brush.ink(coat, 0.68))
    brush.shape(parts["body"], brush.ink(coat))
    brush.shape(parts["belly"], brush.ink(coat, 0.82))
    brush.shape(parts["mane"], brush.ink(hair))
    for left, right in ((0.19, 0.298), (-0.352, -0.24)):
        brush.box(left, 0.0, right, 0.055, brush.ink((46, 38, 36)))
    brush.disc(0.455, 0.85, 0.019, 0.019, brush.ink((20, 16, 16)))


def draw_tree(brush: Brush, variant: int) -> None:
    """A round tree."""
    crown = TREE_CROWNS[variant % len(TREE_CROWNS)]
    brush.soft(0.0, 0.0, 0.4, 0.055, brush.ink((24, 40, 20)))
    bark = brush.ink((104, 74, 50))
    brush.shape([(-0.075, 0.0), (0.075, 0.0), (0.045, 0.45), (-0.045, 0.45)], bark)
    for x, y, r in ((-0.2, 0.56, 0.22), (0.2, 0.56, 0.22), (0.0, 0.72, 0.28)):
        brush.disc(x, y, r, r, brush.ink(crown, 0.82))
    for x, y, r in ((-0.16, 0.62, 0.19), (0.08, 0.76, 0.21)):
        brush.disc(x, y, r, r, brush.ink(crown, 1.06))


def draw_house(brush: Brush, variant: int) -> None:
    """A cottage with a roof, a door and two windows."""
    wall, roof = HOUSE_WALLS[variant % len(HOUSE_WALLS)]
    brush.soft(0.0, 0.0, 0.7, 0.05, brush.ink((24, 40, 20)))
    brush.box(0.32, 0.6, 0.46, 1.0, brush.ink(roof, 0.7))
    brush.box(-0.56, 0.0, 0.56, 0.56, brush.ink(wall))
    brush.shape([(-0.7, 0.5), (0.7, 0.5), (0.46, 0.95), (-0.46, 0.95)], brush.ink(roof))
    brush.box(-0.11, 0.0, 0.11, 0.38, brush.ink((112, 70, 44)))
    for x in (-0.36, 0.36):
        brush.box(x - 0.1, 0.18, x + 0.1, 0.38, brush.ink((110, 150, 184)))


def draw_sun(brush: Brush, colour: RGB) -> None:
    """A disc with a glow around it; the light source itself is not tinted."""
    brush.soft(0.0, 0.0, 0.8, 0.8, colour)
    brush.disc(0.0, 0.0, 0.5, 0.5, colour)


def draw_boat(brush: Brush, variant: int) -> None:
    """A sailing boat: hull, mast and two sails."""
    sail, hull = BOAT_SAILS[variant % len(BOAT_SAILS)]
    brush.box(-0.05, 0.2, 0.01, 1.0, brush.ink((92, 66, 50)))
    brush.shape([(0.04, 0.3), (0.5, 0.3), (0.04, 0.97)], brush.ink(sail))
    brush.shape([(-0.09, 0.3), (-0.4, 0.3), (-0.09, 0.85)], brush.ink(sail, 0.88))
    brush.shape([(-0.6, 0.24), (0.6, 0.24), (0.42, 0.0), (-0.42, 0.0)], brush.ink(hull))


# A frond: where it ends and how high it arches, from the trunk's top.
FRONDS = ((-0.42, -0.2, 0.16), (-0.4, 0.06, 0.12), (-0.16, -0.34, 0.0), (0.42, -0.2, 0.16),
          (0.4, 0.06, 0.12), (0.16, -0.34, 0.0))  # fmt: skip
PALM_TOP = (0.1, 0.86)


@cache
def palm_shapes() -> tuple[np.ndarray, list[np.ndarray]]:
    """The trunk's and the fronds' outlines, each (points, 2)."""
    t = np.linspace(0, 1, 12)
    middle = np.stack([PALM_TOP[0] * t**1.8 - 0.04 * np.sin(np.pi * t), PALM_TOP[1] * t], 1)
    half = (0.055 - 0.02 * t)[:, None] * np.array([[1.0, 0.0]])
    trunk = np.concatenate([middle - half, (middle + half)[::-1]])
    fronds = []
    for dx, dy, arch in FRONDS:
        length = np.hypot(dx, dy)
        normal = np.array([[-dy, dx]]) / length * np.sign(dx)
        line = np.stack([dx * t, dy * t + arch * np.sin(np.pi * t)], 1) + np.array(PALM_TOP)
        width = (0.065 * np.sin(np.pi * t**0.75) ** 0.8)[:, None]
        fronds.append(np.concatenate([line + normal * width, (line - normal * width)[::-1]]))
    return trunk, fronds


def draw_palm(brush: Brush, variant: int) -> None:
    """A leaning palm with six thick fronds."""
    trunk, fronds = palm_shapes()
    brush.soft(0.05, 0.0, 0.3, 0.05, brush.ink((110, 84, 54)))
    brush.shape(trunk, brush.ink((134, 96, 62)))
    green = ((56, 130, 62), (88, 140, 52))[variant % 2]
    for index, frond in enumerate(fronds):
        brush.shape(frond, brush.ink(green, 0.78 if index % 3 == 2 else 1.0))


def draw_castle(brush: Brush, variant: int) -> None:
    """Three towers with pointed roofs."""
    stone = ((128, 112, 148), (166, 152, 150))[variant % 2]
    roof = ((96, 56, 120), (70, 84, 140))[variant % 2]
    brush.box(-0.4, 0.0, 0.4, 0.36, brush.ink(stone, 0.9))
    for x, half, top, tip in (
        (-0.38, 0.12, 0.5, 0.76),
        (0.38, 0.12, 0.5, 0.76),
        (0.0, 0.15, 0.66, 1.0),
    ):
        brush.box(x - half, 0.0, x + half, top, brush.ink(stone))
        brush.box(x, 0.0, x + half, top, brush.ink(stone, 0.8))
        brush.shape([(x - half - 0.04, top), (x + half + 0.04, top), (x, tip)], brush.ink(roof))
    brush.disc(0.0, 0.5, 0.045, 0.06, (255, 220, 130))
    brush.box(-0.08, 0.0, 0.08, 0.2, brush.ink((60, 44, 60)))


DRAWERS: dict[str, Callable[[Brush, int], None]] = {
    "horse": draw_horse,
    "tree": draw_tree,
    "house": draw_house,
    "boat": draw_boat,
    "palm": draw_palm,
    "castle": draw_castle,
}


def draw_object(image: Image.Image, obj: PlacedObject, palette: Palette) -> None:
    """Draw an object on `image` (RGB, any size, in place) in the palette's light.

    Raises KeyError for an object this module does not know.
    """
    if obj.name == "sun":
        draw_sun(Brush(image, obj, (1.0, 1.0, 1.0)), palette.sun)
        return
    DRAWERS[obj.name](Brush(image, obj, palette.tint), obj.variant)
