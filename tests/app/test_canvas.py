"""The canvas in a real browser: what a click takes for the paint, and what it sends for it.

The model plays no part: an edit keeps the mask that it was given.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sgm.app.desk import Desk
from sgm.app.events import Variant
from sgm.app.studio import Studio
from sgm.specs import SamplingParams
from sgm.words import Task

pytest.importorskip("gradio")
pytest.importorskip("playwright")

from playwright.sync_api import Browser

from sgm.app.page import Page, launch
from tools.browser import CANVASES, Visitor, browser, chromium

if chromium() is None:
    pytest.skip("there is no Chromium; install Debian's chromium", allow_module_level=True)

WINDOW = (1000, 800)
SIZE = (256, 128)
TOP, BOTTOM = ((0.4, 0.3), (0.6, 0.3)), ((0.4, 0.7), (0.6, 0.7))
Masks = list[np.ndarray]


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> Masks:
    """What was painted, of every edit."""
    seen: Masks = []

    def variant(desk: Desk, *given: Any) -> Variant:
        *_, layer, _, seed = given
        assert desk.picture is not None
        seen.append(layer[..., 3] > 0)
        return Variant(seed, desk.picture, 1.0, None, "")

    monkeypatch.setattr(Desk, "_session", lambda desk, job, steps: None)
    monkeypatch.setattr(Desk, "_variant", variant)
    return seen


@pytest.fixture
def visitor(
    masks: Masks, chrome: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Visitor]:
    """Somebody with a photo open."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    pipeline: Any = SimpleNamespace(networks=SimpleNamespace(device="cpu"))
    page = Page(Studio(pipeline, SamplingParams(""), "tiny", 10**9, SIZE[0] * SIZE[1]), 2)
    somebody = Visitor(chrome, launch(page, None, False, 2**20), WINDOW)
    somebody.set("count", 1)
    Image.new("RGB", SIZE, (90, 90, 90)).save(tmp_path / "grey.png")
    somebody.open(tmp_path / "grey.png")
    yield somebody
    somebody.page.context.close()
    page.blocks.close()


def uploads(visitor: Visitor) -> int:
    """How many pictures the browser has sent since it was asked before."""
    count = sum(re.search(r"/upload\b", url) is not None for url in visitor.requests)
    visitor.requests.clear()
    return count


def halves(mask: np.ndarray) -> tuple[bool, bool]:
    """Whether there is paint above, and below."""
    middle = mask.shape[0] // 2
    return bool(mask[:middle].any()), bool(mask[middle:].any())


def test_a_click_sends_only_what_is_new(visitor: Visitor, masks: Masks) -> None:
    visitor.requests.clear()
    with visitor.page.expect_response(re.compile(r"/upload\b")):
        visitor.paint(Task.INPAINTING, TOP)  # it is read without a click
    visitor.generate(Task.INPAINTING, "a horse", [1])
    assert uploads(visitor) == 3  # how gradio sends a canvas
    visitor.generate(Task.INPAINTING, "a house", [2])
    assert uploads(visitor) == 0
    visitor.paint(Task.INPAINTING, BOTTOM)
    visitor.page.evaluate("document.querySelector('#repaint').click()")  # at once
    visitor.wait_for_variants([3])
    assert uploads(visitor) == 3
    visitor.generate(Task.INPAINTING, "a house", [4])
    assert uploads(visitor) == 0
    assert [halves(mask) for mask in masks] == [(True, False)] * 2 + [(True, True)] * 2
    assert np.array_equal(masks[0], masks[1]) and np.array_equal(masks[2], masks[3])


def test_what_is_done_to_a_stroke(visitor: Visitor, masks: Masks) -> None:
    editor = visitor.page.locator(CANVASES[Task.INPAINTING])

    def painted(seed: int) -> tuple[bool, bool]:
        visitor.generate(Task.INPAINTING, "a horse", [seed])
        return halves(masks[-1])

    visitor.paint(Task.INPAINTING, TOP)
    visitor.paint(Task.INPAINTING, BOTTOM)
    assert painted(1) == (True, True)
    editor.get_by_role("button", name="Undo").click()
    assert painted(2) == (True, False)
    editor.get_by_role("button", name="Redo").click()
    assert painted(3) == (True, True)
    editor.get_by_role("button", name="Undo").press("Enter")
    assert painted(4) == (True, False)
    editor.get_by_role("button", name="Erase").first.click()
    visitor.paint(Task.INPAINTING, ((0.3, 0.3), (0.7, 0.3)))
    visitor.ask(Task.INPAINTING, "a horse")
    visitor.wait_for_status("Nothing is painted yet")


def test_paint_belongs_to_a_picture_and_a_tab(visitor: Visitor, masks: Masks) -> None:
    visitor.paint(Task.INPAINTING, TOP)
    visitor.generate(Task.INPAINTING, "a horse", [1])
    visitor.turn_to(Task.SDEDIT)
    visitor.ask(Task.SDEDIT, "a horse")
    visitor.wait_for_status("Nothing is painted yet")
    visitor.paint(Task.SDEDIT, BOTTOM)
    visitor.generate(Task.SDEDIT, "a horse", [2])
    visitor.turn_to(Task.INPAINTING)
    visitor.generate(Task.INPAINTING, "a horse", [3])
    assert [halves(mask) for mask in masks] == [(True, False), (False, True), (True, False)]
    visitor.press("accept", "Accepted: paint")
    for task in (Task.INPAINTING, Task.SDEDIT):
        visitor.turn_to(task)
        visitor.ask(task, "a horse")
        visitor.wait_for_status("Nothing is painted yet")
        visitor.page.fill("#prompt textarea", "")
    visitor.turn_to(Task.INPAINTING)
    visitor.paint(Task.INPAINTING, TOP)
    visitor.open_example("Try a grassland")
    visitor.ask(Task.INPAINTING, "a horse")
    visitor.wait_for_status("Nothing is painted yet")
    assert len(masks) == 3
