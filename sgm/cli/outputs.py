"""Results: file names that replace no other file, what is written, and what it changed."""

import argparse
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sgm.errors import UserError
from sgm.io import files
from sgm.specs import RunOptions, SamplingParams
from sgm.words import Preset, RunType, Sampler, Task

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sgm.io.photos import Photo

logger = logging.getLogger(__name__)

SHEET = "sheet"  # what the contact sheet has in its name in place of a seed
# As other tools call them.
SAMPLERS = {Sampler.DPMPP2M: "DPM++ 2M", Sampler.EULER: "Euler", Sampler.LCM: "LCM"}
THUMBNAIL, CAPTION = 320, 16  # longer side of a picture on the sheet, and height of its caption


def numbered(path: Path, seed: int | str) -> Path:
    """The name of one of several results."""
    return path.with_name(f"{path.stem}-{seed}{path.suffix}")


def output_path(values: argparse.Namespace, inputs: Sequence[Path | None]) -> Path:
    """The picture to write, or the name that those of several seeds are made of.

    Without `--overwrite`, an earlier result under the default name stays: the new one gets a
    number.

    Raises:
        UserError: it would take the place of an input, or cannot be written.
    """
    names = [*values.seeds, SHEET] if values.seeds else []

    def targets(path: Path) -> list[Path]:
        return [numbered(path, name) for name in names] or [path]

    default = f"{values.task}-{values.run_type}" + ("" if values.seeds else f"-{values.seed}")
    path = Path(values.output_path or f"outputs/{default}.png")
    count = 1
    while (
        values.output_path is None
        and not values.overwrite
        and any(target.exists() for target in targets(path))
    ):
        count += 1
        path = Path(f"outputs/{default}-{count}.png")
    for target in targets(path):
        files.check_output_path(target)
        if values.overwrite or values.mode.profiles:
            continue
        for given in inputs:
            if given is not None and target.exists() and target.samefile(given):
                raise UserError(
                    f"--output_path {target} is an input of this run and would be replaced; name "
                    "another, or add --overwrite."
                )
    return path


@dataclass(frozen=True)
class Change:
    """What a written picture changed where nothing was asked for.

    Attributes:
        percent: of the pixels there.
        largest: difference of a channel, of 255.
    """

    percent: float
    largest: int


def changed_outside(written: Path | bytes, photo: "Photo", touched: "Tensor") -> Change:
    """Compare a picture as it was written with the one it was made of.

    Args:
        written: the file, or its content.
        touched: bool [H, W], where it may differ.
    """
    import numpy as np
    from PIL import Image

    from sgm.io.imageio import load_picture, to_rgb

    if isinstance(written, bytes):
        result = to_rgb(Image.open(io.BytesIO(written)))
    else:
        result = load_picture(written)
    before, after = np.asarray(photo.own).astype(int), np.asarray(result).astype(int)
    difference = np.abs(before - after).max(-1)[~touched.numpy()]
    if not difference.size:
        return Change(0.0, 0)
    return Change(100 * float((difference > 0).mean()), int(difference.max()))


def say_how_long(seconds: Mapping[str, float], edit_ratio: float | None) -> None:
    """The size and the time of an edit in words.

    Args:
        seconds: by stage, without loading the model.
        edit_ratio: share of the pixels that was to be edited; None where unknown.
    """
    what = "the picture" if edit_ratio is None else f"{100 * edit_ratio:.1f}% of the picture"
    logger.info("Edited %s in %.1f s.", what, sum(seconds.values()))


def say_what_changed(path: Path, change: Change) -> None:
    """The figures of `changed_outside` in words."""
    from sgm.io.photos import LOSSY

    if not change.largest:
        logger.info("Nothing changed outside of the edit.")
        return
    lossy = path.suffix.lower() in LOSSY
    logger.info(
        "%.1f%% of the pixels outside of the edit changed, by at most %d of 255%s.",
        *(change.percent, change.largest),
        f": {path.suffix[1:].upper()} is a lossy format, PNG is not" if lossy else "",
    )


def parameters(options: RunOptions, size: Sequence[int]) -> str:
    """How a picture of a run was made.

    Args:
        size: (width, height) of the picture.
    """
    o = options
    return described(o.sampling, size, o.model, o.task, o.run_type, o.preset)


def described(
    params: SamplingParams,
    size: Sequence[int],
    model: str,
    task: Task,
    run_type: RunType,
    preset: Preset,
) -> str:
    """How a picture was made, in the words that other tools read.

    Args:
        size: (width, height) of the picture.
    """
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


def contact_sheet(pictures: Mapping[int, "Image.Image"]) -> "Image.Image":
    """Small copies of several results on one page, each with its seed.

    Args:
        pictures: by seed, all of one size.
    """
    import math

    from PIL import Image, ImageDraw

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
