"""Pictures of the page for the README: `python -m tools.screenshots`; needs gradio, a browser."""

import tempfile
from pathlib import Path

import sgm
from sgm.app.page import Page, launch
from sgm.app.studio import Studio
from sgm.cli.program import start
from sgm.specs import MODELS, SamplingParams
from sgm.words import Task
from tools.browser import Visitor, browser

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "app"
STEPS = 20
WINDOW = (1200, 900)
HORSE = [((0.40, y), (0.60, y)) for y in (0.52, 0.58, 0.64)]
HOUSE = [((0.62, y), (0.76, y)) for y in (0.50, 0.55, 0.60)]


def main() -> int:
    """Edit an example as a person would, and keep what is seen."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    height, width = MODELS["tiny"].trained_size
    pipeline = sgm.load("tiny").pipeline
    studio = Studio(pipeline, SamplingParams(""), "tiny", 4 * 10**9, height * width)
    tempfile.tempdir = tempfile.mkdtemp()  # where gradio keeps what it serves
    page = Page(studio, STEPS)
    address = launch(page, None, False, 2**26)
    with browser() as started:
        visitor = Visitor(started, address, WINDOW)
        visitor.page.get_by_role("button", name="Example: a grassland").click()
        visitor.wait_for_status("recorded")
        # So that the captions can say what dense takes.
        visitor.wait(lambda: studio.dense_seconds((height, width), STEPS) is not None)
        for task, strokes, prompt in (
            (Task.INPAINTING, HORSE, "a photograph of a horse on a grassland"),
            (Task.SDEDIT, HOUSE, "a photograph of a house on a grassland"),
        ):
            visitor.turn_to(task)
            for stroke in strokes:
                visitor.paint(task, *stroke)
            visitor.generate(task, prompt)
            visitor.choose(1)
            visitor.page.screenshot(path=FOLDER / f"{task}.png")
            visitor.press("accept", "recorded")
    page.blocks.close()
    return 0


if __name__ == "__main__":
    start("screenshots", main)
