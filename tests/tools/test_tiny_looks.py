"""The judge and the measures of what people see first of an edit."""

import numpy as np
import pytest
import torch
from PIL import Image

from tools.tiny import judge, pairs
from tools.tiny.captions import NOUNS
from tools.tiny.checkpoints import read
from tools.tiny.judge import NOTHING, TEST_SEED, WEIGHTS, accuracy, collect, load_judge, object_in
from tools.tiny.looks import asked_for, bounds, colour_step, looks, sharpness
from tools.tiny.pairs import HELD_OUT, inpainting_pair, sdedit_pair
from tools.tiny.scenes import SIZE, object_box, render, sample_scene, without

MASK = torch.zeros(8, 8, dtype=torch.bool)
MASK[2:6, 3:7] = True


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.repeat(values.astype(np.uint8)[..., None], 3, axis=2))


def test_the_judge_knows_renders_that_it_has_not_seen() -> None:
    _, metadata = read(WEIGHTS)
    assert float(metadata["held_out_accuracy_all"]) > 0.9
    shares = accuracy(load_judge(), *collect(TEST_SEED + 10_000, 42))
    assert shares["all"] > 0.85, shares


def test_the_judge_sees_whether_the_object_is_there() -> None:
    """The same place of the same scene, with the object and without it."""
    said = load_judge()
    right = []
    for seed in range(TEST_SEED + 20_000, TEST_SEED + 20_060):
        scene = sample_scene(np.random.default_rng(seed))
        if len(scene.objects) != 1:
            continue
        box = object_box(scene.objects[0], *SIZE)
        right.append(object_in(said, render(scene), box) == scene.objects[0].name)
        right.append(object_in(said, render(without(scene, 0)), box) == "nothing")
    assert len(right) > 20 and np.mean(right) > 0.85


def test_examples_are_apart_from_every_other_scene() -> None:
    assert min(judge.TRAIN_SEED, TEST_SEED) > HELD_OUT + 1_000_000
    views, labels = collect(TEST_SEED, 14)
    assert views.shape[1:] == (4, judge.SIDE, judge.SIDE)
    for name in range(len(NOUNS)):
        assert (labels == name).sum() == 2
    assert (labels == NOTHING).sum() >= 14  # broken ones, and most places without the object


def test_a_view_marks_the_region() -> None:
    picture = grey(np.full((256, 512), 100))
    seen = judge.view(picture, (0, 0, 60, 120))  # at the corner: beyond it the edge goes on
    assert torch.allclose(seen[:3], torch.full((3, 64, 64), 100 / 127.5 - 1), atol=1e-3)
    height, width = seen[3].amax(1).sum(), seen[3].amax(0).sum()
    side = 64 / judge.CONTEXT
    assert (height, width) == (pytest.approx(side / 2, abs=1.1), pytest.approx(side, abs=1.1))


def test_what_stands_a_little_beside_its_region_is_seen() -> None:
    """Latents around a mask are sampled too, so an object may stand over its border."""
    said, right = load_judge(), []
    for seed in range(TEST_SEED + 30_000, TEST_SEED + 30_060):
        scene = sample_scene(np.random.default_rng(seed))
        if len(scene.objects) != 1:
            continue
        top, left, bottom, right_edge = object_box(scene.objects[0], *SIZE)
        region = top + 20, left + 20, bottom, right_edge
        if region[2] - region[0] > 12 and region[3] - region[1] > 12:
            right.append(object_in(said, render(scene), region) == scene.objects[0].name)
    assert len(right) > 10 and np.mean(right) > 0.85


def test_variations_move_and_soften_the_picture_and_not_the_region() -> None:
    torch.manual_seed(0)
    views = torch.zeros(8, 4, judge.SIDE, judge.SIDE)
    views[:, :3, :, 32:] = 0.8
    views[:, 3, 20:40] = 1  # the same when it is mirrored
    varied = judge.varied(views)
    assert torch.equal(varied[:, 3], views[:, 3])
    assert varied[:, :3, :, 26:38].std(2).max() > 0.15  # an edge that was straight
    level = torch.full((1, 3, judge.SIDE, judge.SIDE), 0.3)
    assert torch.allclose(judge.softened(level), level, atol=1e-5)
    edge = judge.softened(views[:1, :3])
    assert torch.allclose(edge[0, 0, 0, :20], torch.zeros(20), atol=1e-5)
    assert 0.2 < edge[0, 0, 0, 31:33].mean() < 0.6 and edge.shape == (1, 3, 64, 64)
    bent = judge.bent(views[:, :3])
    moved = (bent - views[:, :3]).abs().amax((1, 2))
    assert moved[:, 32 - 12 : 32 + 12].max() > 0.4 and moved[:, :8].max() < 0.1


def test_bounds() -> None:
    assert bounds(MASK) == (2, 3, 6, 7)


def test_the_step_at_a_border() -> None:
    values = np.zeros((8, 8))
    assert colour_step(grey(values), MASK) == 0
    values[MASK.numpy()] = 50
    assert colour_step(grey(values), MASK) == 50
    values[4, 5] = 200  # not at the border
    assert colour_step(grey(values), MASK) == 50
    assert colour_step(grey(values), torch.ones(8, 8, dtype=torch.bool)) == 0


def test_looks_compares_the_border_with_the_inputs() -> None:
    source = np.tile(np.arange(8) * 10, (8, 1))
    made = source.copy()
    made[MASK.numpy()] += 30
    found = looks(load_judge(), grey(made), grey(source), MASK, MASK, "horse")
    # Above, below: 30 more. Left: 10 -> 40. Right: 10 -> |10 - 30| = 20.
    assert found.border_step == pytest.approx((8 * 30 + 4 * 30 + 4 * 10) / 16)
    assert found.found == 0


def test_a_found_object_counts(monkeypatch) -> None:
    """A held-out edit whose result is the scene as it was drawn, or the input."""
    said, found = load_judge(), []
    for seed in range(HELD_OUT, HELD_OUT + 10):
        empty, mask, prompt = inpainting_pair(seed)
        with monkeypatch.context() as patch:
            patch.setattr(pairs, "without", lambda scene, index: scene)
            whole, _, _ = inpainting_pair(seed)
        for picture in (whole, empty):
            where = torch.from_numpy(mask)
            found.append(looks(said, picture, empty, where, where, asked_for(prompt)))
    assert sum(look.found for look in found[::2]) >= 9
    assert sum(look.found for look in found[1::2]) <= 1
    assert all(look.border_step == 0 for look in found[1::2])
    assert max(abs(look.border_step) for look in found[::2]) < 2  # the mask leaves a margin


def test_sharpness_falls_with_blur() -> None:
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert sharpness(picture, picture) == 1
    blurred = torch.nn.functional.avg_pool2d(picture[None], 3, 1, 1)[0]
    assert sharpness(blurred, picture) < 0.5
    assert sharpness(0.5 * picture, picture) == pytest.approx(0.5)


def test_what_a_prompt_asks_for() -> None:
    assert asked_for("a photograph of a horse on a grassland") == "horse"
    # A scene's horse is named whatever is asked for.
    assert asked_for("a photograph of a horse and a tree on a grassland") == "tree"
    assert asked_for("a beach with palms, trending") == "palm"
    with pytest.raises(ValueError, match="names none"):
        asked_for("a photograph of a grassland")
    for make in (inpainting_pair, sdedit_pair):
        assert {asked_for(make(seed)[-1]) for seed in range(HELD_OUT, HELD_OUT + 12)} <= set(NOUNS)
