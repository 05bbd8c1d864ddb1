"""Checks of a parsed command line: options together, the files they name, the machine.

Only `check_device` imports torch; it comes last.
"""

import argparse
import importlib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

from sgm.errors import UserError
from sgm.io import files
from sgm.specs import LCM_STEPS, MODELS, TURBO_STEPS, folder_with
from sgm.words import Backend, Precision, Preset, RecordingMemory, Sampler, Spacing, Task

logger = logging.getLogger(__name__)

# Packages that a backend needs installed, and what to do without.
BACKEND_PACKAGES = {
    Backend.TRITON: ("triton", "use --backend auto"),
    Backend.SIGE: ("sige", "run `python -m tools.install_sige`, or use --backend auto"),
}
SHEET = "sheet"  # what the contact sheet has in its name in place of a seed


def check_together(values: argparse.Namespace) -> None:
    """Raise UserError for options that lack another one or contradict each other."""
    if values.graphs and not values.run_type.sparse:
        raise UserError("--graphs is for sparse runs; add --run_type sige, or leave it out.")
    if values.graphs and values.backend is Backend.SIGE:
        raise UserError("--graphs and --backend sige exclude each other; leave one out.")
    _check_recordings(values)
    _check_photos(values)
    if values.record is not None:
        if values.init_img is None:
            raise UserError("--record needs --init_img; name the picture to record.")
    elif values.task is Task.INPAINTING:
        if values.init_img is None:
            raise UserError("Inpainting needs --init_img; name the picture to repaint.")
        if values.mask_path is None:
            raise UserError("Inpainting needs --mask_path; name a mask, white where to repaint.")
        if values.edited_img is not None:
            logger.warning("--edited_img is not used by inpainting.")
    else:
        if values.edited_img is None:
            raise UserError("Sdedit needs --edited_img; name the picture that was drawn on.")
        if values.run_type.sparse and values.init_img is None:
            raise UserError(
                f"Sdedit with --run_type {values.run_type} needs --init_img, the picture before "
                "it was drawn on; name it or use a dense run type."
            )
    if values.run_type.turbo:
        _check_turbo(values)
    elif values.negative_prompt and values.scale <= 1:
        logger.warning("--negative_prompt has no effect with --scale up to 1, as without guidance.")
    own = values.sampler is Sampler.LCM and values.spacing is Spacing.PUBLISHED
    if own and not values.run_type.turbo and (values.steps or 0) > LCM_STEPS:
        raise UserError(
            f"--steps {values.steps} came, but --sampler lcm knows {LCM_STEPS} noise levels; give "
            f"1 to {LCM_STEPS}, or add --spacing trailing."
        )
    if values.refiner_checkpoint is not None and not values.refined:
        raise UserError("--refiner_checkpoint is for the refiner; add --refined.")
    for flag in ("random_weights", "macs_only"):
        if getattr(values, flag) and not values.mode.profiles:
            raise UserError(f"--{flag} is for the profile modes; choose one with --mode.")
    package, advice = BACKEND_PACKAGES.get(values.backend, (None, ""))
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"--backend {values.backend} needs the package {package}, which is not installed; "
            f"{advice}."
        )
    if values.backend is Backend.SIGE and (
        values.preset is Preset.FAST or values.precision not in (None, Precision.FP32)
    ):
        raise UserError(
            "--backend sige runs --preset published at fp32 only; change those or the backend."
        )


def _check_recordings(values: argparse.Namespace) -> None:
    """UserError for options of preset fast with another preset, or that exclude each other."""
    making = ("refresh", "recorded_steps", "recording_precision")
    flags = (*making, "record", "recording")
    given = [flag for flag in flags if getattr(values, flag) is not None]
    if given and (values.preset is not Preset.FAST or not values.run_type.sparse):
        advice = "add --preset fast and --run_type sige"
        raise UserError(f"--{given[0]} is for sparse runs of preset fast; {advice}.")
    if given and values.mode.profiles:
        raise UserError(f"--{given[0]} makes or edits pictures; leave --mode out.")
    if "recording" in given and len(given) > 1:
        raise UserError(f"--{given[0]} and --recording exclude each other; leave one out.")
    if {"refresh", "recorded_steps"} <= set(given):
        raise UserError("--refresh and --recorded_steps exclude each other; leave one out.")
    for flag in given:
        if values.refined and flag not in making:
            why = "works with the base model alone, and --refined adds the refiner"
            raise UserError(f"--{flag} {why}; leave one out.")
    if values.recording is None and values.recording_memory is not RecordingMemory.AUTO:
        raise UserError("--recording_memory says where --recording is kept; add --recording.")
    if values.recording is None and values.prompt_steps is not None:
        raise UserError("--prompt_steps is about edits from a recording; add --recording.")
    if values.prompt_steps == 1:
        raise UserError("--prompt_steps is 1; give 0 for none, or at least 2.")


def _check_photos(values: argparse.Namespace) -> None:
    """UserError for flags about pictures, masks and seeds that others exclude."""
    if values.mode.profiles and values.seeds:
        raise UserError("--seeds makes pictures; leave it out of the profile modes.")
    if values.record is not None and values.seeds:
        raise UserError("--record makes one recording, and --seeds many results; leave one out.")
    for flag in ("record", "recording"):
        if getattr(values, flag) is not None and isinstance(values.padding_mask_crop, int):
            why = f"shows the network another picture than --{flag} holds"
            raise UserError(f"--padding_mask_crop {why}; leave one out.")
    if values.mask_path is None and values.invert_mask:
        raise UserError("--invert_mask needs --mask_path; name a mask.")


