"""The page of `sgm.app` in a browser, used as a person uses it; for its tests and pictures."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

from sgm.words import Task

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)
PATIENCE = 120_000.0  # milliseconds, for a machine that is busy
# A canvas draws sixty frames a second, which without a GPU takes a core from the networks.
FEW_FRAMES = """
const next = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) => setTimeout(() => next(draw), 100);
"""
TWO_FRAMES = (
    "() => new Promise(requestAnimationFrame).then(() => new Promise(requestAnimationFrame))"
)
TABS = {Task.INPAINTING: "Inpaint", Task.SDEDIT: "Draw"}
CANVASES = {Task.INPAINTING: "#mask", Task.SDEDIT: "#drawing"}
BUTTONS = {Task.INPAINTING: "#repaint", Task.SDEDIT: "#redraw"}


def chromium() -> str | None:
    """The path of a Chromium of this machine; None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium without a window, with a profile of its own."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium(), args=list(FLAGS), timeout=PATIENCE
        )
        yield started
        started.close()


class Visitor:
    """Somebody who has the page open. All waits are for what is seen on it.

    Args:
        browser: theirs.
        address: of the page.
        size: (width, height) of their window in pixels.
        few_frames: draw ten times a second, not sixty; for what is not timed.
    """

    def __init__(
        self,
        browser: Browser,
        address: str,
        size: tuple[int, int] = (1280, 960),
        few_frames: bool = True,
    ) -> None:
        window = {"width": size[0], "height": size[1]}
        self.page: Page = browser.new_context(viewport=window).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.requests: list[str] = []  # of what the browser has asked for
        self.page.on("request", lambda request: self.requests.append(request.url))
        if few_frames:
            self.page.add_init_script(FEW_FRAMES)
        self.page.goto(address)
        self.wait_for_status("Open a photo")
        self.page.locator("#mask canvas").first.wait_for()  # the last that appears
        self.page.evaluate(TWO_FRAMES)

    def wait_for_status(self, words: str) -> None:
        """Until the page says so; AssertionError if it never does."""
        status = self.page.locator("#status [role=status]")
        expect(status).to_contain_text(words, timeout=PATIENCE)

    def open(self, photo: Path) -> None:
        """Open a photo, and wait until it is recorded."""
        self.page.set_input_files("#photo input[type=file]", photo)
        self.wait_for_status("recorded")

    def open_example(self, name: str) -> None:
        """Open an example, and wait until it is recorded."""
        self.page.get_by_role("button", name=name).click()
        self.wait_for_status("recorded")

    def turn_to(self, task: Task) -> None:
        """Go to the tab of a task."""
        self.page.get_by_role("tab", name=TABS[task]).click()
        self.page.wait_for_selector(BUTTONS[task])

    def paint(self, task: Task, stroke: Sequence[tuple[float, float]]) -> None:
        """Move the brush along a line, when the picture is on the canvas.

        Args:
            stroke: points in shares of the canvas, across and down.
        """
        editor = self.page.locator(CANVASES[task])
        expect(editor.get_by_role("button", name="Undo")).to_be_enabled(timeout=PATIENCE)
        canvas = editor.locator("canvas").first
        canvas.scroll_into_view_if_needed()
        self.page.evaluate(TWO_FRAMES)  # it is drawn: the brush looks what is below it
        box = canvas.bounding_box()
        assert box is not None
        points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in stroke]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point)  # once: without a GPU, each takes the brush a second
        self.page.mouse.up()

    def ask(self, task: Task, prompt: str) -> None:
        """Write a prompt and press the button."""
        self.page.fill("#prompt textarea", prompt)
        self.page.click(BUTTONS[task])

    def generate(self, task: Task, prompt: str, seeds: Sequence[int]) -> None:
        """Make variants, and wait until those of these seeds are done."""
        self.ask(task, prompt)
        self.wait_for_variants(seeds)

    def wait_for_variants(self, seeds: Sequence[int]) -> None:
        """Until there are variants of these seeds, and the page says that these are all."""
        captions = [re.compile(rf"^seed {seed}: .* s \(dense: ") for seed in seeds]
        gallery = self.page.locator("#gallery .caption-label")
        expect(gallery).to_have_text(captions, timeout=PATIENCE)
        self.wait_for_status("done: click one")

    def choose(self, seed: int) -> None:
        """Click a variant."""
        self.page.locator("#gallery .thumbnail-item", has_text=f"seed {seed}:").click()
        self.wait_for_status(f"Seed {seed} is compared")

    def press(self, name: str, words: str) -> None:
        """Press Accept or Undo, and wait for words."""
        self.page.click(f"#{name}")
        self.wait_for_status(words)

    def set(self, name: str, value: int) -> None:
        """Set a number below "More"."""
        self.page.fill(f"#{name} input[type=number]", str(value))

    def save(self, path: Path) -> Path:
        """Press Save and keep the file."""
        with self.page.expect_download() as download:
            self.page.click("#save")
        download.value.save_as(path)
        return path

    def picture(self, path: Path) -> None:
        """Write what the window shows from the top of the page on, when all pictures are there."""
        self.page.mouse.move(0, 0)
        self.page.wait_for_function("[...document.images].every((image) => image.complete)")
        self.page.evaluate("window.scrollTo(0, 0)")
        self.page.screenshot(path=path)

    def fetch(self, path: str) -> int:
        """The answer's code when the page's server is asked for a path; 0 for none."""
        try:
            return self.page.request.get(self.page.url.rstrip("/") + path).status
        except Error:
            return 0
