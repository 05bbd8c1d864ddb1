"""A small data set of edits, and ways to run a batch of it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sgm.batch.__main__ import main
from tests.conftest import ROOT

HEIGHT, WIDTH = 64, 128
WORDS = ["--model", "tiny", "--device", "cpu", "--steps", "2", "--threads", "1"]


def make_pictures(folder: Path, count: int = 2) -> None:
    """Pictures `p0.png`, ..., with a mask `m0.png` and a drawing `d0.png` for each."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(count):
        planes = (x * 255 // WIDTH, y * 255 // HEIGHT, np.full_like(x, 60 * number))
        pixels = np.stack(planes, axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.png")
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[20:40, 40 + 10 * number : 80] = True
        Image.fromarray(mask).save(folder / f"m{number}.png")
        pixels[10:30, 20:40] = (250, 200, 0)
        Image.fromarray(pixels).save(folder / f"d{number}.png")


def inpainting_row(number: int = 0, **more: object) -> dict[str, object]:
    """A row that repaints picture `number`."""
    files = {"init_img": f"p{number}.png", "mask_path": f"m{number}.png"}
    return {"task": "inpainting", **files, "prompt": "a horse", **more}


def sdedit_row(number: int = 0, **more: object) -> dict[str, object]:
    """A row that redraws picture `number`."""
    files = {"init_img": f"p{number}.png", "edited_img": f"d{number}.png"}
    return {"task": "sdedit", **files, "prompt": "a sun", **more}


def mixed_rows() -> list[dict[str, object]]:
    """Both tasks, two pictures in turn, several seeds: five pictures of four rows."""
    return [
        inpainting_row(0, seed=1),
        sdedit_row(1, seed=3),
        inpainting_row(1, seeds=[1, 2]),
        sdedit_row(0, strength=0.7, picture_prompt="a sky"),
    ]


def write_rows(folder: Path, rows: Sequence[object], name: str = "edits.jsonl") -> Path:
    """The rows as a file."""
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(edits: Path, output: Path, *words: str) -> int:
    """Run a batch in this process; its exit code."""
    return main([str(edits), "--output", str(output), *WORDS, *words])


def started(edits: Path, output: Path, *words: str, **environment: str) -> subprocess.Popen:
    """A batch in a process of its own."""
    command = [sys.executable, "-m", "sgm.batch", str(edits), "--output", str(output), *WORDS]
    return subprocess.Popen(
        [*command, *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_of(output: Path) -> list[dict]:
    """The lines of a batch."""
    text = (output / "results.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def content(output: Path) -> dict[str, object]:
    """All that a batch left, by name, but for the seconds that it took."""
    files = {p.relative_to(output).as_posix(): p.read_bytes() for p in output.rglob("*.png")}
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(output)]
    others = {p.name for p in output.rglob("*") if p.is_file() and p.suffix != ".png"}
    return {**files, "lines": lines, "others": others}
