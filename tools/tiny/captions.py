"""Captions that say what a scene shows, and never what it does not."""

from __future__ import annotations

import numpy as np

from tools.tiny.layout import Scene

FANTASY_PROMPT = "A fantasy landscape, trending on artstation"
FANTASY_BEACH_PROMPT = "A fantasy beach landscape, trending on artstation"

# The word for each object, in the order a caption names them.
NOUNS = ("horse", "tree", "house", "castle", "palm", "boat", "sun")


def join(words: list[str]) -> str:
    """["a palm", "a boat"] -> "a palm and a boat"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def counted(scene: Scene, name: str) -> str:
    """The object with its article, or in the plural where the scene has several."""
    if name == "sun":
        return "the sun" if scene.kind != "fantasy" else "a sun"
    several = sum(obj.name == name for obj in scene.objects) > 1
    return f"{name}s" if several else f"a {name}"


def present(scene: Scene) -> list[str]:
    """The kinds of objects in the scene, in a fixed order."""
    names = {obj.name for obj in scene.objects}
    return [name for name in NOUNS if name in names]


def grassland_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Always names the horse if there is one; other objects often."""
    others = [name for name in present(scene) if name not in ("horse", "sun")]
    named = [name for name in others if rng.random() < 0.6]
    if "horse" in present(scene):
        # Half of the captions are the plain prompt, whatever else is in the picture.
        named = ["horse"] if rng.random() < 0.5 else ["horse", *named]
    what = (
        join([counted(scene, name) for name in named]) + " on a grassland"
        if named
        else "a grassland"
    )
    frames = (f"a {scene.style} of {what}",) * 6 + (what,)
    return frames[int(rng.integers(len(frames)))]


def landscape_caption(scene: Scene, rng: np.random.Generator) -> str:
    """For fantasy landscapes, fantasy beaches and plain beaches."""
    named = [name for name in present(scene) if rng.random() < 0.7]
    words = [counted(scene, name) for name in named]
    if scene.kind == "fantasy":
        place, exact = "a fantasy landscape", FANTASY_PROMPT
        parts = ["mountains"] if rng.random() < 0.5 else []
        parts += ["a lake"] if scene.lake and rng.random() < 0.6 else []
        words = parts + words
    elif scene.fantasy:
        place, exact = "a fantasy beach landscape", FANTASY_BEACH_PROMPT
    else:
        place, exact = "a beach", f"a {scene.style} of a beach"
    detail = f"{place} with {join(words)}" if words else place
    forms = [
        detail,
        f"{detail}, trending on artstation" if scene.fantasy else f"a {scene.style} of {detail}",
    ]
    return exact if rng.random() < 0.45 else forms[int(rng.integers(2))]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption for the scene, drawn from its truthful ones; the same `rng` state, the same one."""
    if scene.kind == "grassland":
        return grassland_caption(scene, rng)
    return landscape_caption(scene, rng)
