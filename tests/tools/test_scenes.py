"""The procedural scenes, their captions, and the pictures under assets/ drawn from them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tools import make_assets
from tools.tiny.captions import FANTASY_BEACH_PROMPT, FANTASY_PROMPT, NOUNS, caption
from tools.tiny.crude import draw_crude
from tools.tiny.layout import PlacedObject, Scene
from tools.tiny.scenes import object_box, render, sample_scene, with_object, without

ASSETS = Path(__file__).resolve().parents[2] / "assets"
HEIGHT, WIDTH = 256, 512


@cache
def scenes(count: int, seed: int = 0) -> tuple[Scene, ...]:
    rng = np.random.default_rng(seed)
    return tuple(sample_scene(rng) for _ in range(count))


def pixels(scene: Scene, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.asarray(render(scene, height, width)).astype(np.int16)


def outside(shape: tuple[int, ...], box: tuple[int, int, int, int]) -> np.ndarray:
    top, left, bottom, right = box
    where = np.ones(shape[:2], dtype=bool)
    where[top:bottom, left:right] = False
    return where


def test_same_seed_same_scenes_captions_and_pictures() -> None:
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(12):
        scene, again = sample_scene(first), sample_scene(second)
        assert scene == again
        assert caption(scene, first) == caption(again, second)
        assert np.array_equal(pixels(scene), pixels(again))
    assert scenes(12) != scenes(12, seed=1)


def test_render_size_and_mode() -> None:
    image = render(scenes(1)[0])
    assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
    assert render(scenes(1)[0], 64, 128).size == (128, 64)


def test_a_picture_looks_the_same_at_twice_the_size() -> None:
    for scene in scenes(8):
        large = np.asarray(render(scene, 2 * HEIGHT, 2 * WIDTH).reduce(2)).astype(np.int16)
        assert np.abs(large - pixels(scene)).mean() < 1.0


def test_mix_of_kinds_and_objects() -> None:
    found = scenes(2000)
    share = {k: np.mean([s.kind == k for s in found]) for k in ("grassland", "beach", "fantasy")}
    assert share["grassland"] == pytest.approx(0.5, abs=0.05)
    assert share["beach"] == pytest.approx(0.25, abs=0.05)
    for kind, name, chance in (
        ("grassland", "horse", 0.6),
        ("beach", "palm", 0.5),
        ("fantasy", "sun", 0.5),
    ):
        has = [name in {obj.name for obj in s.objects} for s in found if s.kind == kind]
        assert np.mean(has) == pytest.approx(chance, abs=0.06)


def test_captions_are_true() -> None:
    rng = np.random.default_rng(0)
    for scene in scenes(2000):
        text = caption(scene, rng)
        words = text.lower().replace(",", " ").split()
        there = {obj.name for obj in scene.objects}
        for noun in NOUNS:
            assert not ({noun, noun + "s"} & set(words)) or noun in there, (text, scene)
            if noun + "s" in words:
                assert sum(obj.name == noun for obj in scene.objects) > 1
        if scene.kind == "grassland":
            assert ("horse" in words) == ("horse" in there)
        assert scene.kind in words
        assert ("fantasy" in words) == scene.fantasy
        assert not ({"photograph", "painting"} - {scene.style}) & set(words)
        assert "lake" not in words or scene.lake


def test_captions_include_the_prompts_people_use() -> None:
    rng = np.random.default_rng(0)
    texts = [caption(scene, rng) for scene in scenes(2000)]
    assert texts.count("a photograph of a horse on a grassland") > 200
    assert texts.count(FANTASY_PROMPT) > 100
    assert texts.count(FANTASY_BEACH_PROMPT) > 50
    assert texts.count("a photograph of a grassland") > 50
    assert len(set(texts)) > 60


def test_object_box_holds_everything_an_object_changes() -> None:
    for scene in scenes(20):
        picture = pixels(scene)
        for index, obj in enumerate(scene.objects):
            change = np.abs(picture - pixels(without(scene, index))).max(axis=2)
            box = object_box(obj, HEIGHT, WIDTH)
            assert change.max() > 20, f"{obj} cannot be seen"
            assert not change[outside(change.shape, box)].any(), obj


def test_object_box_is_clipped() -> None:
    box = object_box(PlacedObject("horse", 0.0, 1.0, 0.5), HEIGHT, WIDTH)
    assert box[1] == 0 and box[2] == HEIGHT and 0 < box[0] < box[2] and 0 < box[3] < WIDTH


def test_with_object_and_without_undo_each_other() -> None:
    scene = scenes(1)[0]
    horse = PlacedObject("horse", 0.5, 0.9, 0.4)
    more = with_object(scene, horse)
    assert more.objects[-1] == horse
    assert without(more, len(more.objects) - 1) == scene
    with pytest.raises(IndexError):
        without(scene, len(scene.objects))


@pytest.mark.parametrize("name", ["horse", "tree", "house", "sun", "boat", "palm", "castle"])
@pytest.mark.parametrize("flip", [False, True])
def test_crude_drawing_stays_in_its_box(name: str, flip: bool) -> None:
    picture = render(scenes(1)[0])
    obj = PlacedObject(name, 0.43, 0.6, 0.37, flip)
    change = np.asarray(draw_crude(picture, obj)).astype(np.int16) - np.asarray(picture)
    assert np.abs(change).max() > 20
    assert not change[outside(change.shape, object_box(obj, HEIGHT, WIDTH))].any()


def test_unknown_object_is_an_error() -> None:
    with pytest.raises(KeyError):
        render(with_object(scenes(1)[0], PlacedObject("dragon", 0.5, 0.9, 0.4)))


@cache
def assets() -> dict[str, np.ndarray]:
    return make_assets.build()


def test_assets_on_disk_are_the_programs() -> None:
    assert make_assets.differing(ASSETS, assets()) == []


def test_check_names_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Corners of the pictures: writing whole ones takes seconds.
    corners = {name: array[:16, :16].copy() for name, array in assets().items()}
    monkeypatch.setattr(make_assets, "build", lambda: corners)
    assert make_assets.main(["--root", str(tmp_path)]) == 0
    assert make_assets.main(["--root", str(tmp_path), "--check"]) == 0
    (tmp_path / "inpainting/original/0.png").write_bytes(b"not a picture")
    np.save(tmp_path / "inpainting/masks/0.npy", np.zeros((2, 2), dtype=bool))
    capsys.readouterr()
    assert make_assets.main(["--root", str(tmp_path), "--check"]) == 1
    shown = capsys.readouterr().out
    assert "differs: inpainting/original/0.png" in shown and "masks/0.npy" in shown
    assert "edited" not in shown


def test_inpainting_assets() -> None:
    found = assets()
    mask, meadow = found["inpainting/masks/0.npy"], found["inpainting/original/0.png"]
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    assert mask.dtype == bool and mask.shape == meadow.shape[:2] == (512, 1024)
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (280, 469, 590, 909)
    assert mask.sum() == 190 * 320
    masked = found["inpainting/masked/0.png"]
    assert (masked[mask] == 255).all() and (masked[~mask] == meadow[~mask]).all()
    # Nothing but grass where the horse is to come: green above red above blue everywhere.
    red, green, blue = (meadow[mask][:, i].astype(int) for i in range(3))
    assert (green > red).all() and (red > blue).all()


@pytest.mark.parametrize(("index", "low", "high"), [(0, 0.014, 0.020), (1, 0.024, 0.032)])
def test_img2img_assets(index: int, low: float, high: float) -> None:
    original = assets()[f"img2img/original/{index}.png"]
    edited = assets()[f"img2img/edited/{index}.png"]
    assert original.shape == edited.shape == (512, 1024, 3)
    assert low < make_assets.edit_fraction(original, edited) < high
    box = object_box(make_assets.SDEDITS[index][1], 512, 1024)
    assert (original == edited)[outside(original.shape, box)].all()
