"""The command `run.py`: options to a checked run, pictures in, the edited picture or figures out.

Everything heavy (torch, Pillow, the networks) is imported after the checks that need none of it.
"""

import argparse
import runpy
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from sgm.cli import checks
from sgm.cli.options import SYNTAXES, read
from sgm.cli.program import memory_scope, start
from sgm.specs import (
    AUTO,
    WHOLE,
    Blend,
    Lora,
    PhotoOptions,
    RecordingSettings,
    RunOptions,
    SamplingParams,
)
from sgm.words import Precision, Preset, RecordingMemory

# Programs of their own, by their word after `sdxl-sige`.
PROGRAMS = {"app": "sgm.app", "batch": "sgm.batch"}


def parse(argv: Sequence[str]) -> RunOptions:
    """Turn a command line into checked options, before any picture or weight is read. UserError:
    one sentence on the first thing that is wrong; SystemExit after `--help`."""
    return checked(read(argv))


def checked(values: argparse.Namespace) -> RunOptions:
    """The options of a run from those that were parsed. Order of the checks: options together,
    files, the device (the only one that imports torch)."""
    checks.check_together(values)
    paths = checks.check_files(values)
    device, precision = checks.check_device(values)
    syntax = values.prompt_syntax or SYNTAXES[values.preset is Preset.FAST]
    weighted = syntax == "weighted"
    found = _named(RunOptions, values) | paths
    found |= {
        "device": device,
        "precision": precision,
        "sampling": SamplingParams(**_named(SamplingParams, values), weighted=weighted),
        "height": values.H,
        "width": values.W,
        "json_path": values.json,
        "recordings": RecordingSettings(
            values.refresh, values.recorded_steps, values.recording_precision, values.prompt_steps
        ),
        "loras": tuple(Lora(Path(path), weight) for path, weight in values.lora),
        "photo": _photo_options(values),
    }
    return RunOptions(**found)


def _named(kind: type, values: argparse.Namespace) -> dict[str, Any]:
    """What was parsed for the fields of a dataclass that have the name of their flag."""
    return {f.name: getattr(values, f.name) for f in fields(kind) if f.name in values}


def _photo_options(values: argparse.Namespace) -> PhotoOptions:
    """What the flags about pictures, masks and seeds mean for a run."""
    fast, crop = values.preset is Preset.FAST, values.padding_mask_crop
    if crop is None and fast:
        crop = AUTO
    recorded = values.recording is not None or values.record is not None  # of the whole picture
    if crop == WHOLE or recorded:
        crop = None
    blended = fast or values.mask_feather is not None or values.match_border or crop is not None
    match = fast if values.match_border is None else values.match_border
    found = _named(PhotoOptions, values) | {
        "blend": Blend(values.mask_feather, match) if blended else None,
        "padding_mask_crop": crop,
        "seeds": values.seeds or (),
        "metadata": not values.no_metadata,
    }
    return PhotoOptions(**found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, by default that of the process (words after the program's name), and
    return the exit code, 0.

    Raises:
        UserError: bad options, files or pictures, or too little memory; one sentence.
    """
    options = parse(sys.argv[1:] if argv is None else argv)
    started = time.perf_counter()
    # Imported here, so that `--help` and a refusal do not wait for torch.
    from sgm.cli.generate import generate
    from sgm.cli.inputs import read_inputs
    from sgm.cli.profile import profile

    with memory_scope(options.device, f"use {less_memory(options)}"):
        inputs = read_inputs(options)
        if options.mode.profiles:
            profile(options, inputs)
        else:
            generate(options, inputs, started)
    return 0


def run() -> NoReturn:
    """The installed command, `sdxl-sige`: `run.py` by another name, or the program that its first
    word names."""
    if len(sys.argv) > 1 and sys.argv[1] in PROGRAMS:
        module = PROGRAMS[sys.argv.pop(1)]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    start("sdxl-sige", main)


def less_memory(options: RunOptions) -> str:
    """The flags with which a run takes less memory, of those that it does not have yet."""
    flags = ["a smaller --H and --W"]
    if options.precision in (Precision.FP32, Precision.TF32):
        flags.append("--precision bf16")
    if options.recording_memory in (RecordingMemory.DEVICE, RecordingMemory.HOST):
        flags.append("--recording_memory disk")
    if options.mode.profiles and not options.macs_only:
        flags.append("--macs_only")
    elif options.run_type.sparse and options.record is None and options.recording is None:
        flags.append(f"--run_type {options.run_type.dense}")  # it keeps no recording
    if not options.device.startswith("cpu"):
        flags.append("--device cpu")
    return " or ".join(flags)
