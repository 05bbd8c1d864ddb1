"""Recordings from the shell: `--record` makes one of a picture, `--recording` edits from it.

A recording is a folder: a safetensors file for every step, and `recording.json`, which is written
last: a folder without it holds no recording, as after an interrupt. A recording fits one kind of
run, with any mask, drawing, prompt and seed; its key says which.
"""

import hashlib
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sgm.cli import report
from sgm.cli.inputs import Inputs
from sgm.cli.requests import edit_of
from sgm.errors import UserError
from sgm.io import files
from sgm.specs import RunOptions
from sgm.weights import weights_of
from sgm.words import RecordingMemory, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from PIL import Image
    from torch import Tensor

    from sgm.inference.choose_store import MakeStore
    from sgm.inference.pipeline import EditResult, Pipeline
    from sgm.inference.presets import Recipe
    from sgm.inference.session import EditSession, SessionReport
    from sgm.inference.stores import DiskStore, Store

logger = logging.getLogger(__name__)

MANIFEST = "recording.json"
VERSION = 5


def record(
    options: RunOptions, inputs: Inputs, load: "Callable[[], Pipeline]", started: float
) -> None:
    """Record the unedited picture into the folder of `--record`, for edits in the mask where there
    is one; the prompt is the base prompt.

    Args:
        load: the networks; called when the rest has been checked.

    Raises:
        UserError: the folder cannot be written, or the mask is empty. Nothing of this recording is
            left there then, nor after any other error or an interrupt.
    """
    import torch

    from sgm.inference.choose_store import make_store
    from sgm.inference.stores import DiskStore

    folder, device = options.record, torch.device(options.device)
    assert folder is not None and inputs.init is not None  # by `check_together`
    stores: list[DiskStore] = []

    def on_disk(size: int) -> DiskStore:
        logger.info("The recording will take %.2f GB in %s.", size / 1e9, folder)
        store = make_store(size, device, RecordingMemory.DISK, folder)
        assert isinstance(store, DiskStore)
        stores.append(store)
        return store

    def remove() -> None:
        (folder / MANIFEST).unlink(missing_ok=True)
        for store in stores:
            store.remove()
        if new:
            folder.rmdir()

    new, region = not folder.exists(), _region(inputs)
    _prepare(folder)
    with files.unfinished(remove):
        made = _recorded(options, inputs.init, region, load, on_disk)
        manifest = _manifest(options, inputs.init, made, stores[0], started)
        text = json.dumps(manifest, indent=2) + "\n"
        files.write_atomically(folder / MANIFEST, lambda file: file.write(text.encode()))
    logger.info(
        "Recorded %d steps of %.1f MB in %.1f s.",
        made.steps,
        made.step_bytes / 1e6,
        made.seconds["record"],
    )
    figures = {**report.settings(options), **manifest}
    report.publish(figures, f"{folder}\n", options.json_path)


def _recorded(
    options: RunOptions,
    picture: "Image.Image",
    region: "Tensor | None",
    load: "Callable[[], Pipeline]",
    make_store: "MakeStore",
) -> "SessionReport":
    """Record a picture if the disk has room; returns sizes and seconds."""
    from sgm.inference.session import EditSession
    from sgm.io import imageio

    padded = imageio.pad_to_multiple(imageio.to_tensor(picture))
    _check_room(options, (padded.shape[1], padded.shape[2]), region)
    what = (padded, options.sampling, options.task)
    session = EditSession(load(), *what, make_store=make_store, progress=True, region=region)
    return session.report


def _manifest(
    options: RunOptions,
    picture: "Image.Image",
    made: "SessionReport",
    store: "DiskStore",
    started: float,
) -> dict[str, object]:
    """What `recording.json` holds: the key, what was recorded, and the checksums of its files."""
    return {
        "version": VERSION,
        "key": key_of(options, picture),
        "prompt": options.sampling.prompt,
        "steps_recorded": made.steps,
        "bytes_per_step": made.step_bytes,
        "seconds": {**made.seconds, "total": time.perf_counter() - started},
        "checksums": store.checksums,
    }


