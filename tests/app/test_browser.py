"""The page in a real browser: painted by mouse, two people at once."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sgm
from sgm.app.desk import Desk
from sgm.app.studio import Studio
from sgm.specs import SamplingParams
from sgm.words import Task
from tests.conftest import ROOT

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import Browser

from sgm.app.page import Page, launch
from tools.browser import Visitor, browser, chromium

# By hand only: under load, a click can overtake the slider's event before it, and the test fails.
if not os.environ.get("SDXL_SIGE_BROWSER"):
    pytest.skip("set SDXL_SIGE_BROWSER=1 to test in Chromium", allow_module_level=True)
if chromium() is None:
    pytest.skip("there is no Chromium; install Debian's chromium", allow_module_level=True)

STEPS = 2
TELEPHONE = (400, 800)
ACROSS = ((0.4, 0.45), (0.6, 0.5))  # a stroke in the middle
RECORDED, DONE = "The photo is recorded", "accept one"


@pytest.fixture(scope="module")
def studio() -> Studio:
    pipeline = sgm.load("tiny", device="cpu").pipeline
    return Studio(pipeline, SamplingParams(""), "tiny", 10**10, 256 * 512)


@pytest.fixture(scope="module")
def served(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, str]]:
    """The page and its address; what it keeps lies in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("gradio")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        page = Page(studio, STEPS)
        yield page, launch(page, None, False, 2**20)
        page.blocks.close()


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def red(tmp_path: Path) -> Path:
    return photo_of(tmp_path / "red.png", (200, 40, 30))


def photo_of(path: Path, colour: tuple[int, int, int]) -> Path:
    """A photo of one colour, a little brighter to the right."""
    ramp = np.linspace(0.8, 1.0, 128)[None, :, None] * np.ones((64, 1, 1)) * np.array(colour)
    Image.fromarray(ramp.astype(np.uint8)).save(path)
    return path


def desks(page: Page) -> list[Desk]:
    """Those of the pages that are open."""
    return [seat.desk for seat in page.seats.values() if seat.left is None]


def test_a_whole_session(
    served: tuple[Page, str], chrome: Browser, red: Path, tmp_path: Path
) -> None:
    page, address = served
    visitor = Visitor(chrome, address)
    visitor.ask(Task.INPAINTING, "a horse")
    visitor.wait_for_status("There is no photo yet")
    visitor.open(red)
    (desk,) = desks(page)
    opened = np.asarray(desk.picture)
    visitor.set("count", 2)
    visitor.ask(Task.INPAINTING, "a horse")
    visitor.wait_for_status("Nothing is painted yet")
    visitor.paint(Task.INPAINTING, *ACROSS)
    visitor.generate(Task.INPAINTING, "a horse")
    captions = visitor.captions()
    assert [caption.partition(":")[0] for caption in captions] == ["seed 1", "seed 2"]
    assert all(" s (dense: " in caption for caption in captions)
    assert visitor.page.input_value("#seed input") == "3"
    second = np.asarray(desk.variants[2].picture)
    visitor.choose(1)
    visitor.press("accept", RECORDED)
    assert np.array_equal(np.asarray(desk.picture), second)
    changed = (second != opened).any(-1)
    height, width = changed.shape  # where the mouse was, and nowhere else
    assert changed[height // 2, width // 2]
    assert not changed[:, : width // 8].any() and not changed[:, -width // 8 :].any()

    visitor.turn_to(Task.SDEDIT)
    visitor.paint(Task.SDEDIT, *ACROSS)
    visitor.generate(Task.SDEDIT, "a house")
    visitor.press("accept", RECORDED)
    third = np.asarray(desk.picture)
    assert (third != second).any()
    with Image.open(visitor.save(tmp_path / "saved.png")) as saved:
        assert np.array_equal(np.asarray(saved), third)
        assert saved.info["parameters"].count("Steps: 2") == 2
    visitor.press("undo", RECORDED)
    assert np.array_equal(np.asarray(desk.picture), second)

    def gives_the_second() -> bool:  # a moment after the status, when its file is written
        with Image.open(visitor.save(tmp_path / "saved.png")) as saved:
            return np.array_equal(np.asarray(saved), second)

    visitor.wait(gives_the_second)

    outside = [url for url in visitor.requests if not url.startswith((address, "data:", "blob:"))]
    assert not outside  # neither fonts nor scripts of another server
    for path in (ROOT / "README.md", Path("README.md"), Path("/etc/hostname"), red):
        assert visitor.fetch(f"/gradio_api/file={path}") in (403, 404), path
    visitor.page.context.close()


def test_two_people_at_once(
    served: tuple[Page, str], chrome: Browser, red: Path, tmp_path: Path
) -> None:
    blue = photo_of(tmp_path / "blue.png", (30, 60, 210))
    visitors = [Visitor(chrome, served[1], TELEPHONE) for _ in range(2)]
    for visitor, photo in zip(visitors, (red, blue), strict=True):
        visitor.open(photo)
        visitor.paint(Task.INPAINTING, *ACROSS)
        visitor.set("count", 1)
    visitors[0].set("steps", 40)  # while this one is busy, the other waits
    for visitor in visitors:
        visitor.ask(Task.INPAINTING, "a horse")
    visitors[1].wait_for_status("Waiting in line: 1 before you.")
    for visitor in visitors:
        visitor.wait_for_status(DONE)
    for visitor, channel in zip(visitors, (0, 2), strict=True):
        visitor.press("accept", RECORDED)
        with Image.open(visitor.save(tmp_path / "saved.png")) as saved:
            assert np.asarray(saved)[:8].reshape(-1, 3).mean(0).argmax() == channel
        visitor.page.context.close()
