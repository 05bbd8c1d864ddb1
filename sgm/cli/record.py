"""Recordings from the shell: `--record` makes one of a picture, `--recording` edits from it.

A recording is a folder: a safetensors file for every step, and `recording.json`, which is written
last: a folder without it holds no recording, as after an interrupt. A recording fits one kind of
run, with any mask, drawing, prompt and seed; its key says which.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sgm.cli import report
from sgm.cli.inputs import Inputs, request
from sgm.config import load_config
from sgm.errors import UserError
from sgm.inference.choose_store import make_store
from sgm.inference.inpainting import Inpainting
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.presets import RECIPES, Recipe
from sgm.inference.region import check_within, region_in
from sgm.inference.sdedit import SDEdit
from sgm.inference.session import EditSession
from sgm.inference.session_size import session_size, shapes_of
from sgm.inference.stores import DiskStore, Overlay, Store
from sgm.inference.track import PROMPT
from sgm.io import files
from sgm.io.imageio import pad_to_multiple, to_tensor
from sgm.io.sources import weights_key
from sgm.specs import RunOptions, SamplingParams
from sgm.words import RecordingMemory

logger = logging.getLogger(__name__)

MANIFEST = "recording.json"
VERSION = 6


def recipe_of(options: RunOptions) -> Recipe:
    """The recipe of a run: its preset with the options of recordings and of the blend."""
    recipe = RECIPES[options.preset].with_recordings(options.recordings)
    return replace(recipe, blend=options.photo.blend)


def record(
    options: RunOptions, inputs: Inputs, load: Callable[[], Pipeline], started: float
) -> None:
    """Record the unedited picture into the folder of `--record`, for edits in the mask where there
    is one; the prompt is the base prompt. The networks are loaded when the rest has been checked.
    After an error or an interrupt nothing of this recording is left there.

    Raises:
        UserError: the folder cannot be written, the disk has no room, or the mask is empty.
    """
    folder, device = options.record, torch.device(options.device)
    assert folder is not None and inputs.init_photo is not None  # by `check_together`
    image, region = inputs.init_photo.image, _region(inputs)
    picture = pad_to_multiple(to_tensor(image))
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

    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # its files will be replaced
    except OSError as error:
        raise UserError(f"Folder {folder} cannot be written: {error.strerror}.") from error
    with files.unfinished(remove):
        # The disk is looked at before the model is loaded.
        needed = _size_on_disk(options, (picture.shape[1], picture.shape[2]), region)
        make_store(needed, device, RecordingMemory.DISK, folder)
        what = (picture, options.sampling, options.task)
        session = EditSession(load(), *what, make_store=on_disk, progress=True, region=region)
        made = session.report
        manifest = {
            "version": VERSION,
            "key": key_of(options, image),
            "prompt": options.sampling.prompt,
            "negative_prompt": options.sampling.negative_prompt,
            "steps_recorded": made.steps,
            "bytes_per_step": made.step_bytes,
            "seconds": {**made.seconds, "total": time.perf_counter() - started},
            "checksums": stores[0].checksums,
        }
        _write_manifest(folder, manifest)
    size, seconds = made.step_bytes / 1e6, made.seconds["record"]
    logger.info("Recorded %d steps of %.1f MB in %.1f s.", made.steps, size, seconds)
    figures = {**report.settings(options), **manifest}
    report.publish(figures, f"{folder}\n", options.json_path)


def _region(inputs: Inputs) -> Tensor | None:
    """Where edits of a recording may be, bool [H, W], padded as the picture; None for anywhere."""
    if inputs.levels is None:
        return None
    region = inputs.levels > 0
    if not region.any():
        raise UserError(
            "The mask of --record is empty, so it allows no edit; make it white where edits may "
            "be, or leave --mask_path out."
        )
    return pad_to_multiple(region)


def _size_on_disk(options: RunOptions, size: tuple[int, int], region: Tensor | None) -> int:
    """Bytes of a recording of a padded picture of `size` (height, width), by shapes alone."""
    config = options.spec.config_file(options.run_type, preset=options.preset)
    turbo = options.spec.turbo if options.run_type.turbo else None
    shapes = shapes_of(options.config_path / config, options.precision, recipe_of(options), turbo)
    return session_size(shapes, size, options.sampling, options.task, region).total


def _write_manifest(folder: Path, manifest: Mapping[str, object]) -> None:
    text = json.dumps(manifest, indent=2) + "\n"
    files.write_atomically(folder / MANIFEST, lambda file: file.write(text.encode()))


def edits_recorded(
    options: RunOptions, inputs: Inputs, load: Callable[[], Pipeline]
) -> Callable[[int], EditResult]:
    """What makes the edit of a run for a seed, from the recording of `--recording`, which serves
    any seed and any prompt: sparse passes, and a few full ones that measure what another prompt
    changes. That is not added to the recording, which would grow by gigabytes. The networks are
    loaded when the recording has been found to fit.

    Raises:
        UserError: the recording is damaged, or not of this run or this edit.
    """
    folder = options.recording
    assert folder is not None and inputs.init_photo is not None  # by `check_together`
    image = inputs.init_photo.image
    on_disk, base = open_recording(options, image)
    recipe = recipe_of(options)
    wanted = request(options, inputs).whole()
    check_within(region_in(on_disk, recipe), wanted, recipe)
    if options.recording_memory in (RecordingMemory.DEVICE, RecordingMemory.HOST):
        make_store(on_disk.size_in_bytes(), on_disk.device, options.recording_memory)
    pipe = load()
    kept, names = _load_into(on_disk, options.recording_memory), on_disk.names()
    store = Overlay(kept, lambda name: name.startswith(PROMPT))
    picture = pad_to_multiple(to_tensor(image))
    session = EditSession.resume(pipe, picture, base, store, progress=True)

    def edit(seed: int) -> EditResult:
        sampling = replace(options.sampling, seed=seed)
        if not session.is_recorded(options.task, sampling.strength):
            logger.warning("Nothing is recorded yet for this %s; it is recorded now.", options.task)
        result = edit_in(session, wanted, sampling)
        if on_disk.names() != names:  # the edit has recorded its own task or strength
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            _write_manifest(folder, {**manifest, "checksums": on_disk.checksums})
        return result

    return edit


def edit_in(
    session: EditSession, wanted: Inpainting | SDEdit, sampling: SamplingParams
) -> EditResult:
    """Make an edit in a session, by its prompts and its seed."""
    prompt, negative, seed = sampling.prompt, sampling.negative_prompt, sampling.seed
    if isinstance(wanted, Inpainting):
        return session.inpaint(prompt, wanted.mask, negative, seed)
    strength, drawing = wanted.strength, wanted.drawing
    return session.sdedit(prompt, wanted.edited, strength, negative, drawing, seed)


def _load_into(store: DiskStore, memory: RecordingMemory) -> Store:
    """A recording in the place that `--recording_memory` names. An edit reads every step once,
    while the step before runs, which costs no time; so `auto` leaves it on disk. UserError if it
    does not fit there, or is damaged."""
    size = store.size_in_bytes()
    if memory in (RecordingMemory.AUTO, RecordingMemory.DISK):
        logger.info("The recording (%.2f GB) stays on disk; steps are read ahead.", size / 1e9)
        return store
    logger.info("The recording (%.2f GB) is kept in memory (%s).", size / 1e9, memory)
    kept = make_store(size, store.device, memory)
    for name in store.checksums:
        kept.put(name, store.get(name))
    return kept


def open_recording(options: RunOptions, picture: Image.Image) -> tuple[DiskStore, SamplingParams]:
    """The store of `--recording`, and the settings of the run with the prompts and the seed that it
    was made under; UserError where there is no whole one, or its key is not the run's."""
    folder = options.recording
    assert folder is not None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        key, checksums = dict(manifest["key"]), dict(manifest["checksums"])
        prompts = {
            "prompt": str(manifest["prompt"]),
            # Not kept by older versions, whose recordings are refused below.
            "negative_prompt": str(manifest.get("negative_prompt", "")),
        }
        base = replace(options.sampling, seed=int(key.pop("seed")), **prompts)
    except FileNotFoundError as error:
        raise UserError(
            f"There is no recording in {folder}, or it was interrupted; make one with --record."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged; record again.") from error
    for field, wanted in key_of(options, picture).items():
        if field == "seed" or key.get(field) == wanted:
            continue
        if field == "version":
            why = "was made by another version of this program; record again."
        elif field == "picture":
            why = (
                "is of another picture than --init_img; give the recorded one, or record this one."
            )
        else:
            why = (
                f"is for {field} {key.get(field)}, and this run has {wanted}; record again, or run "
                "with what was recorded."
            )
        raise UserError(f"The recording in {folder} {why}")
    store = DiskStore(folder, torch.device(options.device))
    store.checksums = checksums
    return store, base


def key_of(options: RunOptions, picture: Image.Image) -> dict[str, object]:
    """What a recording depends on; values as JSON gives them back."""
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
        **weights_key(options.weights()),
        "configuration": hashlib.sha256(values.encode()).hexdigest()[:16],
        "precision": options.precision.value,
        "preset": options.preset.value,
    }
