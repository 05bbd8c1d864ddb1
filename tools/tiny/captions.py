"""Captions that say what a scene shows, and never what it does not."""

from __future__ import annotations

import numpy as np

from tools.tiny.layout import Scene

FANTASY_PROMPT = "A fantasy landscape, trending on artstation"
FANTASY_BEACH_PROMPT = "A fantasy beach landscape, trending on artstation"

# The word for each object, in the order a caption names them.
NOUNS = ("horse", "tree", "house", "castle", "palm", "boat", "sun")
PLACES = ("on the left", "in the middle", "on the right")
# Smaller than the first number is called small, larger than the second one large.
SIZES = {
    "horse": (0.4, 0.52),
    "tree": (0.38, 0.48),
    "house": (0.24, 0.28),
    "castle": (0.34, 0.42),
    "palm": (0.54, 0.65),
    "boat": (0.2, 0.26),
    "sun": (0.16, 0.21),
}


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


def with_target(named: list[str], target: str | None) -> list[str]:
    """The names with the target's among them, in the order of `NOUNS`."""
    return sorted({*named, target} - {None}, key=NOUNS.index)


def grassland_caption(scene: Scene, rng: np.random.Generator, target: str | None) -> str:
    """Always names the horse if there is one; other objects often."""
    others = [name for name in present(scene) if name not in ("horse", "sun")]
    named = [name for name in others if rng.random() < 0.6]
    if "horse" in present(scene):
        # Half of the captions are the plain prompt, whatever else is in the picture.
        named = ["horse"] if rng.random() < 0.5 else ["horse", *named]
    named = with_target(named, target)
    words = described(scene, named, target, rng)
    what = f"{join(words)} on a grassland" if words else "a grassland"
    frames = (f"a {scene.style} of {what}",) * 6 + (what,)
    return frames[int(rng.integers(len(frames)))]


def landscape_caption(scene: Scene, rng: np.random.Generator, target: str | None) -> str:
    """For fantasy landscapes, fantasy beaches and plain beaches."""
    named = with_target([name for name in present(scene) if rng.random() < 0.7], target)
    words = described(scene, named, target, rng)
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
    plain = 0.45 if target is None else 0.15
    return exact if rng.random() < plain else forms[int(rng.integers(2))]


def described(
    scene: Scene, named: list[str], target: str | None, rng: np.random.Generator
) -> list[str]:
    """What each is called; the target in three of ten captions by its size or its place too."""
    words = {name: counted(scene, name) for name in named}
    found = [obj for obj in scene.objects if obj.name == target]
    if len(found) == 1 and rng.random() < 0.3:
        obj, (small, large) = found[0], SIZES[found[0].name]
        place = PLACES[0 if obj.x < 0.36 else 2 if obj.x > 0.64 else 1]
        size = "small " if obj.size < small else "large " if obj.size > large else ""
        article, noun = words[obj.name].split()
        words[obj.name] = f"{article} {size}{noun}"
        if rng.random() < 0.7:
            words[obj.name] += f" {place}"
    return list(words.values())


def caption(scene: Scene, rng: np.random.Generator, target: str | None = None) -> str:
    """A caption for the scene, drawn from its truthful ones; the same `rng` state, the same one.

    Args:
        target: an object of the scene that the caption is to name, and may say more of.
    """
    if scene.kind == "grassland":
        return grassland_caption(scene, rng, target)
    return landscape_caption(scene, rng, target)
