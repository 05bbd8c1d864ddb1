"""What the page adds to an edit: seconds from a click to a seen result, beside Python's.

`python -m benchmarks.page` needs gradio, playwright and a Chromium. All in one process and on one
machine: the example is opened and edited for the first time, then warm edits of one variant are
made in turn by a click, by a click right after another stroke, and by `EditSession.inpaint`. A
click is timed by the browser, until the picture of the result is loaded.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import sgm
from benchmarks.common import RESULTS, machine, write_results
from sgm.app.desk import Desk, Wish
from sgm.app.page import Page, launch
from sgm.app.studio import Studio
from sgm.app.worker import Emit, Ended, Job
from sgm.cli.program import start
from sgm.io import imageio
from sgm.specs import MODELS, TINY_SCALE, SamplingParams
from sgm.words import Task
from tools.browser import Visitor, browser

PROMPT = "a photograph of a horse on a grassland"
# Milliseconds from the next click to a variant with its seconds, whose picture is loaded. Timed in
# the browser, which is told of changes: what the mouse and this program take is not the page's.
WATCH = """(seed) => { window.seen = new Promise((seen) => {
  let clicked = null;
  const click = (event) => { clicked = event.timeStamp; };
  const isSeen = (item) => item.textContent.trim().startsWith(seed) &&
    item.textContent.includes("dense") && item.querySelector("img").complete;
  // Later, when a picture that is replaced counts as not complete.
  const look = () => setTimeout(() => {
    const items = [...document.querySelectorAll("#gallery .thumbnail-item")];
    if (clicked === null || !items.some(isSeen)) return;
    watcher.disconnect();
    document.removeEventListener("load", look, true);
    seen(performance.now() - clicked);
  });
  const watcher = new MutationObserver(look);
  const all = {subtree: true, childList: true, characterData: true, attributes: true};
  watcher.observe(document, all);
  document.addEventListener("load", look, true);  // a window hears nothing of pictures
  addEventListener("click", click, {capture: true, once: true});
}); }"""
STROKE = [(x, y) for y in (0.52, 0.58, 0.64) for x in (0.40, 0.60)]
AGAIN = STROKE[:2]  # where paint is already: the same edit


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--edits", type=int, default=5, help="warm ones, by click and by Python")
    parser.add_argument("--output", type=Path, default=RESULTS / "page.json")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the figures, print the table."""
    values = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
    tempfile.tempdir = tempfile.mkdtemp()  # where gradio keeps what it serves
    height, width = MODELS["tiny"].trained_size
    pipeline = sgm.load("tiny").pipeline
    studio = Studio(
        pipeline, SamplingParams("", scale=TINY_SCALE), "tiny", 4 * 10**9, height * width
    )
    page = Page(studio, values.steps)
    address = launch(page, None, False, 2**26)
    with browser() as started:
        visitor = Visitor(started, address)
        began = time.perf_counter()
        visitor.open_example("Try a grassland")
        recorded = time.perf_counter() - began
        visitor.paint(Task.INPAINTING, STROKE)
        visitor.set("count", 1)
        (desk,) = (seat.desk for seat in page.seats.values())
        painted = Painted(desk)
        first = click(visitor, 1)
        while studio.dense_seconds((height, width), values.steps) is None:
            time.sleep(0.1)
        edits = []
        for seed in range(2, 2 + 2 * values.edits, 2):
            clicked, python = click(visitor, seed), alone(desk, painted, seed)
            visitor.paint(Task.INPAINTING, AGAIN)
            edits.append((clicked, click(visitor, seed + 1), python))
    page.blocks.close()
    clicked, after_stroke, python = (statistics.median(times) for times in zip(*edits, strict=True))
    figures = {
        **{"machine": machine(), "threads": torch.get_num_threads(), "steps": values.steps},
        "seconds": {
            "open, until it is recorded": recorded,
            "first edit": first,
            "from open to a seen edit, without the painting": recorded + first,
        },
        "warm": {
            **{"click": clicked, "python": python, "added": clicked - python},
            "click right after a stroke": after_stroke,
            "added right after a stroke": after_stroke - python,
        },
        "edits": edits,
    }
    write_results(values.output, figures, table)
    return 0


class Painted:
    """Listens to what a desk is asked for, and keeps the paint."""

    def __init__(self, desk: Desk) -> None:
        self.mask: Tensor | None = None
        self._generate = desk.generate
        desk.generate = self._heard  # type: ignore[method-assign]

    def _heard(self, task: Task, paint: Image.Image | None, wish: Wish, emit: Emit) -> Job:
        assert paint is not None
        self.mask = imageio.pad_to_multiple(torch.from_numpy(np.array(paint)[..., 3] > 0))
        return self._generate(task, paint, wish, emit)


def click(visitor: Visitor, seed: int) -> float:
    """Seconds from the click on Generate to the seen variant of the seed."""
    visitor.page.evaluate(WATCH, f"seed {seed}: ")
    visitor.ask(Task.INPAINTING, PROMPT)
    took: float = visitor.page.evaluate("window.seen")
    visitor.wait_for_variants([seed])
    return took / 1e3


def alone(desk: Desk, painted: Painted, seed: int) -> float:
    """Seconds of the same edit by Python, on the worker's thread."""
    took: list[float] = []
    over: list[object] = []

    def work(job: Job) -> None:
        session = desk.studio.budget.get(desk)
        assert session is not None
        assert painted.mask is not None
        session.progress = False
        began = time.perf_counter()
        result = session.inpaint(PROMPT, painted.mask, "", seed)
        imageio.to_picture(result.image)
        took.append(time.perf_counter() - began)

    desk.studio.worker.submit(work, over.append)
    while not any(isinstance(event, Ended) for event in over):
        time.sleep(0.01)
    return took[0]


def table(figures: Mapping[str, object]) -> str:
    """The figures as Markdown."""
    seconds, warm = figures["seconds"], figures["warm"]
    assert isinstance(seconds, Mapping) and isinstance(warm, Mapping)
    rows = {**seconds, **{f"warm edit, {name}": value for name, value in warm.items()}}
    lines = [f"| {name} | {value:.2f} |" for name, value in rows.items()]
    return "\n".join(["| what | seconds |", "| --- | ---: |", *lines]) + "\n"


if __name__ == "__main__":
    start("page", main)
