"""The flags of `run.py`: names, published defaults, help, and the checks of each value alone.

Nothing here imports torch, so that `--help` and a wrong option answer at once. What an option
means together with others is checked in `sgm.cli.checks`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sgm.cli.option_types import (
    Parser,
    add,
    add_adaptions,
    add_folders,
    add_names,
    add_sampler,
    braces,
    number,
    one_of,
    only,
    parsed,
    truth,
    whole,
)
from sgm.errors import UserError
from sgm.specs import (
    AUTO,
    DEFAULT_PROMPT_STEPS,
    DEFAULT_RECORDED,
    DEFAULT_RECORDING_PRECISION,
    DEFAULT_SCALE,
    DEFAULT_STEPS,
    LATENT_CHANNELS,
    LATENT_FACTOR,
    MAX_SCALE,
    MAX_SEED,
    MAX_STEPS,
    MODELS,
    TURBO_STEPS,
    WHOLE,
)
from sgm.words import (
    Backend,
    Mode,
    Precision,
    Preset,
    RecordingMemory,
    RecordingPrecision,
    RunType,
    Task,
)

MAX_SIDE = 8192  # pixels
MAX_RING, MAX_MARGIN, MAX_SEEDS = 256, 4096, 100  # pixels, pixels, results of a run
SYNTAXES = ("plain", "weighted")

DESCRIPTION = """\
Edit part of a picture with SDXL. Inpainting repaints what a mask marks; sdedit redraws a picture
that was drawn on. With --run_type sige only the edited part is computed."""
EPILOG = """\
examples:
  python run.py --model tiny --H 256 --W 512 --run_type sige --preset fast \\
      --prompt "a photograph of a horse on a grassland" \\
      --init_img assets/inpainting/original/0.png --mask_path assets/inpainting/masks/0.npy
  python run.py --model tiny --H 256 --W 512 --run_type sige --preset fast --task sdedit \\
      --prompt "A fantasy landscape, trending on artstation" --strength 0.6 --seed 11 \\
      --init_img assets/img2img/original/0.png --edited_img assets/img2img/edited/0.png

The picture's path (or with --json - the figures) goes to stdout, everything else to stderr."""


