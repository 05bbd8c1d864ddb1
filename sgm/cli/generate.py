"""Mode `generate`: load the networks, make the edit, save the picture, report the figures."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sgm.cli import outputs, report
from sgm.cli.inputs import Inputs, advise_on_size
from sgm.cli.record import edits_recorded, recipe_of, record
from sgm.cli.requests import is_cropped, notices, request
from sgm.io import files
from sgm.specs import RunOptions
from sgm.weights import weights_of
from sgm.words import Task

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sgm.inference.edit import Edit
    from sgm.inference.pipeline import EditResult, Pipeline
    from sgm.io.photos import Photo

logger = logging.getLogger(__name__)


def generate(options: RunOptions, inputs: Inputs, started: float) -> None:
    """Edit the picture and write it; an empty edit returns it, a full one runs dense.

    Args:
        started: `time.perf_counter()` when the command began.

    Raises:
        UserError: the networks cannot be loaded, or the result is no picture.
    """
    if options.record is not None:
        record(options, inputs, lambda: load_pipeline(options), started)
        return
    mask = inputs.mask
    # A dense run does not look at where the pictures differ, so there only a given mask counts.
    masked = mask is not None and (options.run_type.sparse or options.mask_path is not None)
    if masked and not mask.any():
        _return_unchanged(options, inputs, started)
        return
    if masked and options.run_type.sparse and mask.all():
        dense = options.run_type.dense
        logger.warning("The edit covers the whole picture: running %s, which is dense.", dense)
        options = replace(options, run_type=dense)
    for notice in notices(options):
        logger.warning(notice)
    wanted = request(options, inputs)
    if not is_cropped(wanted):
        advise_on_size(options, inputs)
    photo = inputs.source(options.photo.blend is not None)
    touched = touched_by(options, inputs, wanted)
    written: dict[int, tuple[dict[str, object], Image.Image]] = {}
    for one, result, load_seconds in results(options, inputs, wanted):
        picture = finished(one, photo, touched, result)
        facts = outputs.parameters(one, picture.size) if one.photo.metadata else None
        photo.save(picture, one.output_path, facts)
        outputs.say_how_long(result.seconds, result.edit_ratio)
        seconds = {"load": load_seconds, **result.seconds}
        figures = _figures(one, photo, touched, seconds, result.edit_ratio, started)
        written[one.sampling.seed] = (figures, picture)
    _publish(options, written)


def results(
    options: RunOptions, inputs: Inputs, wanted: "Edit"
) -> "Iterator[tuple[RunOptions, EditResult, float]]":
    """The edit for one seed after the other, by networks that are loaded once.

    Yields:
        The options with their one seed and path, the result, and the seconds of loading.
    """
    load_seconds: list[float] = []
    loaded: dict[bool, Pipeline] = {}

    def load(refiner: bool) -> "Pipeline":
        began = time.perf_counter()
        pipe = load_pipeline(options, refiner)
        load_seconds.append(time.perf_counter() - began)
        return pipe

    def kept(refiner: bool) -> "Pipeline":
        if refiner not in loaded:
            loaded[refiner] = load(refiner)
        return loaded[refiner]

    recorded = None
    if options.recording is not None:
        recorded = edits_recorded(options, inputs, lambda: kept(False))
    for seed in options.photo.seeds or (options.sampling.seed,):
        path = options.output_path
        path = outputs.numbered(path, seed) if options.photo.seeds else path
        one = replace(options, sampling=replace(options.sampling, seed=seed), output_path=path)
        if recorded is not None:
            result = recorded(seed)
        else:
            # A base model makes room for its refiner, so these are loaded anew for every seed.
            result = edit(one, wanted, load if options.refined else kept)
        yield one, result, sum(load_seconds)
        load_seconds.clear()


def edit(options: RunOptions, wanted: "Edit", load: "Callable[[bool], Pipeline]") -> "EditResult":
    """Make an edit.

    Args:
        load: the networks, of the base or (given True) of the refiner.

    Raises:
        UserError: the networks cannot be loaded, or the result is no picture.
    """
    from sgm.inference.refined import refined_edit

    if options.refined:
        return refined_edit(load, wanted, options.sampling, progress=True)
    return load(False).edit(wanted, options.sampling, progress=True)


def load_pipeline(options: RunOptions, refiner: bool = False, progress: bool = True) -> "Pipeline":
    """The networks of a run.

    Raises:
        UserError: a file is missing or does not fit.
    """
    import torch

    from sgm.inference.pipeline import Pipeline

    pipe = Pipeline.load(
        options.spec,
        options.run_type,
        options.config_path,
        options.weight_path,
        torch.device(options.device),
        options.precision,
        options.backend,
        options.preset,
        refiner,
        progress=progress,
        weights=weights_of(options, refiner),
        graphs=options.graphs,
    )
    return pipe.with_recipe(recipe_of(options))


def backend_of(options: RunOptions) -> str | None:
    """Name of the backend that runs the sparse operators; None in a dense run, which has none."""
    import torch

    from sgm.inference.networks import backend_name

    if not options.run_type.sparse:
        return None
    return backend_name(options.backend.value, torch.device(options.device))


def finished(
    options: RunOptions, photo: "Photo", touched: "Tensor | None", result: "EditResult"
) -> "Image.Image":
    """A result as it is written: at the size and in the colours of the input, with its alpha.

    Args:
        photo: what the edit was made to.
        touched: see `touched_by`.
    """
    from sgm.io import imageio

    size = (photo.image.height, photo.image.width)
    image = imageio.to_picture(imageio.crop_back(result.image, size))
    blended = options.photo.blend is not None
    return photo.with_edit(image, None if touched is None else touched.numpy(), blended)


def touched_by(options: RunOptions, inputs: Inputs, wanted: "Edit") -> "Tensor | None":
    """Where an edit may change the picture, bool [H, W]: the mask and its ring, for sdedit the
    dilated drawing; without a blend, where it was asked for. None where that is not known."""
    from sgm.inference.presets import RECIPES
    from sgm.io import imageio

    recipe, mask = RECIPES[options.preset], inputs.mask
    touched = wanted.touched(recipe)
    if touched is None and mask is not None:
        touched = recipe.sdedit_region(mask) if options.task is Task.SDEDIT else mask
    if touched is None:
        return None
    photo = inputs.source(False)
    return imageio.crop_back(touched, (photo.image.height, photo.image.width))


def _return_unchanged(options: RunOptions, inputs: Inputs, started: float) -> None:
    """Write the input as the result, byte for byte where the format is the same."""
    photo = inputs.source(options.photo.blend is not None)
    what = "mask is empty" if options.mask_path is not None else "two pictures are the same"
    resized = options.height is not None or options.width is not None
    if photo.path.suffix.lower() == options.output_path.suffix.lower() and not resized:
        logger.warning("The %s: the picture is returned unchanged.", what)
        content = photo.path.read_bytes()
        files.write_atomically(options.output_path, lambda file: file.write(content))
    else:
        logger.warning("The %s: the picture is only written anew.", what)
        photo.save(photo.with_edit(photo.image, None, False), options.output_path)
    mask = inputs.mask
    assert mask is not None  # it is empty
    figures = _figures(options, photo, mask, {}, 0.0, started)
    report.publish(figures, f"{options.output_path}\n", options.json_path)


def _figures(
    options: RunOptions,
    photo: "Photo",
    touched: "Tensor | None",
    seconds: Mapping[str, float],
    ratio: float | None,
    started: float,
) -> dict[str, object]:
    """The figures of a written result for `--json`: what was asked for and what came of it, seconds
    rounded to the microsecond. Says what changed outside of the edit."""
    import torch

    from sgm import runtime

    change = None
    if touched is not None:
        change = outputs.changed_outside(options.output_path, photo, touched)
        outputs.say_what_changed(options.output_path, change)
    stages = {"load": 0.0, "encode": 0.0, "sample": 0.0, "decode": 0.0} | seconds
    stages["total"] = time.perf_counter() - started
    return {
        **report.settings(options),
        "output": str(options.output_path),
        "backend": backend_of(options),
        "size": [photo.image.height, photo.image.width],
        "seconds": {stage: round(value, 6) for stage, value in stages.items()},
        "edit_ratio": ratio,
        "changed_outside": None if change is None else round(change.percent, 4),
        "largest_change_outside": None if change is None else change.largest,
        "device": runtime.describe_device(torch.device(options.device)),
        "versions": runtime.versions(),
    }


def _publish(
    options: RunOptions, written: "Mapping[int, tuple[dict[str, object], Image.Image]]"
) -> None:
    """Report the results by their seeds; of several, make the contact sheet first."""
    from sgm.io import imageio

    every = [figures for figures, _ in written.values()]
    if not options.photo.seeds:
        report.publish(every[0], f"{every[0]['output']}\n", options.json_path)
        return
    path = outputs.numbered(options.output_path, outputs.SHEET)
    sheet = outputs.contact_sheet({seed: picture for seed, (_, picture) in written.items()})
    imageio.save_picture(sheet, path)
    lines = "".join(f"{figures['output']}\n" for figures in every)
    figures = {"results": every, "contact_sheet": str(path)}
    report.publish(figures, f"{lines}{path}\n", options.json_path)
