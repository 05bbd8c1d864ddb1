"""The page without a browser: what its events give, whose they are, what its server gives out."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import sgm
from sgm.app.studio import Studio
from sgm.specs import SamplingParams
from sgm.words import Task
from tests.app.ears import heard
from tests.conftest import ROOT

pytest.importorskip("gradio")

from sgm.app import page as pages
from sgm.app.page import Page, launch

SIZE = (128, 64)
STEPS = 2
Update = dict[Any, Any]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    monkeypatch.setattr(Studio, "measure_dense", lambda self, size: None)
    pipeline = sgm.load("tiny", device="cpu").pipeline
    made = Page(Studio(pipeline, SamplingParams(""), "tiny", 10**10, 256 * 512), STEPS)
    yield made
    for seat in made.seats.values():
        seat.folder.cleanup()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", SIZE, (200, 40, 30)).save(path)
    return path


def somebody(name: str) -> Any:
    """A request of a browser."""
    return SimpleNamespace(session_hash=name)


def all_of(updates: AsyncIterator[Update]) -> list[Update]:
    """What a handler gives from its begin to its end."""

    async def collected() -> list[Update]:
        return [update async for update in updates]

    return asyncio.run(collected())


def painted() -> Image.Image:
    layer = Image.new("RGBA", SIZE)
    ImageDraw.Draw(layer).rectangle((40, 20, 80, 40), fill=(255, 64, 160, 153))
    return layer


def generated(page: Page, who: str, paint: Image.Image | None) -> list[Update]:
    shown = page._seat(somebody(who)).shown
    return all_of(asked(page, who, paint, shown))


def asked(page: Page, who: str, paint: Image.Image | None, shown: str) -> AsyncIterator[Update]:
    words = ("a horse", None, 0.8, STEPS, 2, 7, True)
    return page._generator(Task.INPAINTING)(paint, shown, *words, somebody(who))


def test_two_sessions_have_nothing_in_common(page: Page, photo: Path) -> None:
    for who in ("a", "b"):
        last = all_of(page._open(str(photo), STEPS, somebody(who)))[-1]
        assert "The photo is recorded" in last[page.on.status]
    updates = generated(page, "a", painted())
    captions = [caption for _, caption in updates[-2][page.on.gallery]]
    assert [caption.partition(":")[0] for caption in captions] == ["seed 7", "seed 8"]
    assert [u[page.on.seed] for u in updates if page.on.seed in u] == [9]
    first = next(number for number, u in enumerate(updates) if page.on.seed in u)
    compared = [number for number, u in enumerate(updates) if page.on.compare in u]
    assert compared == [first + 1]  # a result is seen before the large pictures are written
    page.seats["a"].chosen = 8
    all_of(page._accept(somebody("a")))
    one, other = (page.seats[who].desk for who in ("a", "b"))
    assert not np.array_equal(np.asarray(one.picture), np.asarray(other.picture))
    assert not other.variants and one.studio.budget.owners() == [other, one]
    nothing = all_of(page._accept(somebody("b")))[-1][page.on.status]
    assert "There is no result to accept" in nothing and 'class="error"' in nothing


def test_save_rests_until_its_file_is_that_of_the_picture(page: Page, photo: Path) -> None:
    who, save = somebody("a"), page.on.save
    given = [u[save] for u in all_of(page._open(str(photo), STEPS, who)) if save in u]
    assert [update["interactive"] for update in given] == [False, True]
    generated(page, "a", painted())
    given = [u[save] for u in all_of(page._accept(who)) if save in u]
    assert [update["interactive"] for update in given] == [False, True]
    with Image.open(given[1]["value"]) as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(page.seats["a"].desk.picture))
    assert not [u for u in generated(page, "a", painted()) if save in u]


def test_an_error_is_a_sentence_and_no_markup(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "<b>.png"
    path.write_text("nothing")
    said = all_of(page._open(str(path), STEPS, somebody("a")))[-1][page.on.status]
    assert "&lt;b&gt;.png is not a picture" in said and "<b>" not in said
    assert "no photo yet" in generated(page, "a", None)[-1][page.on.status]


def test_a_tab_that_was_not_seen_gets_the_picture(page: Page, photo: Path) -> None:
    who = somebody("a")
    all_of(page._open(str(photo), STEPS, who))
    first = all_of(page._opened_tab(Task.SDEDIT)(who))
    drawing = page.on.canvases[Task.SDEDIT]
    picture = first[0][drawing.editor]
    with Image.open(picture["background"]) as shown:
        assert shown.size == SIZE and not picture["layers"]
    assert first[1] == {drawing.shown: page.seats["a"].shown}
    all_of(page._opened_tab(Task.INPAINTING)(who))
    again = all_of(page._opened_tab(Task.SDEDIT)(who))
    assert len(again) == 1 and drawing.editor not in again[0]  # what was drawn there stays


def test_paint_of_a_picture_before_is_none(page: Page, photo: Path) -> None:
    updates = all_of(page._open(str(photo), STEPS, somebody("a")))
    mask = page.on.canvases[Task.INPAINTING]
    order = [part for u in updates for part in (mask.editor, mask.shown) if part in u]
    assert order == [mask.editor, mask.shown]  # what is named is there
    before = page.seats["a"].shown
    generated(page, "a", painted())
    all_of(page._accept(somebody("a")))
    assert page.seats["a"].shown not in ("", before)
    late = all_of(asked(page, "a", painted(), before))
    assert "Nothing is painted yet" in late[-1][page.on.status]


def test_a_page_that_was_left(page: Page, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for who in ("a", "b"):
        all_of(page._open(str(photo), STEPS, somebody(who)))
    worker, budget = page.studio.worker, page.studio.budget
    page._leave(somebody("a"))
    heard(lambda emit: worker.submit(lambda job: None, emit))
    assert budget.owners() == [page.seats["b"].desk]
    updates = generated(page, "a", painted())  # it comes back, and its photo is recorded again
    assert len(updates[-2][page.on.gallery]) == 2
    monkeypatch.setattr(pages, "KEPT", -1.0)
    folder = Path(page.seats["a"].folder.name)
    page._leave(somebody("a"))
    assert list(page.seats) == ["b"] and not folder.exists()
    heard(lambda emit: worker.submit(lambda job: None, emit))
    assert budget.owners() == [page.seats["b"].desk]


def test_no_file_of_the_machine_is_served(
    page: Page, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    address = launch(page, None, False, 1000)
    try:
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as answer:
            assert answer.status == 200
        for path in (ROOT / "README.md", "README.md", "/etc/hostname", photo):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}gradio_api/file={path}")
            assert refused.value.code in (403, 404)
        body = b"--x\r\nContent-Disposition: form-data; name=files; filename=a.png\r\n\r\n"
        for size, accepted in ((900, True), (2000, False)):
            request = urllib.request.Request(
                f"{address}gradio_api/upload", body + bytes(size) + b"\r\n--x--\r\n"
            )
            request.add_header("Content-Type", "multipart/form-data; boundary=x")
            try:
                code = urllib.request.urlopen(request).status
            except urllib.error.HTTPError as error:
                code = error.code
            assert (code == 200) is accepted, (size, code)
    finally:
        page.blocks.close()
