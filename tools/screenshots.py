"""Pictures of the page for the README: `python -m tools.screenshots`; needs gradio, a browser."""

import tempfile
import time
from pathlib import Path

import sgm
from sgm.app.page import Page, launch
from sgm.app.studio import Studio
from sgm.cli.program import start
from sgm.specs import MODELS, TINY_SCALE, SamplingParams
from sgm.words import Task
from tools.browser import Visitor, browser

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "app"
STEPS = 20
WINDOW = (1200, 860)
# To and fro over a part of the canvas.
HORSE = [(x, y) for y in (0.50, 0.56, 0.62) for x in (0.40, 0.60)]
HOUSE = [(x, y) for y in (0.46, 0.51, 0.56) for x in (0.62, 0.76)]


def main() -> int:
    """Edit an example as a person would, and keep what is seen."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    height, width = MODELS["tiny"].trained_size
    pipeline = sgm.load("tiny").pipeline
    studio = Studio(
        pipeline, SamplingParams("", scale=TINY_SCALE), "tiny", 4 * 10**9, height * width
    )
    with tempfile.TemporaryDirectory() as folder, browser() as started:
        tempfile.tempdir = folder  # where gradio keeps what it serves
        page = Page(studio, STEPS)
        visitor = Visitor(started, launch(page, None, False, 2**26), WINDOW)
        visitor.open_example("Try a grassland")
        # So that the captions can say what dense takes.
        while studio.dense_seconds((height, width), STEPS) is None:
            time.sleep(0.1)
        # The last is the variant that a person would accept.
        for task, stroke, prompt, seeds, liked in (
            (Task.INPAINTING, HORSE, "a photograph of a horse on a grassland", (1, 2, 3, 4), 3),
            (Task.SDEDIT, HOUSE, "a photograph of a house on a grassland", (5, 6, 7, 8), 6),
        ):
            visitor.turn_to(task)
            visitor.paint(task, stroke)
            visitor.generate(task, prompt, seeds)
            visitor.choose(liked)
            visitor.picture(FOLDER / f"{task}.png")
            visitor.press("accept", "Accepted")
        page.blocks.close()
    return 0


if __name__ == "__main__":
    start("screenshots", main)
