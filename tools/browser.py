"""The page of `sgm.app` in a browser, used as a person uses it; for its tests and pictures."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Error, Locator, Page, sync_playwright

from sgm.words import Task

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)
PATIENCE = 240.0  # seconds, for a machine that is busy
# A canvas draws sixty frames a second, which without a GPU takes a core from the networks.
FEW_FRAMES = """
const next = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) => setTimeout(() => next(draw), 100);
"""
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
            executable_path=chromium(), args=list(FLAGS), timeout=PATIENCE * 1000
        )
        yield started
        started.close()


class Visitor:
    """Somebody who has the page open.

    Args:
        browser: theirs.
        address: of the page.
        size: (width, height) of their window in pixels.
        few_frames: draw and look ten times a second, not sixty; for what is not timed.
    """

    def __init__(
        self,
        browser: Browser,
        address: str,
        size: tuple[int, int] = (1280, 960),
        few_frames: bool = True,
    ) -> None:
        self.few_frames = few_frames
        window = {"width": size[0], "height": size[1]}
        self.page: Page = browser.new_context(viewport=window).new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.requests: list[str] = []  # of what the browser has asked for
        self.page.on("request", lambda request: self.requests.append(request.url))
        if few_frames:
            self.page.add_init_script(FEW_FRAMES)
        self.page.goto(address)
        self.page.wait_for_selector("#prompt textarea")

    def status(self) -> str:
        """What the page says."""
        return self.page.inner_text("#status [role=status]")

    def wait(self, condition: Callable[[], bool]) -> float:
        """Seconds until something is so; TimeoutError if it never is."""
        began = time.perf_counter()
        while not condition():
            if time.perf_counter() - began > PATIENCE:
                raise TimeoutError(f"The page says: {self.status()}")
            self.page.wait_for_timeout(100 if self.few_frames else 10)
        return time.perf_counter() - began

    def wait_for_status(self, words: str) -> float:
        """Seconds until the page says so."""
        return self.wait(lambda: words in self.status())

    def open(self, photo: Path) -> None:
        """Open a photo, and wait until it is recorded."""
        self.page.set_input_files("#photo input[type=file]", photo)
        self.wait_for_status("recorded")

    def turn_to(self, task: Task) -> None:
        """Go to the tab of a task, and wait for its canvas."""
        self.page.get_by_role("tab", name=TABS[task]).click()
        self.page.wait_for_selector(BUTTONS[task])
        self._canvas(task).wait_for()
        self.page.wait_for_timeout(1000)

    def paint(self, task: Task, *stroke: tuple[float, float]) -> None:
        """Move the brush along a line.

        Args:
            stroke: points in shares of the canvas, across and down.
        """
        canvas = self._canvas(task)
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        points = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in stroke]
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point, steps=8)
        self.page.mouse.up()
        self.page.wait_for_timeout(300)

    def _canvas(self, task: Task) -> Locator:
        """The lower of the two that an editor lays over each other."""
        return self.page.locator(f"{CANVASES[task]} canvas").first

    def ask(self, task: Task, prompt: str) -> None:
        """Write a prompt and press the button."""
        self.page.fill("#prompt textarea", prompt)
        self.page.click(BUTTONS[task])

    def generate(self, task: Task, prompt: str) -> None:
        """Make the variants, and wait for all of them."""
        before = self.status()
        self.ask(task, prompt)
        self.wait(lambda: self.status() != before)
        self.wait_for_status("accept one")

    def captions(self) -> list[str]:
        """What stands below the variants."""
        return self.page.locator("#gallery .caption-label").all_inner_texts()

    def choose(self, number: int) -> None:
        """Click a variant, counted from 0."""
        self.page.locator("#gallery .thumbnail-item").nth(number).click()
        self.page.wait_for_timeout(1000)

    def press(self, name: str, words: str) -> None:
        """Press Accept or Undo, and wait for words."""
        before = self.status()
        self.page.click(f"#{name}")
        self.wait(lambda: self.status() != before)
        self.wait_for_status(words)

    def set(self, name: str, value: int) -> None:
        """Set a number below "More"."""
        field = self.page.locator(f"#{name} input[type=number]")
        field.fill(str(value))
        field.press("Tab")

    def save(self, path: Path) -> Path:
        """Press Save and keep the file."""
        with self.page.expect_download() as download:
            self.page.click("#save")
        download.value.save_as(path)
        return path

    def fetch(self, path: str) -> int:
        """The answer's code when the page's server is asked for a path; 0 for none."""
        try:
            return self.page.request.get(self.page.url.rstrip("/") + path).status
        except Error:
            return 0
