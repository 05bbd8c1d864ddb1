"""The training of the tiny family: what is practised, courses that resume, all stages in turn."""

import itertools
import os
import re
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sgm.io.checkpoint import build_model, load_weights
from sgm.io.sources import kind_of, read_contents
from sgm.modules.encoders.tokenizer import tokenize
from sgm.specs import MODELS, Weights
from tests.conftest import ROOT
from tests.tools.tiny_shards import write_shard
from tools.tiny import course, family, latents
from tools.tiny.captions import NOUNS, SIZES, caption
from tools.tiny.checkpoints import part, read
from tools.tiny.course import Course
from tools.tiny.family import Family, Scale
from tools.tiny.latents import drawn
from tools.tiny.masks import MASKS, NOTHING, WHOLE, drawn_masks
from tools.tiny.pairs import HELD_OUT
from tools.tiny.practice import (
    FACTOR,
    GRID,
    HELD_OUT_SEED,
    bare_scene,
    painted,
    practice_scene,
    practise,
)
from tools.tiny.scenes import SIZE, object_box
from tools.tiny.unet import CLOSE, HALF, TURNS, Batch, Batches, drawn_rows, window_size


def test_every_object_is_practised_as_often_as_the_others() -> None:
    turns = Counter(
        name
        for seed in range(70)
        for name in [NOUNS[seed % len(NOUNS)]]
        if any(obj.name == name for obj in practice_scene(seed).objects)
    )
    assert set(turns.values()) == {10} and set(turns) == set(NOUNS)


@pytest.mark.parametrize("seed", [HELD_OUT_SEED, HELD_OUT, -1])
def test_held_out_scenes_are_not_practised(seed: int) -> None:
    with pytest.raises(ValueError, match="is held out"):
        practice_scene(seed)


