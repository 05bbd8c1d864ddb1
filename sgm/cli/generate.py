"""Mode `generate`: load the networks, make the edit, save the picture, report the figures."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sgm.cli import report
from sgm.cli.inputs import Inputs, advise_on_size
from sgm.cli.record import edit_recorded, record
from sgm.specs import RunOptions, Task
from sgm.weights import weights_of

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sgm.inference.edit import Edit
    from sgm.inference.pipeline import Pipeline

logger = logging.getLogger(__name__)


def generate(options: RunOptions, inputs: Inputs, started: float) -> None:
    """Edit the picture and write it; an empty edit returns it, a full one runs dense.

    Args:
        started: `time.perf_counter()` when the command began.

    Raises:
        UserError: the networks cannot be loaded, or the result is no picture.
    """
    if options.record is not None:
        record(options, inputs, load_pipeline(options), started)
        return
    mask = inputs.mask
    # A dense run does not look at where the pictures differ, so there only a given mask counts.
    masked = mask is not None and (options.run_type.sparse or options.task is Task.INPAINTING)
    if masked and not mask.any():
        what = "mask is empty" if options.task is Task.INPAINTING else "two pictures are the same"
        logger.warning("The %s: the picture is returned unchanged.", what)
        _finish(options, inputs, inputs.source, {}, 0.0, started)
        return
    if masked and options.run_type.sparse and mask.all():
        dense = options.run_type.dense
        logger.warning("The edit covers the whole picture: running %s, which is dense.", dense)
        options = replace(options, run_type=dense)
    advise_on_size(options, inputs)
    picture, seconds, ratio = edit(options, inputs)
    _finish(options, inputs, picture, seconds, ratio, started)


def edit(
    options: RunOptions, inputs: Inputs
) -> "tuple[Image.Image, dict[str, float], float | None]":
    """Load the networks and make the edit.

    Returns:
        The edited picture at the size of the inputs, seconds by stage (`load`, `encode`,
        `sample`, `decode`), and the share of edited pixels (None where unknown).

    Raises:
        UserError: the networks cannot be loaded, or the result is no picture.
    """
    from sgm.inference.refined import refined_edit
    from sgm.io import imageio

    wanted, load_seconds = edit_of(options, inputs), []

    def load(refiner: bool) -> "Pipeline":
        started = time.perf_counter()
        pipe = load_pipeline(options, refiner)
        load_seconds.append(time.perf_counter() - started)
        return pipe

    if options.refined:
        result = refined_edit(load, wanted, options.sampling, progress=True)
    elif options.recording is not None:
        result = edit_recorded(options, inputs, load(False))
    else:
        result = load(False).edit(wanted, options.sampling, progress=True)
    size = (inputs.source.height, inputs.source.width)
    picture = imageio.to_picture(imageio.crop_back(result.image, size))
    return picture, {"load": sum(load_seconds), **result.seconds}, result.edit_ratio


def load_pipeline(options: RunOptions, refiner: bool = False) -> "Pipeline":
    """The networks of a run.

    Raises:
        UserError: a file is missing or does not fit.
    """
    import torch

    from sgm.inference.pipeline import Pipeline

    return Pipeline.load(
        options.spec,
        options.run_type,
        options.config_path,
        options.weight_path,
        torch.device(options.device),
        options.precision,
        options.backend,
        options.preset,
        refiner,
        every=options.refresh,
        weights=weights_of(options, refiner),
    )


def backend_of(options: RunOptions) -> str | None:
    """Name of the backend that runs the sparse operators; None in a dense run, which has none."""
    import torch

    from sgm.inference.networks import backend_name

    if not options.run_type.sparse:
        return None
    return backend_name(options.backend.value, torch.device(options.device))


def edit_of(options: RunOptions, inputs: Inputs) -> "Edit":
    """The edit that the options ask for, its pictures padded to multiples of 64."""
    from sgm.inference.inpainting import Inpainting
    from sgm.inference.sdedit import SDEdit
    from sgm.io import imageio

    def tensor(picture: "Image.Image") -> "Tensor":
        return imageio.pad_to_multiple(imageio.to_tensor(picture))

    if options.task is Task.INPAINTING:
        return Inpainting(tensor(inputs.init), imageio.pad_to_multiple(inputs.mask))
    init = None if inputs.init is None else tensor(inputs.init)
    return SDEdit(init, tensor(inputs.edited), options.sampling.strength)


def _finish(
    options: RunOptions,
    inputs: Inputs,
    picture: "Image.Image",
    seconds: Mapping[str, float],
    ratio: float | None,
    started: float,
) -> None:
    """Save the picture, report its path or the figures."""
    from sgm.io import imageio

    imageio.save_picture(picture, options.output_path)
    seconds = {"load": 0.0, "encode": 0.0, "sample": 0.0, "decode": 0.0} | seconds
    seconds["total"] = time.perf_counter() - started
    changed = changed_outside(options, inputs, picture)
    if changed is not None:
        logger.info("%d bytes changed outside of the edit.", changed)
    figures = _figures(options, picture, seconds, ratio, changed)
    report.publish(figures, f"{options.output_path}\n", options.json_path)


def changed_outside(options: RunOptions, inputs: Inputs, picture: "Image.Image") -> int | None:
    """Bytes in which a result differs from the input where no edit is: outside the mask, or for
    sdedit outside of the dilated difference that the preset may change. None where unknown."""
    from sgm.inference.presets import RECIPES
    from sgm.io import imageio

    region = inputs.mask
    if region is None:
        return None
    if options.task is Task.SDEDIT:
        region = RECIPES[options.preset].sdedit_region(region)
    before, after = imageio.to_bytes(inputs.source), imageio.to_bytes(picture)
    return int(((before != after) & ~region).sum())


def _figures(
    options: RunOptions,
    picture: "Image.Image",
    seconds: Mapping[str, float],
    ratio: float | None,
    changed: int | None,
) -> dict[str, object]:
    """The figures of a run for `--json`: what it was asked for and what came of it; seconds rounded
    to the microsecond."""
    import torch

    from sgm import runtime

    return {
        **report.settings(options),
        "output": str(options.output_path),
        "backend": backend_of(options),
        "size": [picture.height, picture.width],
        "seconds": {stage: round(value, 6) for stage, value in seconds.items()},
        "edit_ratio": ratio,
        "changed_outside": changed,
        "device": runtime.describe_device(torch.device(options.device)),
        "versions": runtime.versions(),
    }
