"""Held-out edits: the same seed, the same pair; what is edited is what the prompt names."""

from collections import Counter

import numpy as np
import pytest

from tools.tiny import pairs
from tools.tiny.pairs import HELD_OUT, held_out_scene, inpainting_pair, sdedit_pair

SEEDS = range(HELD_OUT, HELD_OUT + 24)
NOUNS = ("horse", "tree", "house", "palm", "boat", "sun")


def pixels(image):
    return np.asarray(image).astype(np.int16)


def named(prompt):
    words = prompt.replace(",", " ").split()
    return {noun for noun in NOUNS if noun in words or f"{noun}s" in words}


def test_inpainting_pairs():
    kinds = Counter()
    for seed in SEEDS:
        picture, mask, prompt = inpainting_pair(seed)
        assert (picture.size, picture.mode) == ((512, 256), "RGB")
        assert (mask.shape, mask.dtype) == ((256, 512), bool)
        assert 0.005 < mask.mean() < 0.5
        assert named(prompt), prompt
        kinds.update(named(prompt))
    assert kinds["horse"] > len(SEEDS) / 3
    assert len(kinds) >= 4


def test_the_mask_holds_the_object_that_is_left_out(monkeypatch):
    """With the object left in, only pixels of the mask change."""
    for seed in SEEDS[:6]:
        picture, mask, prompt = inpainting_pair(seed)
        with monkeypatch.context() as patch:
            patch.setattr(pairs, "without", lambda scene, index: scene)
            whole, same, again = inpainting_pair(seed)
        change = np.abs(pixels(whole) - pixels(picture)).max(axis=2)
        assert np.array_equal(mask, same) and prompt == again
        assert change[mask].max() > 20
        assert not change[~mask].any()


def test_sdedit_pairs():
    kinds = Counter()
    for seed in SEEDS:
        original, edited, prompt = sdedit_pair(seed)
        assert original.size == edited.size == (512, 256)
        share = (pixels(original) != pixels(edited)).any(axis=2).mean()
        assert 0.002 < share < 0.2
        assert named(prompt), prompt
        kinds.update(named(prompt))
    assert min(kinds[name] for name in ("sun", "palm", "tree")) >= 2


@pytest.mark.parametrize("make", [inpainting_pair, sdedit_pair])
def test_same_seed_same_pair(make):
    first, again, other = make(HELD_OUT), make(HELD_OUT), make(HELD_OUT + 1)
    for value, same in zip(first[:2], again[:2], strict=True):
        assert np.array_equal(np.asarray(value), np.asarray(same))
    assert first[2] == again[2]
    assert not np.array_equal(np.asarray(first[0]), np.asarray(other[0]))


@pytest.mark.parametrize("make", [inpainting_pair, sdedit_pair, held_out_scene])
def test_training_seeds_are_refused(make):
    with pytest.raises(ValueError, match="trained on"):
        make(HELD_OUT - 1)