def _region(inputs: Inputs) -> "Tensor | None":
    """Where edits of a recording may be, bool [H, W], padded as the picture; None for anywhere."""
    from sgm.io import imageio

    if inputs.levels is None:
        return None
    region = inputs.levels > 0
    if not region.any():
        raise UserError(
            "The mask of --record is empty, so it allows no edit; make it white where edits may "
            "be, or leave --mask_path out."
        )
    return imageio.pad_to_multiple(region)


def _check_room(options: RunOptions, size: tuple[int, int], region: "Tensor | None") -> None:
    """UserError if the disk has no room for a recording; the model is not loaded for this.

    Args:
        size: (height, width) of the padded picture.
    """
    import torch

    from sgm.inference.choose_store import make_store
    from sgm.inference.session_size import session_size, shapes_of

    config = options.spec.config_file(options.run_type, preset=options.preset)
    turbo = options.spec.turbo if options.run_type.turbo else None
    shapes = shapes_of(options.config_path / config, options.precision, recipe_of(options), turbo)
    needed = session_size(shapes, size, options.sampling, options.task, region).total
    make_store(needed, torch.device(options.device), RecordingMemory.DISK, options.record)


def recipe_of(options: RunOptions) -> "Recipe":
    """The recipe of a run: its preset with the options of recordings and of the blend."""
    from sgm.inference.presets import RECIPES

    recipe = RECIPES[options.preset].with_recordings(options.recordings)
    return replace(recipe, blend=options.photo.blend)


def _prepare(folder: Path) -> None:
    """Make the folder. If it holds a recording, delete its manifest: its files will be replaced."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"Folder {folder} cannot be written: {error.strerror}.") from error


def edits_recorded(
    options: RunOptions, inputs: Inputs, load: "Callable[[], Pipeline]"
) -> "Callable[[int], EditResult]":
    """What makes the edit of a run for a seed, by sparse passes over the recording of
    `--recording`, which serves any seed: its own noise is around the edit, that of the seed inside.
    What the prompt changes is not added to the recording, which would grow by gigabytes with every
    prompt.

    Args:
        load: the networks; called when the recording has been found to fit.

    Raises:
        UserError: the recording is damaged, or not of this run or this edit.
    """
    from sgm.inference.choose_store import make_store
    from sgm.inference.region import check_within, region_in
    from sgm.inference.session import EditSession
    from sgm.inference.stores import Overlay
    from sgm.inference.track import PROMPT
    from sgm.io import imageio

    assert inputs.init is not None  # by `check_together`
    on_disk, seed = open_recording(options, inputs.init)
    recipe = recipe_of(options)
    check_within(region_in(on_disk, recipe), edit_of(options, inputs), recipe)
    if options.recording_memory in (RecordingMemory.DEVICE, RecordingMemory.HOST):
        make_store(on_disk.size_in_bytes(), on_disk.device, options.recording_memory)
    pipe = load()
    kept, names = _load_into(on_disk, options.recording_memory), on_disk.names()
    store = Overlay(kept, lambda name: name.startswith(PROMPT))
    picture = imageio.pad_to_multiple(imageio.to_tensor(inputs.init))
    params = replace(options.sampling, seed=seed)
    session = EditSession.resume(pipe, picture, params, store, progress=True)

    def edit(seed: int) -> "EditResult":
        result = _edit(session, options, inputs, seed)
        if on_disk.names() != names:
            _add_to_manifest(options.recording, on_disk)
        return result

    return edit


def _edit(session: "EditSession", options: RunOptions, inputs: Inputs, seed: int) -> "EditResult":
    """The edit of a run from a session, for a seed. If its task or strength is not recorded yet, it
    is recorded first, under the edit's prompt."""
    from sgm.io import imageio

    sampling = options.sampling
    if not session.is_recorded(options.task, sampling.strength):
        logger.warning("Nothing is recorded yet for this %s; it is recorded now.", options.task)
    if options.task is Task.INPAINTING:
        mask = imageio.pad_to_multiple(inputs.levels)
        return session.inpaint(sampling.prompt, mask, sampling.negative_prompt, seed)
    edited = imageio.pad_to_multiple(imageio.to_tensor(inputs.edited))
    drawing = imageio.pad_to_multiple(inputs.mask)
    words = (sampling.strength, sampling.negative_prompt)
    return session.sdedit(sampling.prompt, edited, *words, drawing, seed)


