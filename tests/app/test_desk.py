"""A desk without a page: open, generate, accept, undo, save; several people at once."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import sgm
from sgm.app import events
from sgm.app.desk import SESSION_SEED, Desk, Wish
from sgm.app.events import Preview, Recording, Shown, Variant
from sgm.app.studio import Studio
from sgm.app.worker import Ended
from sgm.inference.pipeline import Pipeline
from sgm.inference.session import EditSession
from sgm.io import imageio
from sgm.specs import SamplingParams
from sgm.words import Task
from tests.app.ears import Ear, Gate, error_of, heard

SIZE = (120, 61)  # (width, height), no multiples of 64
STEPS = 3
WISH = Wish("a horse", steps=STEPS, seeds=(5, 6))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return sgm.load("tiny", device="cpu").pipeline


@pytest.fixture
def studio(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """Without what it measures when idle: one test's thread would meet the next one's networks."""
    monkeypatch.setattr(Studio, "measure_dense", lambda self, size: None)
    return Studio(pipeline, SamplingParams(""), "tiny", 10**10, 256 * 512)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A preview at every step."""
    monkeypatch.setattr(events, "BETWEEN", 0.0)
    monkeypatch.setattr(events, "PREVIEW_EVERY", 1)
    yield


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return make_photo(tmp_path / "photo.png", 0)