@pytest.mark.parametrize("size", [CLOSE, HALF, GRID])
def test_a_window_shows_what_its_caption_names(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    named = 0
    for seed in range(140):
        name = NOUNS[seed % len(NOUNS)]
        boxes = [object_box(o, *SIZE) for o in practice_scene(seed).objects if o.name == name]
        room = [FACTOR * n for n in size]
        fits = all(b[2] - b[0] <= room[0] and b[3] - b[1] <= room[1] for b in boxes)
        seen = practise(seed, size, rng)
        top, left, bottom, right = seen.window
        assert (bottom - top, right - left) == size
        assert top >= 0 and bottom <= GRID[0] and left >= 0 and right <= GRID[1]
        first, start, last, end = seen.region
        assert 0 <= first < last <= size[0] and 0 <= start < end <= size[1]
        if seen.region == (0, 0, *size) or not fits:
            continue
        named += name in seen.text
        where = [FACTOR * n for n in (top + first, left + start, top + last, left + end)]
        assert any(
            where[0] <= box[0] and where[1] <= box[1] and box[2] <= where[2] and box[3] <= where[3]
            for box in boxes
        ), (seed, seen, boxes)
    assert named > 90


def test_an_object_that_is_missing_is_what_the_network_is_to_bring() -> None:
    generator = torch.Generator().manual_seed(0)
    z, absence, noise = torch.randn(3, 2, 4, 8, 8, generator=generator)
    text, masked = torch.zeros(2, 77).long(), torch.ones(2, 5, 8, 8)
    batch = Batch(z, absence, torch.ones(2, 1, 8, 8), text, torch.ones(2).bool(), {}, masked)
    for level, missing in ((0.8, 0.0), (2.0, 0.5), (5.0, 1.0), (9.0, 1.0)):
        sigma = torch.full((2, 1, 1, 1), level)
        scaled, found = batch.noised(sigma, noise)
        given = scaled * (sigma**2 + 1).sqrt()
        torch.testing.assert_close(given, z + missing * absence + sigma * noise)
        torch.testing.assert_close(given - sigma * found, z)


def test_only_what_a_caption_names_is_missing_or_too_much(tmp_path: Path) -> None:
    shard = tmp_path / "000000.safetensors"
    every = torch.ones(latents.SHARD, 4, *GRID)
    write_shard(shard, latents.SHARD, latents=every, masks=every[:, :MASKS].bool())
    batches = Batches(latents.LatentScenes(tmp_path))
    named = {int(tokenize([word], 0)[0, 1]) for noun in NOUNS for word in (noun, f"{noun}s")}
    shares: dict[bool, list[float]] = {True: [], False: []}
    for step in range(60):
        batch = batches(step, 0.0)
        for change, row, kept in zip(batch.absence, batch.tokens, batch.kept.tolist(), strict=True):
            share = -change.unique().item()
            assert share == 0 or named & set(row.tolist())
            shares[kept].append(share)
    for found, most in ((shares[True], 1.0), (shares[False], 0.5)):
        assert min(found) >= -0.5 and min(found) < -0.1 and max(found) <= most
        assert 0.25 < np.mean(np.array(found) != 0) < 0.6
    assert 0.3 < np.mean([n == 1 for n in shares[True] if n]) < 0.5


def test_a_bare_scene_lacks_the_object_alone() -> None:
    for seed in range(14):
        whole, bare, name = practice_scene(seed), bare_scene(seed), NOUNS[seed % len(NOUNS)]
        assert bare.objects == tuple(obj for obj in whole.objects if obj.name != name)
        changed = np.abs(drawn(seed).astype(int) - drawn(seed, bare_scene)).sum(2) > 0
        assert changed.any()
        for obj in whole.objects:
            if obj.name == name:
                top, left, bottom, right = object_box(obj, *SIZE)
                changed[top:bottom, left:right] = False
        assert not changed.any()


def test_masks_hold_the_object_that_is_to_be_painted() -> None:
    around, shares = 0, []
    for seed in range(140):
        name = NOUNS[seed % len(NOUNS)]
        boxes = [object_box(o, *SIZE) for o in practice_scene(seed).objects if o.name == name]
        for number in range(MASKS):
            mask = painted(seed, number)
            top, left, bottom, right = mask.box
            assert mask.mask[top:bottom, left:right].all() and not mask.mask.all()
            assert mask.around_object == (mask.box in boxes)
            around += mask.around_object
            rows, columns = mask.mask.any(1).sum(), mask.mask.any(0).sum()
            shares.append(mask.mask.sum() / (rows * columns))
            seen = practise(seed, GRID, np.random.default_rng(0), number)
            assert name in seen.text or not mask.around_object
    assert 0.8 < around / 280 < 0.9
    assert 0.1 < np.mean(np.array(shares) < 0.9) < 0.25  # ellipses


def test_what_is_masked_how_often() -> None:
    drawn = Counter(drawn_masks(np.random.default_rng(0), 10_000).tolist())
    assert set(drawn) == {NOTHING, WHOLE, *range(MASKS)}
    assert 0.06 < drawn[NOTHING] / 1e4 < 0.08 and 0.33 < drawn[WHOLE] / 1e4 < 0.37


def test_windows_grow_from_objects_to_whole_scenes() -> None:
    seen = [Counter(window_size(step, done) for step in range(4)) for done in (0.0, 0.5, 0.9)]
    assert seen == [{CLOSE: 2, HALF: 2}, {CLOSE: 2, HALF: 1, GRID: 1}, {GRID: 4}]


def test_scenes_are_drawn_as_often_as_their_objects_turns_say() -> None:
    seeds = np.arange(70) + 7  # ten of each object
    rows = np.concatenate([drawn_rows(number, seeds, 50) for number in range(200)])
    found = Counter(NOUNS[seed % len(NOUNS)] for seed in seeds[rows].tolist())
    total = sum(TURNS.values())
    for noun, turns in TURNS.items():
        assert abs(found[noun] / len(rows) - turns / total) < 0.02
    assert len(set(rows.tolist())) == len(seeds)


def test_places_and_sizes_in_captions_are_true() -> None:
    rng = np.random.default_rng(1)
    found = Counter()
    for seed in range(700):
        name = NOUNS[seed % len(NOUNS)]
        scene = practice_scene(seed)
        objects = [obj for obj in scene.objects if obj.name == name]
        match = re.search(
            rf"(small |large )?{name}( on the left| in the middle| on the right)?\b",
            caption(scene, rng, name),
        )
        if len(objects) != 1 or match is None:
            continue
        obj, (size, place) = objects[0], match.groups()
        found.update([size, place])
        small, large = SIZES[name]
        assert size != "small " or obj.size < small
        assert size != "large " or obj.size > large
        assert place != " on the left" or obj.x < 0.4
        assert place != " in the middle" or 0.3 < obj.x < 0.7
        assert place != " on the right" or obj.x > 0.6
    assert min(found[word] for word in ("small ", "large ", " on the left", " in the middle")) > 10


class Clock:
    """A time that goes on by a second whenever it is asked for."""

    def __init__(self) -> None:
        self.ticks = itertools.count()

    def monotonic(self) -> float:
        return float(next(self.ticks))


def run_course(path: Path, stops: list[int]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of a course of 30 seconds, in sittings that end after these numbers of steps."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2)

    def batches(step: int, done: float) -> Tensor:
        return torch.randn(4, 3, generator=torch.Generator().manual_seed(step))

    def loss_of(x: Tensor) -> Tensor:
        return (module(x) - 1).square().mean()

    for steps in [*stops, 1000]:
        left = itertools.count(steps, -1)
        with torch.no_grad():  # what is not in the file is lost
            module.weight.fill_(9.0)
        if not path.exists():
            torch.nn.init.constant_(module.weight, 0.5)
        Course(path, 30.0, 0.1, 0.9, Clock().monotonic).run(
            module, list(module.parameters()), batches, loss_of, lambda left=left: next(left) == 0
        )
    return read(path)


def test_a_course_in_sittings_ends_where_one_sitting_does(tmp_path: Path) -> None:
    whole, spent = run_course(tmp_path / "whole.safetensors", [])
    parts, same = run_course(tmp_path / "parts.safetensors", [7, 4])
    assert spent == same and int(spent["step"]) == 30 and float(spent["seconds"]) == 30
    assert set(whole) == set(parts)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_a_course_saves_every_ten_minutes(tmp_path: Path, monkeypatch) -> None:
    """What a killed sitting loses is less than that."""
    clock = Clock()
    monkeypatch.setattr(course, "time", clock)
    module, path, seen = nn.Linear(1, 1), tmp_path / "state.safetensors", []

    def batches(step: int, done: float) -> Tensor:
        for _ in range(99):
            clock.monotonic()
        seen.append(int(read(path)[1]["step"]) if path.exists() else 0)
        return torch.ones(1, 1)

    Course(path, 2400.0, 0.1, 0.9, clock.monotonic).run(
        module, list(module.parameters()), batches, lambda x: module(x).sum(), lambda: False
    )
    assert sorted(set(seen)) == [0, 6, 12, 18]


def test_all_stages_from_nothing_and_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(latents, "SHARD", 2)
    monkeypatch.setattr(family, "SHARD", 2)
    monkeypatch.setattr(family, "FEWEST_SCENES", 2)
    monkeypatch.setattr(family.autoencoder, "held_out_psnr", lambda vae: 0.0)
    for module in (family.unet, family.turbo):
        monkeypatch.setattr(module, "BATCH", {CLOSE: 1, HALF: 1, GRID: 1})
    monkeypatch.setattr(family, "normalise", lambda vae: latents.normalise(vae, 2))
    small = Scale(factor=1, pictures=1, scenes=2, workers=0, lr=1.0, half=False)
    work, folder = tmp_path / "work", tmp_path / "weights"
    first = Family(work, 0.001, "cpu", small, sitting=0.0)
    assert not first.train(folder, "") and not folder.exists()
    assert Family(work, 0.001, "cpu", small).train(folder, "a test")
    for name, config in (("base", "tiny-sige.yaml"), ("refiner", "tiny-sige-refiner.yaml")):
        path = folder / f"tiny_{name}.safetensors"
        kind = kind_of(read_contents(Weights(path)))
        assert kind.reads_mask
        model = build_model(ROOT / "configs" / config, kind)
        load_weights(model, Weights(path), torch.device("cpu"), torch.float32, progress=False)
        assert read(path)[1]["note"] == "a test"
    turbo = folder / "tiny_turbo_lora.safetensors"
    assert read(turbo)[1]["note"] == "a test" and int(read(turbo)[1]["turbo_steps"]) > 0
    own = MODELS["tiny"].own(folder, "turbo")
    model = build_model(ROOT / "configs/tiny-sige.yaml", kind_of(read_contents(own)))
    load_weights(model, own, torch.device("cpu"), torch.float32, progress=False)
    states = {path.name: read(path)[1] for path in work.glob("*.safetensors")}
    assert Family(work, 0.001, "cpu", small).train(folder, "a test")
    assert states == {path.name: read(path)[1] for path in work.glob("*.safetensors")}
    # A network without a state stays as it is in the file, and gets the trained decoder.
    (work / "refiner.safetensors").unlink()
    (work / "decoder.safetensors").unlink()
    before, _ = read(folder / "tiny_refiner.safetensors")
    after, metadata = read(family.export(work, "refiner", folder, "again"))
    assert metadata["note"] == "again" and int(metadata["refiner_steps"]) > 0
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("first_stage_model.") for name in changed)
    # From a family that is there: its encoder, and so its latents, stay.
    start = folder / "tiny_base.safetensors"
    as_on_gpu = Scale(factor=2, pictures=2, scenes=4, workers=2, lr=2.0, half=True)
    other = Family(tmp_path / "other", 0.001, "cpu", as_on_gpu, start=start)
    assert other.train(tmp_path / "weights2", "")
    before, after = (read(f / "tiny_base.safetensors")[0] for f in (folder, tmp_path / "weights2"))
    same = part(before, "first_stage_model.encoder")
    assert all(torch.equal(same[k], v) for k, v in part(after, "first_stage_model.encoder").items())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_sitting_that_is_ended_early_leaves_a_base(tmp_path: Path, monkeypatch) -> None:
    """A signal ends it after a step; what has been trained is written, and nothing else."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(family.unet, "BATCH", {CLOSE: 1, HALF: 1, GRID: 1})
    work, folder = tmp_path / "work", tmp_path / "weights"
    for first in (0, 140):
        write_shard(work / f"latents/{first:06d}.safetensors", 140)
    first_stage = family.autoencoder.build(latents.CONFIG).state_dict()
    latents.write(work / "first_stage.safetensors", first_stage, {"step": "1", "seconds": "1"})
    scale = Scale(factor=1, pictures=1, scenes=2, workers=0, lr=1.0, half=False)
    sitting = Family(work, 1000.0, "cpu", scale)

    def step(*args: object, real=family.unet.loss_of) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(family.unet, "loss_of", step)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert not sitting.train(folder, "")
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert [path.name for path in folder.iterdir()] == ["tiny_base.safetensors"]
    assert read(folder / "tiny_base.safetensors")[1]["unet_steps"] == "1"
