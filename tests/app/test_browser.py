"""The page in a real browser: painted by mouse, two people at once, loaded anew in an edit.

Each test has a server of its own, and all waits are for what is seen on the page, so that a busy
machine makes them slower and nothing else.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Never

import numpy as np
import pytest
from PIL import Image

import sgm
from sgm.app.desk import Desk
from sgm.app.events import Preview
from sgm.app.studio import Studio
from sgm.app.worker import Job
from sgm.inference.pipeline import Pipeline
from sgm.specs import SamplingParams
from sgm.words import Task
from tests.app.ears import PATIENCE, Gate
from tests.conftest import ROOT

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import Browser

from sgm.app.page import Page, launch
from tools.browser import Visitor, browser, chromium

if chromium() is None:
    pytest.skip("there is no Chromium; install Debian's chromium", allow_module_level=True)

STEPS = 2
WINDOW, TELEPHONE = (1000, 800), (400, 800)
ACROSS = ((0.4, 0.45), (0.6, 0.5))  # a stroke in the middle


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return sgm.load("tiny", device="cpu").pipeline


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def page(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """A page that nobody has open yet."""
    # One test's thread would meet the next one's networks.
    monkeypatch.setattr(Studio, "measure_dense", lambda self, size: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    made = Page(Studio(pipeline, SamplingParams(""), "tiny", 10**10, 256 * 512), STEPS)
    yield made
    made.blocks.close()


@pytest.fixture
def address(page: Page) -> str:
    return launch(page, None, False, 2**20)


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return photo_of(tmp_path / "red.png", (200, 40, 30))


def photo_of(path: Path, colour: tuple[int, int, int]) -> Path:
    """A photo of one colour, a little brighter to the right."""
    ramp = np.linspace(0.8, 1.0, 128)[None, :, None] * np.ones((64, 1, 1)) * np.array(colour)
    Image.fromarray(ramp.astype(np.uint8)).save(path)
    return path


def pixels(picture: Image.Image | None) -> np.ndarray:
    assert picture is not None
    return np.asarray(picture).astype(int)


def test_a_whole_session(
    page: Page, address: str, chrome: Browser, red: Path, tmp_path: Path
) -> None:
    visitor = Visitor(chrome, address, WINDOW)
    visitor.set("count", 2)
    visitor.ask(Task.INPAINTING, "a horse")
    visitor.wait_for_status("There is no photo yet")
    visitor.open(red)
    (desk,) = (seat.desk for seat in page.seats.values())
    opened = pixels(desk.picture)
    visitor.ask(Task.INPAINTING, "a horse")
    visitor.wait_for_status("Nothing is painted yet")
    visitor.paint(Task.INPAINTING, ACROSS)
    visitor.generate(Task.INPAINTING, "a horse", [1, 2])
    second = pixels(desk.variants[2].picture)
    visitor.choose(2)
    visitor.press("accept", "Accepted: paint")
    assert np.array_equal(pixels(desk.picture), second)
    changed = (second != opened).any(-1)
    height, width = changed.shape  # where the mouse was, and nowhere else
    assert changed[height // 2, width // 2]
    assert not changed[:, : width // 8].any() and not changed[:, -width // 8 :].any()

    visitor.turn_to(Task.SDEDIT)
    visitor.paint(Task.SDEDIT, ACROSS)
    visitor.set("count", 1)
    visitor.generate(Task.SDEDIT, "a house", [3])
    visitor.press("accept", "Accepted: paint")
    third = pixels(desk.picture)
    assert (third != second).any()
    with Image.open(visitor.save(tmp_path / "saved.png")) as saved:
        assert np.array_equal(pixels(saved), third)
        assert saved.info["parameters"].count("Steps: 2") == 2
    visitor.press("undo", "Taken back: paint")
    with Image.open(visitor.save(tmp_path / "saved.png")) as saved:
        assert np.array_equal(pixels(saved), second)

    outside = [url for url in visitor.requests if not url.startswith((address, "data:", "blob:"))]
    assert not outside  # neither fonts nor scripts of another server
    for path in (ROOT / "README.md", Path("README.md"), Path("/etc/hostname"), red):
        assert visitor.fetch(f"/gradio_api/file={path}") in (403, 404), path
    visitor.page.context.close()


def test_two_people_at_once(
    page: Page, address: str, chrome: Browser, red: Path, tmp_path: Path
) -> None:
    blue = photo_of(tmp_path / "blue.png", (30, 60, 210))
    visitors = [Visitor(chrome, address, TELEPHONE) for _ in range(2)]
    for visitor, photo in zip(visitors, (red, blue), strict=True):
        visitor.set("count", 1)
        visitor.open(photo)
        visitor.paint(Task.INPAINTING, ACROSS)
    busy = Gate()
    page.studio.worker.submit(busy, lambda event: None)
    assert busy.begun.wait(PATIENCE)
    for number, visitor in enumerate(visitors, 1):
        visitor.ask(Task.INPAINTING, "a horse")
        visitor.wait_for_status(f"Waiting in line: {number} before you.")
    busy.open()
    for visitor, channel in zip(visitors, (0, 2), strict=True):
        visitor.wait_for_variants([1])
        visitor.press("accept", "Accepted: paint")
        with Image.open(visitor.save(tmp_path / "saved.png")) as saved:
            assert pixels(saved)[:8].reshape(-1, 3).mean(0).argmax() == channel
        visitor.page.context.close()


def test_a_page_that_is_loaded_anew_in_an_edit(address: str, chrome: Browser, red: Path) -> None:
    def endless(desk: Desk, job: Job, *rest: object) -> Never:
        assert desk.picture is not None
        job.emit(Preview(1, desk.picture, 1, 2))
        while True:
            job.check()
            time.sleep(0.01)

    visitor = Visitor(chrome, address, TELEPHONE)
    visitor.set("count", 1)
    visitor.open(red)
    visitor.paint(Task.INPAINTING, ACROSS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Desk, "_variant", endless)
        visitor.ask(Task.INPAINTING, "a horse")
        visitor.wait_for_status("Seed 1: step 1 of 2.")
        visitor.page.reload()
    visitor.wait_for_status("Open a photo")
    visitor.set("count", 1)
    visitor.open(red)  # for which the worker must have given up the other edit
    visitor.paint(Task.INPAINTING, ACROSS)
    visitor.generate(Task.INPAINTING, "a horse", [1])
    visitor.page.context.close()