def _check_turbo(values: argparse.Namespace) -> None:
    """UserError for more steps than a turbo model has; warns of options without effect on it."""
    if values.steps is not None and values.steps > TURBO_STEPS:
        raise UserError(
            f"--steps {values.steps} came, but --run_type {values.run_type} knows {TURBO_STEPS} "
            f"noise levels; give 1 to {TURBO_STEPS}, or leave --steps out."
        )
    if values.spacing is not Spacing.PUBLISHED:
        raise UserError(
            f"--spacing is for a whole schedule, and --run_type {values.run_type} has noise levels "
            f"of its own; use --run_type {'sige' if values.run_type.sparse else 'original'}."
        )
    if values.negative_prompt and not values.refined:
        # Both halves of the guidance get the prompt (published), so the scale cancels as well.
        logger.warning("--negative_prompt and --scale have no effect with a turbo run type.")


def check_files(values: argparse.Namespace) -> dict[str, Path]:
    """Check every file of a run; where it reads and writes, by the names of `RunOptions`."""
    inputs = [path for path in (values.init_img, values.edited_img, values.mask_path) if path]
    for path in inputs:
        files.check_input_file(path)
    output = _output_path(values, inputs)
    if values.json not in (None, "-"):
        files.check_writable(Path(values.json))
        if Path(values.json).absolute() == output.absolute():
            raise UserError(f"--json and the picture are both {output}; name two files.")
    spec = MODELS[values.model]
    configs = folder_with(spec.configs, values.config_path)
    weights = folder_with(spec.weights, values.weight_path)
    # A sparse run falls back to the dense network for a full mask, so both must be there.
    for run_type in (values.run_type, values.run_type.dense):
        for refiner in (False, True) if values.refined else (False,):
            path = configs / spec.config_file(run_type, refiner, values.preset)
            if not path.is_file():
                raise UserError(f"Config file {path} does not exist; check --config_path.")
    _check_weights(values, weights)
    return {"output_path": output, "config_path": configs, "weight_path": weights}


def numbered(path: Path, seed: int | str) -> Path:
    """The name of one of several results."""
    return path.with_name(f"{path.stem}-{seed}{path.suffix}")


def _output_path(values: argparse.Namespace, inputs: Sequence[Path]) -> Path:
    """The picture to write, or the name that those of several seeds are made of.

    Without `--overwrite`, an earlier result under the default name stays: the new one gets a
    number. UserError if it would take the place of an input, or cannot be written.
    """

    def targets(path: Path) -> list[Path]:
        return [numbered(path, name) for name in (*values.seeds, SHEET)] if values.seeds else [path]

    default = f"{values.task}-{values.run_type}" + ("" if values.seeds else f"-{values.seed}")
    path = Path(values.output_path or f"outputs/{default}.png")
    if values.output_path is None and not values.overwrite:
        count = 1
        while any(target.exists() for target in targets(path)):
            count += 1
            path = Path(f"outputs/{default}-{count}.png")
    for target in targets(path):
        files.check_output_path(target)
        if values.overwrite or values.mode.profiles or not target.exists():
            continue
        if any(target.samefile(given) for given in inputs):
            raise UserError(
                f"--output_path {target} is an input of this run and would be replaced; name "
                "another, or add --overwrite."
            )
    return path


def _check_weights(values: argparse.Namespace, folder: Path) -> None:
    """UserError unless the files of the models that a run loads can be opened."""
    given = (values.checkpoint, values.refiner_checkpoint, values.vae)
    loras = [Path(path) for path, _ in values.lora]
    for path in [path for path in given if path and not path.is_dir()] + loras:
        files.check_weights_file(path)
    spec = MODELS[values.model]
    roles = {"checkpoint": spec.weight_role(values.run_type)}
    if values.refined:
        roles["refiner_checkpoint"] = "refiner"
    for name, role in roles.items():
        if getattr(values, name) is None and not (values.random_weights or values.macs_only):
            for path in spec.own(folder, role).files:
                files.check_own_weights(path, spec, role)


def check_device(values: argparse.Namespace) -> tuple[str, Precision]:
    """Device name and precision of a run.

    Raises:
        UserError: the machine lacks one of them, or the backend does not run on the device.
    """
    from sgm import runtime

    device = runtime.pick_device(values.device)
    if values.backend is Backend.TRITON and device.type != "cuda":
        raise UserError(
            f"--backend triton needs a CUDA device and the device is {device}; use --backend auto."
        )
    if values.backend is Backend.SIGE:
        try:
            importlib.import_module(f"sige.{device.type}")  # it needs torch imported before
        except ImportError as error:
            raise UserError(
                f"--backend sige finds no kernels of the package sige for {device.type} ({error}); "
                "build it anew with `python -m tools.install_sige`, or use --backend auto."
            ) from error
    precision = values.precision or runtime.best_precision(values.preset, device)
    runtime.check_precision(precision, device)
    return str(device), precision
