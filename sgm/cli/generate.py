"""Mode `generate`: load the networks, make the edit, save the picture, report the figures."""

import functools
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from sgm import runtime
from sgm.cli import outputs, report
from sgm.cli.checks import SHEET, numbered
from sgm.cli.inputs import Inputs, dense_if_everywhere, edit_of_run, nothing_marked
from sgm.cli.record import edits_recorded, recipe_of, record
from sgm.inference.crop import Cropped
from sgm.inference.edit import Edit
from sgm.inference.networks import backend_name
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.prompts import say_unread
from sgm.inference.refined import refined_edit
from sgm.inference.window import advise_on_size
from sgm.io import files, imageio
from sgm.io.photos import Photo
from sgm.specs import RunOptions

logger = logging.getLogger(__name__)


def generate(options: RunOptions, inputs: Inputs, started: float) -> None:
    """Edit the picture and write it; an empty edit returns it, a full one runs dense. `started` is
    the `time.perf_counter()` when the command began."""
    if options.record is not None:
        _advise(options, inputs)
        record(options, inputs, lambda: load_pipeline(options), started)
        return
    if why := nothing_marked(options, inputs):
        _return_unchanged(options, inputs, why, started)
        return
    options = dense_if_everywhere(options, inputs)
    say_unread(options.sampling, "--")
    wanted = edit_of_run(options, inputs)
    if not isinstance(wanted, Cropped):
        _advise(options, inputs)
    blended = options.photo.blend is not None
    photo = inputs.source(blended)
    written: dict[int, tuple[dict[str, object], Image.Image]] = {}
    for one, result, load_seconds in results(options, inputs, wanted):
        edited = photo.with_edit(result.image, result.touched, blended)
        edited.save(one.output_path, outputs.parameters(one, edited.image.size))
        ratio = inputs.ratio
        what = "the picture" if ratio is None else f"{100 * ratio:.1f}% of the picture"
        logger.info("Edited %s in %.1f s.", what, sum(result.seconds.values()))
        seconds = {"load": load_seconds, **result.seconds}
        figures = _figures(one, photo, result.touched, seconds, ratio, started)
        written[one.sampling.seed] = (figures, edited.picture)
    _publish(options, written)


def _advise(options: RunOptions, inputs: Inputs) -> None:
    """Warn where the network sees the whole of a picture that is far larger than its own size."""
    height, width = options.spec.trained_size
    advice = f"--H {height} --W {width} will look better"
    if options.record is None and options.recording is None:
        advice += ", or --padding_mask_crop auto"
    advise_on_size(inputs.source(False).size, options.spec, advice)


def results(
    options: RunOptions, inputs: Inputs, wanted: Edit
) -> Iterator[tuple[RunOptions, EditResult, float]]:
    """The edit for one seed after the other, by networks that are loaded once: the options with
    their one seed and path, the result, and the seconds of loading."""
    load_seconds: list[float] = []

    def load(refiner: bool = False) -> Pipeline:
        began = time.perf_counter()
        pipe = load_pipeline(options, refiner)
        load_seconds.append(time.perf_counter() - began)
        return pipe

    kept = functools.cache(load)
    recorded = None if options.recording is None else edits_recorded(options, inputs, kept)
    for seed in options.photo.seeds or (options.sampling.seed,):
        path = options.output_path
        path = numbered(path, seed) if options.photo.seeds else path
        one = replace(options, sampling=replace(options.sampling, seed=seed), output_path=path)
        if recorded is not None:
            result = recorded(seed)
        elif options.refined:
            # A base model makes room for its refiner, so these are loaded anew for every seed.
            result = refined_edit(load, wanted, one.sampling, progress=True)
        else:
            result = kept().edit(wanted, one.sampling, progress=True)
        yield one, result, sum(load_seconds)
        load_seconds.clear()


def load_pipeline(options: RunOptions, refiner: bool = False, progress: bool = True) -> Pipeline:
    """The networks of a run; UserError if a file is missing or does not fit."""
    what = (options.spec, options.run_type, options.config_path, options.weight_path)
    how = (torch.device(options.device), options.precision, options.backend, options.preset)
    weights, graphs = options.weights(refiner), options.graphs
    pipe = Pipeline.load(*what, *how, refiner, progress=progress, weights=weights, graphs=graphs)
    return pipe.with_recipe(recipe_of(options))


def backend_of(options: RunOptions) -> str | None:
    """Name of the backend that runs the sparse operators; None in a dense run, which has none."""
    if not options.run_type.sparse:
        return None
    return backend_name(options.backend.value, torch.device(options.device))


def _return_unchanged(options: RunOptions, inputs: Inputs, why: str, started: float) -> None:
    """Write the input as the result, byte for byte where the format is the same."""
    photo = inputs.source(options.photo.blend is not None)
    resized = options.height is not None or options.width is not None
    assert photo.path is not None  # it was read from a file
    if photo.path.suffix.lower() == options.output_path.suffix.lower() and not resized:
        logger.warning("The %s: the picture is returned unchanged.", why)
        content = photo.path.read_bytes()
        files.write_atomically(options.output_path, lambda file: file.write(content))
    else:
        logger.warning("The %s: the picture is only written anew.", why)
        photo.save(options.output_path)
    figures = _figures(options, photo, inputs.mask, {}, 0.0, started)
    report.publish(figures, f"{options.output_path}\n", options.json_path)


def _figures(
    options: RunOptions,
    photo: Photo,
    touched: Tensor | None,
    seconds: Mapping[str, float],
    ratio: float | None,
    started: float,
) -> dict[str, object]:
    """The figures of a written result for `--json`: what was asked for and what came of it, seconds
    rounded to the microsecond. Says what changed outside of the edit."""
    change = outputs.changed_outside(options.output_path, photo, touched)
    outputs.say_what_changed(options.output_path, change)
    stages = {"load": 0.0, "encode": 0.0, "sample": 0.0, "decode": 0.0} | seconds
    stages["total"] = time.perf_counter() - started
    return {
        **report.settings(options),
        "output": str(options.output_path),
        "backend": backend_of(options),
        "size": list(photo.size),
        "seconds": {stage: round(value, 6) for stage, value in stages.items()},
        "edit_ratio": ratio,
        **change,
        "device": runtime.describe_device(torch.device(options.device)),
        "versions": runtime.versions(),
    }


def _publish(
    options: RunOptions, written: Mapping[int, tuple[dict[str, object], Image.Image]]
) -> None:
    """Report the results by their seeds; of several, make the contact sheet first."""
    every = [figures for figures, _ in written.values()]
    if not options.photo.seeds:
        report.publish(every[0], f"{every[0]['output']}\n", options.json_path)
        return
    path = numbered(options.output_path, SHEET)
    sheet = outputs.contact_sheet({seed: picture for seed, (_, picture) in written.items()})
    imageio.save_picture(sheet, path)
    lines = "".join(f"{figures['output']}\n" for figures in every)
    figures = {"results": every, "contact_sheet": str(path)}
    report.publish(figures, f"{lines}{path}\n", options.json_path)