def _add_to_manifest(folder: Path | None, store: "DiskStore") -> None:
    """Write the files that an edit has added into the recording's manifest."""
    assert folder is not None  # it was opened
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["checksums"] = store.checksums
    text = json.dumps(manifest, indent=2) + "\n"
    files.write_atomically(folder / MANIFEST, lambda file: file.write(text.encode()))


def _load_into(store: "DiskStore", memory: RecordingMemory) -> "Store":
    """A recording in the place that `--recording_memory` names. An edit reads every step once,
    while the step before runs, which costs no time; so `auto` leaves it on disk.

    Raises:
        UserError: it does not fit there, or is damaged.
    """
    from sgm.inference.choose_store import make_store

    size = store.size_in_bytes()
    if memory in (RecordingMemory.AUTO, RecordingMemory.DISK):
        logger.info("The recording (%.2f GB) stays on disk; steps are read ahead.", size / 1e9)
        return store
    logger.info("The recording (%.2f GB) is kept in memory (%s).", size / 1e9, memory)
    kept = make_store(size, store.device, memory)
    for name in store.checksums:
        kept.put(name, store.get(name))
    return kept


def open_recording(options: RunOptions, picture: "Image.Image") -> "tuple[DiskStore, int]":
    """The store of `--recording` and the seed that it was made under, after its key has been
    compared with the run's.

    Raises:
        UserError: there is no whole recording, or a field of its key differs.
    """
    import torch

    from sgm.inference.stores import DiskStore

    folder = options.recording
    assert folder is not None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        key, checksums = dict(manifest["key"]), dict(manifest["checksums"])
        seed = int(key.pop("seed"))
    except FileNotFoundError as error:
        raise UserError(
            f"There is no recording in {folder}, or it was interrupted; make one with --record."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged; record again.") from error
    wanted = key_of(options, picture)
    del wanted["seed"]
    _compare(folder, key, wanted)
    store = DiskStore(folder, torch.device(options.device))
    store.checksums = checksums
    return store, seed


def _compare(
    folder: Path, recorded: "Mapping[str, object]", wanted: "Mapping[str, object]"
) -> None:
    """UserError naming the first field in which a recording's key and a run's differ."""
    for field, value in wanted.items():
        if recorded.get(field) == value:
            continue
        if field == "version":
            raise UserError(
                f"The recording in {folder} was made by another version of this program; record "
                "again."
            )
        if field == "picture":
            raise UserError(
                f"The recording in {folder} is of another picture than --init_img; give the "
                "recorded one, or record this one."
            )
        raise UserError(
            f"The recording in {folder} is for {field} {recorded.get(field)}, and this run has "
            f"{value}; record again, or run with what was recorded."
        )


def key_of(options: RunOptions, picture: "Image.Image") -> dict[str, object]:
    """What a recording depends on; values as JSON gives them back."""
    from sgm.config import load_config
    from sgm.io.sources import weights_key

    config = options.spec.config_file(options.run_type, preset=options.preset)
    values = json.dumps(load_config(options.config_path / config), sort_keys=True)
    return {
        "version": VERSION,
        "size": f"{picture.width}x{picture.height} (width x height)",
        "picture": hashlib.sha256(picture.tobytes()).hexdigest(),
        "seed": options.sampling.seed,
        "steps": options.steps,
        "sampler": options.sampling.sampler.value,
        "spacing": options.sampling.spacing.value,
        "guidance": options.sampling.scale > 1,  # otherwise half the batch
        "run_type": options.run_type.value,
        "model": options.model,
        **weights_key(weights_of(options)),
        "configuration": hashlib.sha256(values.encode()).hexdigest()[:16],
        "precision": options.precision.value,
        "preset": options.preset.value,
    }
