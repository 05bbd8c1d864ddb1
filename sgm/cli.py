"""The command `run.py`: options to a checked run, pictures in, the edited picture out.

Everything heavy (torch, Pillow, the networks) is imported where it is needed, after the checks
that need none of it.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sgm import checks, files
from sgm.errors import UserError
from sgm.options import build_parser, read
from sgm.specs import Backend, Preset, RunOptions, SamplingParams, Task

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = ["build_parser", "main", "parse"]

logger = logging.getLogger(__name__)

# What is accepted and described but not there yet: a name, what to do instead, and the test.
# Refused here and nowhere else; a row goes when the thing works.
NOT_YET: list[tuple[str, str, Callable[[argparse.Namespace], bool]]] = [
    ("--run_type {run_type}", "use original or sige", lambda o: o.run_type.turbo),
    ("--refined", "leave it out", lambda o: o.refined),
    ("--mode {mode}", "use --mode generate", lambda o: o.mode.profiles),
    ("--preset fast", "use --preset published", lambda o: o.preset is Preset.FAST),
    (
        "--backend {backend}",
        "use --backend torch",
        lambda o: o.backend in (Backend.TRITON, Backend.SIGE),
    ),
]


def parse(argv: Sequence[str]) -> RunOptions:
    """Turn a command line into checked options, before any picture or weight is read.

    Order: each option alone, options together, what is not implemented, files, the device (the
    only check that imports torch).

    Raises:
        UserError: one sentence on the first thing that is wrong.
        SystemExit: code 0 after `--help`.
    """
    values = read(argv)
    checks.check_together(values)
    for name, advice, applies in NOT_YET:
        if applies(values):
            raise UserError(f"{name.format(**vars(values))} is not implemented yet; {advice}.")
    paths = checks.check_files(values)
    device, precision = checks.check_device(values)
    return RunOptions(
        task=values.task,
        run_type=values.run_type,
        mode=values.mode,
        model=values.model,
        preset=values.preset,
        precision=precision,
        backend=values.backend,
        device=device,
        sampling=SamplingParams(
            prompt=values.prompt,
            negative_prompt=values.negative_prompt,
            seed=values.seed,
            steps=values.steps,
            scale=values.scale,
            strength=values.strength,
        ),
        height=values.H,
        width=values.W,
        refined=values.refined,
        json_path=values.json,
        random_weights=values.random_weights,
        macs_only=values.macs_only,
        **paths,
    )


@dataclass(frozen=True)
class Inputs:
    """The pictures of a run, all of one size.

    Attributes:
        init: the unedited picture, RGB; None for sdedit without one.
        edited: the picture drawn on, RGB; None for inpainting.
        mask: bool [H, W], True where the edit is: the given mask, or where the two pictures
            differ; None where there is no unedited picture to compare with.
    """

    init: "Image.Image | None"
    edited: "Image.Image | None"
    mask: "Tensor | None"

    @property
    def source(self) -> "Image.Image":
        """The picture that the edit is made to."""
        picture = self.init if self.edited is None else self.edited
        assert picture is not None  # by `check_together`
        return picture


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: words after the program's name; None takes those of the process.

    Returns:
        The exit code, 0.

    Raises:
        UserError: bad options, files or pictures; one sentence.
    """
    options = parse(sys.argv[1:] if argv is None else argv)
    started = time.perf_counter()
    inputs = read_inputs(options)
    mask = inputs.mask
    # A dense run does not look at where the pictures differ, so there only a given mask counts.
    masked = mask is not None and (options.run_type.sparse or options.task is Task.INPAINTING)
    if masked and not mask.any():
        what = "mask is empty" if options.task is Task.INPAINTING else "two pictures are the same"
        logger.warning("The %s: the picture is returned unchanged.", what)
        return _finish(options, inputs, inputs.source, {}, 0.0, started)
    if masked and options.run_type.sparse and mask.all():
        dense = options.run_type.dense
        logger.warning("The edit covers the whole picture: running %s, which is dense.", dense)
        options = replace(options, run_type=dense)
    _advise_on_size(options, inputs)
    picture, seconds, ratio = edit(options, inputs)
    return _finish(options, inputs, picture, seconds, ratio, started)


def _advise_on_size(options: RunOptions, inputs: Inputs) -> None:
    """Say so when a picture is far larger than what the model was trained on."""
    size, (height, width) = inputs.source.size, options.spec.trained_size
    if size[0] * size[1] >= 2 * height * width:
        logger.warning(
            "The %s model was trained at %dx%d (width x height) and the picture is %dx%d; "
            "--H %d --W %d will look better.",
            *(options.model, width, height, *size, height, width),
        )


