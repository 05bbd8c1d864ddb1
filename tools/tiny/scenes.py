"""A seeded procedural data set of captioned scenes, for training the tiny model.

`sample_scene` draws a description, `render` turns it into a picture of any size (native
256 x 512), `caption` into words. `without`, `with_object` and `object_box` make pairs for
inpainting; `draw_crude` does what a person does before an SDEdit: it paints a flat stand-in.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance

from tools.tiny.backgrounds import GROUNDS, draw_sky
from tools.tiny.captions import caption
from tools.tiny.crude import draw_crude
from tools.tiny.layout import (
    BEACH_PALETTES,
    FANTASY_PALETTES,
    GRASSLAND_PALETTES,
    PALETTES,
    PlacedObject,
    Scene,
)
from tools.tiny.objects import EXTENTS, draw_object

__all__ = [
    "SIZE",
    "PlacedObject",
    "Scene",
    "caption",
    "draw_crude",
    "object_box",
    "render",
    "sample_scene",
    "with_object",
    "without",
]

NATIVE_HEIGHT, NATIVE_WIDTH = SIZE = 256, 512


def place(
    rng: np.random.Generator,
    name: str,
    x: tuple[float, float],
    y: tuple[float, float],
    size: tuple[float, float],
    variants: int = 1,
) -> PlacedObject:
    """An object somewhere in the given ranges, facing either way."""
    return PlacedObject(
        name,
        float(rng.uniform(*x)),
        float(rng.uniform(*y)),
        float(rng.uniform(*size)),
        bool(rng.random() < 0.5),
        int(rng.integers(variants)),
    )


def clear_of(obj: PlacedObject, others: list[PlacedObject], gap: float) -> bool:
    """Whether no other object's middle is within `gap` (a fraction of the width) of this one's."""
    return all(abs(obj.x - other.x) > gap for other in others)


def grassland_objects(rng: np.random.Generator, horizon: float) -> list[PlacedObject]:
    """A horse in three scenes of five; trees, a house and the sun now and then."""
    found: list[PlacedObject] = []
    has_horse = rng.random() < 0.6
    horse = place(rng, "horse", (0.12, 0.88), (0.8, 0.95), (0.3, 0.62), 3)
    # What stands behind is placed where it does not hide in the horse.
    behind_y = (horizon + 0.13, horizon + 0.22)
    for name, chance, size, variants in (
        ("tree", 0.4, (0.34, 0.56), 3),
        ("tree", 0.15, (0.3, 0.5), 2),
        ("house", 0.2, (0.22, 0.3), 2),
    ):
        other = place(rng, name, (0.07, 0.93), behind_y, size, variants)
        clear = not has_horse or clear_of(other, [horse], 0.24)
        if rng.random() < chance and clear and clear_of(other, found, 0.2):
            found.append(other)
    if has_horse:
        found.append(horse)
    sun = place(rng, "sun", (0.08, 0.92), (0.1, 0.22), (0.12, 0.2))
    return [*found, sun] if rng.random() < 0.22 and clear_of(sun, found, 0.2) else found


def fantasy_objects(rng: np.random.Generator, horizon: float, lake: bool) -> list[PlacedObject]:
    """The sun in half of the scenes, a castle in three of ten, a tree in one of seven."""
    found: list[PlacedObject] = []
    if rng.random() < 0.5:
        found.append(place(rng, "sun", (0.08, 0.92), (0.11, 0.21), (0.13, 0.27)))
    foot = horizon + (0.36 if lake else 0.16)
    castle = place(rng, "castle", (0.12, 0.88), (foot, foot + 0.08), (0.3, 0.46), 2)
    if rng.random() < 0.35 and clear_of(castle, found, 0.14):
        found.append(castle)
    tree = place(rng, "tree", (0.08, 0.92), (0.88, 0.95), (0.4, 0.55), 2)
    if rng.random() < 0.25 and clear_of(tree, found, 0.2):
        found.append(tree)
    return found


def beach_objects(rng: np.random.Generator, horizon: float) -> list[PlacedObject]:
    """A palm in half of the scenes, a boat and the sun in one of three each."""
    found: list[PlacedObject] = []
    if rng.random() < 0.5:
        found.append(place(rng, "palm", (0.1, 0.9), (0.82, 0.95), (0.45, 0.74), 2))
    y = (horizon + 0.06, horizon + 0.12)
    boat = place(rng, "boat", (0.1, 0.9), y, (0.16, 0.3), 2)
    if rng.random() < 0.42 and clear_of(boat, found, 0.14):
        found.append(boat)
    sun = place(rng, "sun", (0.08, 0.92), (0.1, 0.24), (0.13, 0.25))
    if rng.random() < 0.45 and clear_of(sun, found[:1], 0.2):
        found.append(sun)
    return found


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: half are grasslands, a quarter fantasy landscapes, a quarter beaches."""
    kind = ("grassland", "grassland", "fantasy", "beach")[int(rng.integers(4))]
    horizon = float(rng.uniform(0.42, 0.52))
    seed = int(rng.integers(2**31))
    clouds = bool(rng.random() < 0.55)
    if kind == "grassland":
        palette = GRASSLAND_PALETTES[int(rng.integers(3))]
        objects = grassland_objects(rng, horizon)
        style = "photograph" if rng.random() < 0.85 else "painting"
        return Scene(kind, palette, style, seed, horizon, tuple(objects), clouds)
    if kind == "fantasy":
        palette = FANTASY_PALETTES[int(rng.integers(3))]
        lake = bool(rng.random() < 0.5)
        objects = fantasy_objects(rng, horizon, lake)
        return Scene(kind, palette, "painting", seed, horizon, tuple(objects), clouds, lake)
    fantasy = rng.random() < 0.5
    names = FANTASY_PALETTES if fantasy else BEACH_PALETTES
    palette = names[int(rng.integers(len(names)))]
    objects = beach_objects(rng, horizon)
    style = "painting" if fantasy or rng.random() < 0.2 else "photograph"
    return Scene(kind, palette, style, seed, horizon, tuple(objects), clouds)