def make_photo(path: Path, seed: int) -> Path:
    """A smooth picture of random colours."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    picture.save(path, exif=exif)
    return path


def paint(*box: int) -> Image.Image:
    """A stroke in red."""
    layer = Image.new("RGBA", SIZE)
    ImageDraw.Draw(layer).rectangle(box or (30, 20, 60, 40), fill=(200, 30, 30, 255))
    return layer


def opened(studio: Studio, photo: Path) -> Desk:
    desk = Desk(studio)
    heard(lambda emit: desk.open(photo, STEPS, emit))
    return desk


def results(
    desk: Desk, task: Task = Task.INPAINTING, wish: Wish = WISH, box: tuple[int, ...] = ()
) -> list[np.ndarray]:
    said = heard(lambda emit: desk.generate(task, paint(*box), wish, emit))
    return [np.asarray(event.picture) for event in said if isinstance(event, Variant)]


def same(these: list[np.ndarray], those: list[np.ndarray]) -> bool:
    return len(these) == len(those) and all(map(np.array_equal, these, those))


def test_opening_shows_the_photo_and_records_it(studio: Studio, photo: Path) -> None:
    desk = Desk(studio)
    shown, *recorded, _ = heard(lambda emit: desk.open(photo, STEPS, emit))
    assert isinstance(shown, Shown) and shown.picture.size == SIZE and shown.before is None
    assert [(r.number, r.count) for r in recorded if isinstance(r, Recording)] == [
        (1, STEPS),
        (2, STEPS),
        (3, STEPS),
    ]
    assert studio.budget.owners() == [desk] and studio.budget.size > 0


@pytest.mark.parametrize("task", list(Task))
def test_variants_are_those_of_a_session(
    studio: Studio, pipeline: Pipeline, photo: Path, task: Task
) -> None:
    desk = opened(studio, photo)
    made = results(desk, task, replace(WISH, strength=0.9))
    picture = imageio.pad_to_multiple(imageio.to_tensor(imageio.load_picture(photo)))
    params = SamplingParams("", seed=SESSION_SEED, steps=STEPS)
    session = EditSession(pipeline, picture, params)
    layer = np.array(paint())
    mask = imageio.pad_to_multiple(torch.from_numpy(layer[..., 3] > 0))
    drawn = picture.clone()
    red = 2 * torch.tensor([200, 30, 30]) / 255 - 1
    drawn[:, mask] = red[:, None]
    for found, seed in zip(made, WISH.seeds, strict=True):
        if task is Task.INPAINTING:
            result = session.inpaint(WISH.prompt, mask, "", seed)
        else:
            result = session.sdedit(WISH.prompt, drawn, 0.9, "", mask, seed)
        expected = imageio.to_picture(imageio.crop_back(result.image, (SIZE[1], SIZE[0])))
        assert np.array_equal(found, np.asarray(expected))
    assert not np.array_equal(*made)


def test_previews_show_the_edit_and_nothing_else(studio: Studio, photo: Path, often: None) -> None:
    desk = opened(studio, photo)
    said = heard(lambda emit: desk.generate(Task.INPAINTING, paint(), WISH, emit))
    previews = [event for event in said if isinstance(event, Preview)]
    assert [(p.seed, p.number) for p in previews] == [(5, 1), (5, 2), (6, 1), (6, 2)]
    inside = np.array(paint())[..., 3] > 0
    for preview in previews:
        differs = (np.asarray(preview.picture) != np.asarray(desk.picture)).any(-1)
        assert differs[inside].mean() > 0.9 and not differs[~inside].any()


def test_an_edit_that_is_given_up_leaves_no_trace(studio: Studio, photo: Path, often: None) -> None:
    desk = opened(studio, photo)
    for kind in (Recording, Preview):  # while the prompt is followed, and while it is sampled
        wish = replace(WISH, prompt=f"a house {kind.__name__}")
        ear = Ear(lambda event, kind=kind: desk.cancel() if isinstance(event, kind) else None)
        desk.generate(Task.INPAINTING, paint(), wish, ear)
        said = ear.all()
        assert said[-1] == Ended(cancelled=True)
        assert sum(isinstance(event, kind) for event in said) == 1  # at once, not at the end
        assert not any(isinstance(event, Variant) for event in said)
    undisturbed = results(opened(studio, photo))
    assert same(results(desk), undisturbed)


def test_a_new_edit_ends_the_one_before(studio: Studio, photo: Path) -> None:
    desk, gate = opened(studio, photo), Gate()
    studio.worker.submit(gate, Ear())
    first, second = Ear(), Ear()
    desk.generate(Task.INPAINTING, paint(), WISH, first)
    desk.generate(Task.INPAINTING, paint(), WISH, second)
    gate.open()
    assert first.all()[-1] == Ended(cancelled=True)
    assert second.all()[-1] == Ended()


def test_an_edit_does_not_end_the_recording_that_it_needs(studio: Studio, photo: Path) -> None:
    desk, opening, editing = Desk(studio), Ear(), Ear()
    desk.open(photo, STEPS, opening)
    desk.generate(Task.INPAINTING, paint(), WISH, editing)
    assert opening.all()[-1] == Ended() and editing.all()[-1] == Ended()


def test_accept_undo_and_save(studio: Studio, photo: Path, tmp_path: Path) -> None:
    desk = opened(studio, photo)
    before = np.asarray(desk.picture)
    first = results(desk)[1]
    heard(lambda emit: desk.accept(6, emit))
    assert np.array_equal(np.asarray(desk.picture), first) and not desk.variants
    changed = (first != before).any(-1)
    assert changed.any() and not changed.all()
    wish = replace(WISH, prompt="a red house", strength=0.9, seeds=(1,))
    second = results(desk, Task.SDEDIT, wish)[0]
    heard(lambda emit: desk.accept(1, emit))
    with Image.open(desk.save(tmp_path)) as saved:
        assert saved.filename.endswith("photo-edited.png")
        assert np.array_equal(np.asarray(saved), second)
        assert saved.getexif()[0x010F] == "a camera"
        text = saved.info["parameters"]
    assert text.startswith("a horse\nSteps: 3, ") and "\n\na red house\n" in text
    assert "Seed: 6" in text and "Denoising strength: 0.9" in text
    heard(lambda emit: desk.undo(emit))
    assert np.array_equal(np.asarray(desk.picture), first)
    heard(lambda emit: desk.undo(emit))
    assert np.array_equal(np.asarray(desk.picture), before)
    with Image.open(desk.save(tmp_path)) as saved:
        assert np.array_equal(np.asarray(saved), before) and "parameters" not in saved.info
    assert "no accepted edit" in error_of(desk.undo)


def test_an_accepted_edit_stays_opaque(studio: Studio, photo: Path, tmp_path: Path) -> None:
    """Where the photo was transparent; also if a larger edit lies where it was not."""
    cut_out = Image.open(photo).convert("RGBA")
    cut_out.paste((0, 0, 0, 0), (0, 0, 30, 61))
    cut_out.save(photo)
    desk = opened(studio, photo)
    for box in ((5, 5, 20, 20), (50, 10, 110, 50)):
        results(desk, wish=replace(WISH, seeds=(5,)), box=box)
        heard(lambda emit: desk.accept(5, emit))
    with Image.open(desk.save(tmp_path)) as saved:
        alpha = np.asarray(saved.convert("RGBA"))[..., 3]
    assert alpha[8:18, 8:18].all() and not alpha[35:, :25].any()
    for _ in range(2):
        heard(lambda emit: desk.undo(emit))
    with Image.open(desk.save(tmp_path)) as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(cut_out))


def test_recordings_follow_what_was_accepted(studio: Studio, photo: Path, tmp_path: Path) -> None:
    """An edit after an accepted one is close to that of the accepted picture opened anew."""
    desk = opened(studio, photo)
    results(desk)
    heard(lambda emit: desk.accept(5, emit))
    after = results(desk)
    anew = results(opened(studio, desk.save(tmp_path)))
    for one, other in zip(after, anew, strict=True):
        assert np.abs(one.astype(int) - other).mean() < 2


def test_what_cannot_be_done_is_a_sentence(studio: Studio, photo: Path, tmp_path: Path) -> None:
    desk = Desk(studio)

    def generate(layer: Image.Image | None) -> str:
        return error_of(lambda emit: desk.generate(Task.INPAINTING, layer, WISH, emit))

    assert generate(paint()) == "There is no photo yet; open one first."
    (tmp_path / "text.png").write_text("nothing")
    wrong = error_of(lambda emit: desk.open(tmp_path / "text.png", STEPS, emit))
    assert "is not a picture" in wrong
    heard(lambda emit: desk.open(photo, STEPS, emit))
    assert generate(None).startswith("Nothing is painted yet")
    assert generate(Image.new("RGBA", SIZE)).startswith("Nothing is painted yet")
    assert "no result to accept" in error_of(lambda emit: desk.accept(5, emit))


def test_two_people_share_a_device_and_nothing_else(
    pipeline: Pipeline, studio: Studio, photo: Path, tmp_path: Path
) -> None:
    other = make_photo(tmp_path / "other.png", 1)
    alone = [results(opened(studio, path)) for path in (photo, other)]
    # Room for the recordings of one of them.
    small = Studio(pipeline, SamplingParams(""), "tiny", int(studio.budget.size * 0.6), 256 * 512)
    desks = [opened(small, path) for path in (photo, other)]
    assert small.budget.owners() == [desks[1]]
    for _ in range(2):
        ears = [Ear(), Ear()]
        for desk, ear in zip(desks, ears, strict=True):
            desk.generate(Task.INPAINTING, paint(), WISH, ear)
        for ear, expected in zip(ears, alone, strict=True):
            said = ear.all()
            made = [np.asarray(e.picture) for e in said if isinstance(e, Variant)]
            assert same(made, expected)
    assert small.budget.owners() == [desks[1]] and small.budget.size <= small.budget.limit
    desks[0].close()
    desks[1].close()
    heard(lambda emit: small.worker.submit(lambda job: None, emit))
    assert small.budget.owners() == []


def test_a_crash_of_one_leaves_the_others_alone(
    studio: Studio, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desks = [opened(studio, photo), opened(studio, photo)]
    expected = results(desks[1])
    session = studio.budget.get(desks[0])
    monkeypatch.setattr(session, "inpaint", lambda *arguments: 1 // 0)
    wrong = error_of(lambda emit: desks[0].generate(Task.INPAINTING, paint(), WISH, emit))
    assert "failed unexpectedly (ZeroDivisionError" in wrong
    assert same(results(desks[1]), expected)


def test_other_steps_make_other_recordings(studio: Studio, photo: Path) -> None:
    desk = opened(studio, photo)
    two = results(desk, wish=replace(WISH, steps=2))
    fresh = Desk(studio)
    heard(lambda emit: fresh.open(photo, 2, emit))
    assert same(two, results(fresh, wish=replace(WISH, steps=2)))
