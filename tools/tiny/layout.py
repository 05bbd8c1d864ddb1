"""What a scene is made of: the dataclasses and palettes the drawing and captions share."""

from __future__ import annotations

from dataclasses import dataclass

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class PlacedObject:
    """One object of a scene.

    name: "horse", "tree", "house", "sun", "boat", "palm" or "castle".
    x, y: the foot's middle (a sun: its centre) as fractions of the picture's width and height.
    size: the object's height (a sun: its diameter) as a fraction of the picture's height.
    flip: mirrored left to right; a horse that is not flipped looks right.
    variant: which of the object's colourings.
    """

    name: str
    x: float
    y: float
    size: float
    flip: bool = False
    variant: int = 0


@dataclass(frozen=True)
class Scene:
    """A whole picture, independent of any resolution.

    kind: "grassland", "beach" or "fantasy".
    palette: a key of PALETTES.
    style: "photograph" or "painting".
    seed: fixes the background's shapes (hills, ridges, clouds).
    horizon: where the sky ends, as a fraction of the height from the top.
    objects: in any order; drawing sorts them by depth.
    clouds, lake: what the background has besides.
    """

    kind: str
    palette: str
    style: str
    seed: int
    horizon: float
    objects: tuple[PlacedObject, ...] = ()
    clouds: bool = False
    lake: bool = False

    @property
    def fantasy(self) -> bool:
        """Whether the picture is a fantasy one (a fantasy landscape or a fantasy beach)."""
        return self.palette in FANTASY_PALETTES


@dataclass(frozen=True)
class Palette:
    """Colours of a time of day; `tint` multiplies the objects' own colours."""

    sky_top: RGB
    sky_low: RGB
    far: RGB
    near: RGB
    ground_top: RGB
    ground_low: RGB
    cloud: RGB
    sun: RGB
    tint: tuple[float, float, float]
    water_top: RGB = (90, 150, 190)
    water_low: RGB = (60, 110, 160)


PALETTES: dict[str, Palette] = {
    "day": Palette(
        (78, 146, 222),
        (206, 230, 246),
        (128, 172, 160),
        (112, 168, 92),
        (134, 184, 76),
        (72, 124, 42),
        (252, 252, 252),
        (255, 236, 150),
        (1.0, 1.0, 1.0),
    ),
    "evening": Palette(
        (104, 118, 184),
        (252, 206, 150),
        (150, 140, 146),
        (146, 146, 82),
        (172, 164, 72),
        (98, 98, 42),
        (255, 226, 200),
        (255, 226, 140),
        (1.0, 0.9, 0.78),
    ),
    "morning": Palette(
        (142, 176, 206),
        (232, 234, 226),
        (150, 178, 172),
        (122, 164, 116),
        (124, 170, 94),
        (66, 110, 58),
        (250, 250, 248),
        (255, 244, 196),
        (0.97, 0.99, 1.0),
    ),
    "violet": Palette(
        (58, 38, 112),
        (244, 150, 170),
        (150, 110, 180),
        (74, 52, 120),
        (74, 60, 104),
        (36, 28, 62),
        (236, 170, 200),
        (255, 232, 170),
        (0.72, 0.6, 0.82),
        (196, 134, 184),
        (64, 48, 116),
    ),
    "teal": Palette(
        (18, 62, 104),
        (150, 222, 206),
        (84, 150, 168),
        (28, 84, 112),
        (40, 104, 92),
        (16, 52, 58),
        (190, 232, 224),
        (252, 250, 206),
        (0.7, 0.86, 0.86),
        (118, 196, 192),
        (24, 84, 118),
    ),
    "ember": Palette(
        (96, 40, 92),
        (255, 184, 92),
        (198, 116, 108),
        (112, 52, 92),
        (108, 66, 70),
        (54, 30, 48),
        (255, 198, 140),
        (255, 240, 176),
        (0.9, 0.68, 0.62),
        (246, 166, 104),
        (106, 58, 104),
    ),
    "seaside": Palette(
        (62, 146, 226),
        (210, 236, 248),
        (128, 168, 176),
        (104, 152, 120),
        (240, 222, 168),
        (222, 190, 124),
        (252, 252, 252),
        (255, 236, 140),
        (1.0, 1.0, 1.0),
        (96, 190, 208),
        (28, 112, 178),
    ),
    "sunset": Palette(
        (92, 98, 176),
        (255, 190, 120),
        (156, 124, 150),
        (140, 110, 120),
        (232, 190, 140),
        (190, 142, 104),
        (255, 214, 180),
        (255, 240, 170),
        (0.98, 0.84, 0.72),
        (240, 176, 140),
        (84, 92, 156),
    ),
}
GRASSLAND_PALETTES = ("day", "evening", "morning")
FANTASY_PALETTES = ("violet", "teal", "ember")
BEACH_PALETTES = ("seaside", "sunset")