def render(scene: Scene, height: int = NATIVE_HEIGHT, width: int = NATIVE_WIDTH) -> Image.Image:
    """Draw the scene as an RGB picture of height x width pixels, antialiased."""
    palette = PALETTES[scene.palette]
    rng = np.random.default_rng(scene.seed)
    # Drawn at twice the size: averaging 2 x 2 pixels is the antialiasing.
    image = draw_sky(scene, palette, rng, (2 * width, 2 * height))
    for obj in scene.objects:
        if obj.name == "sun":
            draw_object(image, obj, palette)
    GROUNDS[scene.kind](image, scene, palette, rng)
    for obj in sorted(scene.objects, key=lambda placed: placed.y):
        if obj.name != "sun":
            draw_object(image, obj, palette)
    small = image.reduce(2)
    if scene.style == "painting":
        small = ImageEnhance.Color(small).enhance(1.2)
    return small


def without(scene: Scene, index: int) -> Scene:
    """The scene without its object number `index`; IndexError if there is none."""
    kept = list(scene.objects)
    del kept[index]
    return replace(scene, objects=tuple(kept))


def with_object(scene: Scene, obj: PlacedObject) -> Scene:
    """The scene with one more object."""
    return replace(scene, objects=(*scene.objects, obj))


def object_box(obj: PlacedObject, height: int, width: int) -> tuple[int, int, int, int]:
    """The pixels an object may touch: (top, left, bottom, right), ends exclusive, clipped."""
    left, bottom, right, top = EXTENTS[obj.name]
    if obj.flip:
        left, right = -right, -left
    scale, x, y = obj.size * height, obj.x * width, obj.y * height
    return (
        max(0, int(np.floor(y - top * scale)) - 1),
        max(0, int(np.floor(x + left * scale)) - 1),
        min(height, int(np.ceil(y - bottom * scale)) + 1),
        min(width, int(np.ceil(x + right * scale)) + 1),
    )
