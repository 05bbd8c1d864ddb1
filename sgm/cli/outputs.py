"""What is said of a result: in the log, in the figures, in a PNG, and on a contact sheet."""

import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from sgm.io.imageio import crop_back, load_picture, to_rgb
from sgm.io.photos import LOSSY, Photo
from sgm.specs import RunOptions, SamplingParams
from sgm.words import Preset, RunType, Sampler, Task

logger = logging.getLogger(__name__)

# As other tools call them.
SAMPLERS = {Sampler.DPMPP2M: "DPM++ 2M", Sampler.EULER: "Euler", Sampler.LCM: "LCM"}
THUMBNAIL, CAPTION = 320, 16  # longer side of a picture on the sheet, and height of its caption


def changed_outside(
    written: Path | bytes, photo: Photo, touched: Tensor | None
) -> dict[str, float | int | None]:
    """Compare a picture as it was written (a file, or its content) with the one it was made of,
    where it was not touched, bool [H, W], padded or not: `changed_outside`, percent of the pixels
    that changed, and `largest_change_outside`, of 255. Both are None where `touched` is not known.
    """
    if touched is None:
        return {"changed_outside": None, "largest_change_outside": None}
    if isinstance(written, bytes):
        result = to_rgb(Image.open(io.BytesIO(written)))
    else:
        result = load_picture(written)
    before, after = np.asarray(photo.own).astype(int), np.asarray(result).astype(int)
    outside = ~crop_back(touched, photo.size).numpy()
    difference = np.abs(before - after).max(-1)[outside]
    percent = 100 * float((difference > 0).mean()) if difference.size else 0.0
    largest = int(difference.max(initial=0))
    return {"changed_outside": round(percent, 4), "largest_change_outside": largest}


def say_what_changed(path: Path, change: Mapping[str, float | int | None]) -> None:
    """The figures of `changed_outside` in words."""
    if change["largest_change_outside"] is None:
        return
    if change["largest_change_outside"] == 0:
        logger.info("Nothing changed outside of the edit.")
        return
    lossy = path.suffix.lower() in LOSSY
    logger.info(
        "%.1f%% of the pixels outside of the edit changed, by at most %d of 255%s.",
        *change.values(),
        f": {path.suffix[1:].upper()} is a lossy format, PNG is not" if lossy else "",
    )


def parameters(options: RunOptions, size: Sequence[int]) -> str | None:
    """How a picture of a run was made, if that is to be said; its size is (width, height)."""
    words = (options.model, options.task, options.run_type, options.preset)
    return described(options.sampling, size, *words) if options.photo.metadata else None


def described(
    params: SamplingParams,
    size: Sequence[int],
    model: str,
    task: Task,
    run_type: RunType,
    preset: Preset,
) -> str:
    """How a picture was made, in the words that other tools read; its size is (width, height)."""
    facts: Mapping[str, object] = {
        "Steps": params.steps_of(run_type),
        "Sampler": SAMPLERS[params.sampler],
        "CFG scale": params.scale,
        "Seed": params.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": model,
        **({"Denoising strength": params.strength} if task is Task.SDEDIT else {}),
        "Task": task,
        "Run type": run_type,
        "Preset": preset,
    }
    negative = f"Negative prompt: {params.negative_prompt}\n" if params.negative_prompt else ""
    return f"{params.prompt}\n{negative}" + ", ".join(f"{k}: {v}" for k, v in facts.items())


def contact_sheet(pictures: Mapping[int, Image.Image]) -> Image.Image:
    """Small copies of several results, all of one size, on one page, each with its seed."""
    width, height = next(iter(pictures.values())).size
    scale = min(1.0, THUMBNAIL / max(width, height))
    cell = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = math.ceil(math.sqrt(len(pictures) * cell[1] / cell[0]))
    rows = math.ceil(len(pictures) / columns)
    page = Image.new("RGB", (columns * cell[0], rows * (cell[1] + CAPTION)), "white")
    draw = ImageDraw.Draw(page)
    for number, (seed, picture) in enumerate(pictures.items()):
        left, top = number % columns * cell[0], number // columns * (cell[1] + CAPTION)
        page.paste(picture.convert("RGB").resize(cell, Image.Resampling.LANCZOS), (left, top))
        draw.text((left + 4, top + cell[1] + 2), f"seed {seed}", fill="black")
    return page
