"""Held-out edits: scenes that no training has seen, to judge what the tiny model makes of them.

A pair is a whole edit: the picture, where or how it is edited, and the prompt. The same seed
gives the same pair; seeds below `HELD_OUT` belong to the training and are refused.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from tools.tiny.captions import NOUNS, counted, join
from tools.tiny.crude import draw_crude
from tools.tiny.layout import PlacedObject, Scene
from tools.tiny.scenes import (
    NATIVE_HEIGHT,
    NATIVE_WIDTH,
    clear_of,
    object_box,
    place,
    render,
    sample_scene,
    with_object,
    without,
)

HELD_OUT = 20_000_000
# What is painted into a mask, out of ten.
INPAINTED = ("horse",) * 6 + ("tree", "house", "palm", "boat")
# What is drawn on a picture, each as often as the others.
DRAWN = ("sun", "palm", "tree")
# Where, by the kind of scene: the ranges of x, y and size, as in `scenes` (fractions of the
# picture), and the number of colourings. The y of a tree counts from the horizon.
PLACES = {
    ("fantasy", "sun"): ((0.08, 0.92), (0.11, 0.21), (0.13, 0.27), 1),
    ("beach", "sun"): ((0.08, 0.92), (0.1, 0.24), (0.13, 0.25), 1),
    ("beach", "palm"): ((0.1, 0.9), (0.82, 0.95), (0.45, 0.74), 2),
    ("grassland", "tree"): ((0.07, 0.93), (0.13, 0.22), (0.34, 0.56), 3),
}
GAP = 0.2  # between the middles of what is drawn and what is there, of the picture's width
MASK_MARGIN = 4  # pixels: a person paints a little more than the object will need


def _rng(seed: int) -> np.random.Generator:
    """The generator of a pair; ValueError for a seed of the training."""
    if seed < HELD_OUT:
        raise ValueError(f"Seed {seed} may have been trained on; take one from {HELD_OUT} on.")
    return np.random.default_rng(seed)


def held_out_scene(seed: int) -> Scene:
    """A scene that is in no training set; ValueError for a seed of the training."""
    return sample_scene(_rng(seed))


def prompt_for(scene: Scene, name: str) -> str:
    """A true caption of a scene, in the forms the model was trained with, that names an object."""
    words = [name]
    if scene.kind == "grassland":
        if any(obj.name == "horse" for obj in scene.objects):
            words = sorted({"horse", name}, key=NOUNS.index)  # captions never hide a horse
        named = join([counted(scene, word) for word in words])
        return f"a {scene.style} of {named} on a grassland"
    named = counted(scene, name)
    if scene.kind == "fantasy":
        return f"a fantasy landscape with {named}, trending on artstation"
    if scene.fantasy:
        return f"a fantasy beach landscape with {named}, trending on artstation"
    return f"a {scene.style} of a beach with {named}"


def inpainting_pair(seed: int) -> tuple[Image.Image, np.ndarray, str]:
    """A picture to paint an object into.

    Args:
        seed: from `HELD_OUT` on.

    Returns:
        The picture without the object (RGB, 512 x 256), the mask (bool [256, 512], True where to
        repaint: the object's box and a few pixels around), and the prompt that names it.

    Raises:
        ValueError: a seed of the training.
    """
    rng = _rng(seed)
    name = INPAINTED[int(rng.integers(len(INPAINTED)))]
    while True:
        scene = sample_scene(rng)
        found = [index for index, obj in enumerate(scene.objects) if obj.name == name]
        if len(found) == 1:
            break
    box = object_box(scene.objects[found[0]], NATIVE_HEIGHT, NATIVE_WIDTH)
    top, left = (max(0, start - MASK_MARGIN) for start in box[:2])
    mask = np.zeros((NATIVE_HEIGHT, NATIVE_WIDTH), dtype=bool)
    mask[top : box[2] + MASK_MARGIN, left : box[3] + MASK_MARGIN] = True
    return render(without(scene, found[0])), mask, prompt_for(scene, name)


def sdedit_pair(seed: int) -> tuple[Image.Image, Image.Image, str]:
    """A picture, and the same with something drawn on it as a person would.

    Args:
        seed: from `HELD_OUT` on.

    Returns:
        The picture and the edited one (RGB, 512 x 256), which differ in the object's box only,
        and the prompt that names the object.

    Raises:
        ValueError: a seed of the training.
    """
    rng = _rng(seed)
    name = DRAWN[int(rng.integers(len(DRAWN)))]
    while True:
        scene = sample_scene(rng)
        drawn = _drawn(scene, name, rng)
        if drawn is not None:
            break
    original = render(scene)
    prompt = prompt_for(with_object(scene, drawn), drawn.name)
    return original, draw_crude(original, drawn), prompt


def _drawn(scene: Scene, name: str, rng: np.random.Generator) -> PlacedObject | None:
    """An object to draw on a scene that has none of its kind yet; None where it does not belong
    or would be in the way."""
    if (scene.kind, name) not in PLACES:
        return None
    x, y, size, variants = PLACES[scene.kind, name]
    if name == "tree":
        y = (y[0] + scene.horizon, y[1] + scene.horizon)
    obj = place(rng, name, x, y, size, variants)
    there = list(scene.objects)
    taken = any(other.name == name for other in there) or not clear_of(obj, there, GAP)
    return None if taken else obj