def read_inputs(options: RunOptions) -> Inputs:
    """Read pictures and mask of a run and bring them to one size.

    Raises:
        UserError: a file that cannot be used, or two pictures of different sizes.
    """
    from sgm import imageio, maskio

    loaded = {}
    for name, path in (("init", options.init_img), ("edited", options.edited_img)):
        used = path is not None and not (name == "edited" and options.task is Task.INPAINTING)
        if used:
            picture = imageio.load_picture(path)
            size = (options.height or picture.height, options.width or picture.width)
            loaded[name] = imageio.resize_picture(picture, size, f"Picture {path}")
    init, edited = loaded.get("init"), loaded.get("edited")
    if options.task is Task.INPAINTING:
        assert init is not None and options.mask_path is not None  # by `check_together`
        return Inputs(init, None, maskio.load_mask(options.mask_path, (init.height, init.width)))
    if init is None:
        return Inputs(None, edited, None)
    if init.size != edited.size:
        raise UserError(
            f"The original is {init.width}x{init.height} and the edited picture "
            f"{edited.width}x{edited.height} (width x height), but they must be the same picture; "
            "give --H and --W to resize both."
        )
    from sgm.sparse.masks import difference_mask

    mask = difference_mask(imageio.to_tensor(init), imageio.to_tensor(edited))
    return Inputs(init, edited, mask.reshape(init.height, init.width))


def edit(
    options: RunOptions, inputs: Inputs
) -> "tuple[Image.Image, dict[str, float], float | None]":
    """Load the networks and make the edit.

    Returns:
        The edited picture at the size of the inputs, seconds by stage (`load`, `encode`,
        `sample`, `decode`), and the share of edited pixels (None where unknown).

    Raises:
        UserError: the networks cannot be loaded, memory runs out, or the result is no picture.
    """
    import torch

    from sgm import imageio
    from sgm.inference.pipeline import Pipeline

    def tensor(picture: "Image.Image") -> "Tensor":
        return imageio.pad_to_multiple(imageio.to_tensor(picture))

    started = time.perf_counter()
    device, sampling = torch.device(options.device), options.sampling
    common = {"seed": sampling.seed, "steps": sampling.steps, "scale": sampling.scale}
    prompts = (sampling.prompt, sampling.negative_prompt)
    try:
        pipe = Pipeline.load(
            options.spec,
            options.run_type,
            options.config_path,
            options.weight_path,
            device,
            options.precision,
            options.backend,
        )
        load = time.perf_counter() - started
        if options.task is Task.INPAINTING:
            mask = imageio.pad_to_multiple(inputs.mask)
            result = pipe.inpaint(tensor(inputs.init), mask, *prompts, **common, progress=True)
        else:
            init = None if inputs.init is None else tensor(inputs.init)
            strength = sampling.strength
            result = pipe.sdedit(
                init, tensor(inputs.edited), *prompts, **common, strength=strength, progress=True
            )
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"The memory of {device} is not enough for this picture; use a smaller --H and --W, "
            "--precision bf16, or --device cpu."
        ) from error
    size = (inputs.source.height, inputs.source.width)
    if not result.image.isfinite().all():
        raise UserError(
            f"The networks returned values that are no numbers at {options.precision}; "
            "use --precision fp32."
        )
    picture = imageio.to_picture(imageio.crop_back(result.image, size))
    return picture, {"load": load, **result.seconds}, result.edit_ratio


def _finish(
    options: RunOptions,
    inputs: Inputs,
    picture: "Image.Image",
    seconds: dict[str, float],
    ratio: float | None,
    started: float,
) -> int:
    """Save the picture, report its path or the figures; the exit code."""
    from sgm import imageio

    imageio.save_picture(picture, options.output_path)
    seconds = {"load": 0.0, "encode": 0.0, "sample": 0.0, "decode": 0.0} | seconds
    seconds["total"] = time.perf_counter() - started
    if options.json_path is not None:
        text = json.dumps(_figures(options, inputs, picture, seconds, ratio), indent=2) + "\n"
        if options.json_path == "-":
            _emit(text)
            return 0
        files.write_atomically(Path(options.json_path), lambda file: file.write(text.encode()))
    _emit(f"{options.output_path}\n")
    return 0


def _figures(
    options: RunOptions,
    inputs: Inputs,
    picture: "Image.Image",
    seconds: dict[str, float],
    ratio: float | None,
) -> dict[str, object]:
    """The figures of a run for `--json`; seconds rounded to the microsecond."""
    import torch

    from sgm import imageio, runtime

    changed = None
    if inputs.mask is not None:
        before, after = imageio.to_bytes(inputs.source), imageio.to_bytes(picture)
        changed = int(((before != after) & ~inputs.mask).sum())
    return {
        "output": str(options.output_path),
        "task": options.task.value,
        "run_type": options.run_type.value,
        "model": options.model,
        "preset": options.preset.value,
        "precision": options.precision.value,
        "backend": options.backend.value,
        "seed": options.sampling.seed,
        "size": [picture.height, picture.width],
        "seconds": {stage: round(value, 6) for stage, value in seconds.items()},
        "edit_ratio": ratio,
        "changed_outside": changed,
        "device": runtime.describe_device(torch.device(options.device)),
        "versions": runtime.versions(),
    }


def _emit(text: str) -> None:
    """Write a result to stdout: the only place of this package that does."""
    sys.stdout.write(text)
    sys.stdout.flush()