def read(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line, each option checked by itself. UserError for an unknown option (with
    the nearest known one), a value outside its range, or no prompt; SystemExit after `--help`."""
    values = parsed(build_parser(), argv)
    # Not `required` in argparse: a mistyped --promt should be named rather than missed.
    if values.prompt is None:
        raise UserError("--prompt is missing; say what the edit should show, in quotes.")
    return values


def build_parser() -> argparse.ArgumentParser:
    """The parser of `run.py`: every published flag with its published default, and ours."""
    parser = Parser(
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for add_group in (
        *(_add_task, _add_pictures, _add_photos, _add_sampling),
        *(_add_engine, _add_recordings, _add_files, _add_profiling),
    ):
        add_group(parser)
    return parser


def _margin(text: str) -> int | str:
    """A converter for `auto`, `none` or a number of pixels."""
    return text if text in (AUTO, WHOLE) else whole(0, MAX_MARGIN)(text)


def _seeds(text: str) -> tuple[int, ...]:
    """A converter for a list of seeds with ranges; each once, in the order given."""
    one, found = whole(0, MAX_SEED), []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low = one(first.strip())
        high = one(last.strip()) if dash else low
        if high < low or high - low >= MAX_SEEDS:
            raise argparse.ArgumentTypeError(
                f"got {part!r}; give a range of at most {MAX_SEEDS} seeds that rises, such as 1-6"
            )
        found += range(low, high + 1)
    seeds = tuple(dict.fromkeys(found))
    if len(seeds) > MAX_SEEDS:
        raise argparse.ArgumentTypeError(f"got {len(seeds)} seeds; give at most {MAX_SEEDS}")
    return seeds


def _add_task(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to do")
    text = "what the edit is made from: a mask, or a picture that was drawn on"
    add_names(group, "--task", Task, Task.INPAINTING, text)
    text = "original is dense, sige sparse; turbo and sige-turbo the same with SDXL-Turbo"
    add_names(group, "--run_type", RunType, RunType.ORIGINAL, text)
    add_names(group, "--mode", Mode, Mode.GENERATE, "make a picture, or count and time one network")
    add(group, "--prompt TEXT", "what the edit should show (required)")
    text = "what it should not show (default: none; the unconditional embedding is then zero)"
    add(group, "--negative_prompt TEXT", text, default="")
    text = "run the refiner after the base; true/false/yes/no, or alone for true (default: false)"
    group.add_argument(
        "--refined", metavar="BOOL", nargs="?", const=True, default=False, type=truth, help=text
    )


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures")
    text = "the unedited picture (inpainting; sdedit with a sparse run type)"
    add(group, "--init_img FILE", text, Path)
    add(group, "--edited_img FILE", "the picture drawn on (sdedit)", Path)
    text = "where to repaint, white or True: .npy, .npz or any picture (sdedit: optional)"
    add(group, "--mask_path FILE", text, Path)
    text = "picture to write (default: outputs/<task>-<run_type>-<seed>.png)"
    add(group, "--output_path FILE", text)
    for flag, side in (("--H", "height"), ("--W", "width")):
        text = f"resize picture and mask to this {side} (default: the picture's own)"
        add(group, f"{flag} PIXELS", text, whole(1, MAX_SIDE))


def _add_photos(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures, masks and seeds in detail")
    text = """pixels outside of the mask in which the edit fades into the picture; 0 is a hard edge
        (default with --preset fast: 8 at 1024 pixels, in proportion to the picture)"""
    add(group, "--mask_feather N", text, whole(0, MAX_RING))
    add(
        group,
        "--mask_grow N",
        "grow the mask or the drawing by this many pixels",
        whole(0, MAX_RING),
        0,
    )
    text = "repaint what the mask shows in black"
    group.add_argument("--invert_mask", action="store_true", help=text)
    text = """give the edit the colours and the grain of what is around it (default with --preset
        fast: yes)"""
    group.add_argument("--match_border", action=argparse.BooleanOptionalAction, help=text)
    text = f"""show the network the edit and N pixels around it, at the size it was trained for;
        {AUTO}: only if the picture is larger (default of --preset fast), {WHOLE}: all of it"""
    add(group, "--padding_mask_crop N", text, _margin)
    add(group, "--seeds LIST", "several results: 1-6 or 1,7,9 (--seed: one)", _seeds)
    text = "leave out of a PNG how it was made (prompt, seed, steps, ...)"
    group.add_argument("--no_metadata", action="store_true", help=text)
    group.add_argument("--overwrite", action="store_true", help="replace files that are there")
    text = """plain: as published, 77 tokens; weighted: (word:1.3), and prompts of any length
        (default: weighted with --preset fast, else plain)"""
    add(group, f"--prompt_syntax {braces(SYNTAXES)}", text, one_of(SYNTAXES))


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    add(group, "--seed N", "seed of every random draw", whole(0, MAX_SEED), 2)
    text = f"""sampler steps of the whole schedule (default: {DEFAULT_STEPS}); with a turbo run type
        1 to {TURBO_STEPS} (default: {TURBO_STEPS})"""
    names, steps = ("--ddim_steps", "--steps"), whole(1, MAX_STEPS)
    group.add_argument(*names, dest="steps", metavar="N", type=steps, help=text)
    text = """classifier-free guidance (default: %(default)s); from 0 to 1 it is off, which halves
        the work"""
    add(group, "--scale X", text, number(0, MAX_SCALE), DEFAULT_SCALE)
    text = "sdedit: share of the schedule that runs, above 0 to 1"
    add(group, "--strength X", text, number(0, 1, above_low=True), 0.8)
    add_sampler(group)
    text = "kept from the published port; only 0, as the solver is deterministic"
    zero = only(0, "the solver is deterministic")
    group.add_argument("--ddim_eta", metavar="0", type=zero, default=0.0, help=text)


def _add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("computation")
    add_names(group, "--preset", Preset, Preset.PUBLISHED, "how a sparse run computes")
    text = """what the networks compute in; fp32 never uses TF32 (default: fp32; with --preset fast
        on a CUDA device bf16, or fp16 where the card has no bf16)"""
    add_names(group, "--precision", Precision, None, text)
    add_names(group, "--backend", Backend, Backend.AUTO, "implementation of the sparse operators")
    text = "cpu, cuda, cuda:<number> or mps (default: cuda where there is one, else cpu)"
    add(group, "--device NAME", text)
    text = "run the UNet's sparse steps as CUDA graphs (default: on a CUDA device)"
    group.add_argument("--graphs", action=argparse.BooleanOptionalAction, help=text)


def _add_recordings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("preset fast only")
    text = "in place of --recorded_steps: record the unedited picture at least every K-th step"
    add(group, "--refresh K", text, whole(1, MAX_STEPS))
    text = f"""record the unedited picture at this many steps, and interpolate the others (default:
        {DEFAULT_RECORDED}, or all of fewer steps)"""
    add(group, "--recorded_steps N", text, whole(2, MAX_STEPS))
    text = f"""how recordings are kept; the networks compute in --precision (default:
        {DEFAULT_RECORDING_PRECISION})"""
    add_names(group, "--recording_precision", RecordingPrecision, None, text)
    text = """make no edit, but record --init_img there; --prompt describes it, and may be empty;
        with --mask_path for edits within that mask only, which takes less room"""
    add(group, "--record FOLDER", text, Path)
    text = """edit from the recording in this folder, with no pass over the unedited picture but
        those of --prompt_steps"""
    add(group, "--recording FOLDER", text, Path)
    text = f"""with --recording, for a prompt that is not the recorded one: correct the recording by
        what this many full passes show (default: {DEFAULT_PROMPT_STEPS}; 0 for none)"""
    add(group, "--prompt_steps N", text, whole(0, MAX_STEPS))
    text = "where --recording is kept while it is used; auto leaves it on disk and reads ahead"
    add_names(group, "--recording_memory", RecordingMemory, RecordingMemory.AUTO, text)


def _add_files(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and files")
    text = "the published checkpoints, or the small one of this package"
    add(group, f"--model {braces(MODELS)}", text, one_of(tuple(MODELS)), "sdxl")
    add_folders(group)
    for flag, value, meaning in (
        ("--C", LATENT_CHANNELS, "latent channels"),
        ("--f", LATENT_FACTOR, "pixels per latent position"),
    ):
        text = f"{meaning}; kept from the published port, only %(default)s"
        add(group, f"{flag} {value}", text, only(value, f"every model here has {value}"), value)
    for flag, text in (
        ("--checkpoint FILE|FOLDER", "any SDXL checkpoint, or a folder as diffusers saves it"),
        ("--refiner_checkpoint FILE|FOLDER", "the same for the refiner of --refined"),
        ("--vae FILE", "another autoencoder"),
    ):
        add(group, flag, f"{text} (default: the model's own)", Path)
    add_adaptions(group)
    text = "write the run's figures as JSON; - for stdout, which then holds nothing else"
    add(group, "--json FILE", text)


def _add_profiling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("profile modes only")
    text = "read no weights; MACs and latency do not depend on them"
    group.add_argument("--random_weights", action="store_true", help=text)
    text = "count, do not time; needs no checkpoint and little memory"
    group.add_argument("--macs_only", action="store_true", help=text)
    text = "sparse run types: measure the dense pass too (default: yes)"
    yes_no = argparse.BooleanOptionalAction
    group.add_argument("--compare", action=yes_no, default=True, help=text)
