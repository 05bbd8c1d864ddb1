"""What the UNet practises on: scenes with each object as often as the others, and windows of them.

A scene is a function of its number, which is also the seed of its picture. So a data set is latents
and numbers; captions are drawn anew each time a scene is shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from tools.tiny.captions import NOUNS, caption
from tools.tiny.layout import Scene
from tools.tiny.masks import Painted, paint
from tools.tiny.scenes import SIZE, object_box, sample_scene

FACTOR = 8  # pixels per latent
GRID = (SIZE[0] // FACTOR, SIZE[1] // FACTOR)
HELD_OUT_SEED = 10_000_000  # training seeds count up from 0 and never reach it
# The latents around an object that count as its region, at most.
MARGIN = 3
PLAIN_SHARE = 0.1  # of the windows show any part of the scene, with or without an object


@dataclass(frozen=True)
class Practice:
    """One window of a scene.

    Attributes:
        window: (top, left, bottom, right) in latents.
        region: (top, left, bottom, right) within the window, in latents: where the object is that
            the caption names, with some of what surrounds it. All of the window where no object is.
        text: the caption.
        named: whether it names the object whose turn it is, which is in the window.
    """

    window: tuple[int, int, int, int]
    region: tuple[int, int, int, int]
    text: str
    named: bool


@lru_cache(maxsize=20_000)
def practice_scene(seed: int) -> Scene:
    """The scene of a training seed: it has the object whose turn it is.

    Raises:
        ValueError: a seed that is held out.
    """
    if not 0 <= seed < HELD_OUT_SEED:
        raise ValueError(f"Seed {seed} is held out; training seeds are 0 to {HELD_OUT_SEED - 1}.")
    rng = np.random.default_rng([13, seed])
    while True:
        scene = sample_scene(rng)
        if any(obj.name == NOUNS[seed % len(NOUNS)] for obj in scene.objects):
            return scene


def bare_scene(seed: int) -> Scene:
    """The scene of a training seed without the object whose turn it is."""
    scene, name = practice_scene(seed), NOUNS[seed % len(NOUNS)]
    return replace(scene, objects=tuple(obj for obj in scene.objects if obj.name != name))


@lru_cache(maxsize=20_000)
def painted(seed: int, number: int) -> Painted:
    """Mask `number` on the scene of a training seed."""
    rng = np.random.default_rng([19, seed, number])
    return paint(practice_scene(seed), NOUNS[seed % len(NOUNS)], rng)


def practise(
    seed: int, size: tuple[int, int], rng: np.random.Generator, mask: int | None = None
) -> Practice:
    """A window of `size` latents of a scene, most of the time with the object whose turn it is; of
    a scene with one of its masks on it, with what the mask is around."""
    scene = practice_scene(seed)
    name = NOUNS[seed % len(NOUNS)]
    if mask is not None:
        box, target = painted(seed, mask).box, painted(seed, mask).around_object
    else:
        found = [obj for obj in scene.objects if obj.name == name]
        target = bool(rng.random() >= PLAIN_SHARE)
        box = object_box(found[int(rng.integers(len(found)))], *SIZE) if target else None
    top, left = (corner(rng, axis, box, size[axis]) for axis in (0, 1))
    seen = seen_objects(scene, top, left, size)
    region = (0, 0, *size)
    if box is not None:
        grown = [int(n) for n in rng.integers(0, MARGIN + 1, 4)]
        region = (
            max(0, box[0] // FACTOR - top - grown[0]),
            max(0, box[1] // FACTOR - left - grown[1]),
            min(size[0], -(-box[2] // FACTOR) - top + grown[2]),
            min(size[1], -(-box[3] // FACTOR) - left + grown[3]),
        )
    there = any(obj.name == name for obj in seen.objects)
    shows = target and there
    text = caption(seen, rng, name if shows else None)
    named = shows and name in text
    return Practice((top, left, top + size[0], left + size[1]), region, text, named)


def corner(
    rng: np.random.Generator, axis: int, box: tuple[int, int, int, int] | None, size: int
) -> int:
    """First latent along an axis of a window of `size` that holds the box (pixels) if it fits, and
    else its middle."""
    low, high = 0, GRID[axis] - size
    if box is not None:
        first, last = box[axis] / FACTOR, box[axis + 2] / FACTOR
        first, last = (first, last) if last - first <= size else 2 * [(first + last) / 2]
        low = min(max(low, int(np.ceil(last)) - size), high)
        high = max(min(high, int(first)), low)
    return int(rng.integers(low, high + 1))


def seen_objects(scene: Scene, top: int, left: int, size: tuple[int, int]) -> Scene:
    """The scene with the objects whose middle lies in a window, placed as seen in it."""
    if size == GRID:
        return scene
    kept = []
    for obj in scene.objects:
        first, start, last, end = (n / FACTOR for n in object_box(obj, *SIZE))
        y, x = (first + last) / 2 - top, (start + end) / 2 - left
        if 0 <= y < size[0] and 0 <= x < size[1]:
            kept.append(replace(obj, x=x / size[1]))
    return replace(scene, objects=tuple(kept))
