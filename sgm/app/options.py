"""The flags of the page: which model, where it runs, and what it may take."""

import argparse
from collections.abc import Sequence

from sgm.cli.option_types import (
    Parser,
    add_adaptions,
    add_folders,
    add_sampler,
    braces,
    member,
    number,
    one_of,
    parsed,
    whole,
)
from sgm.specs import DEFAULT_RECORDING_PRECISION, DEFAULT_SCALE, MODELS, TINY_SCALE
from sgm.words import Precision, RecordingPrecision

DESCRIPTION = """\
A page to edit photos in: open one, paint where it should change, say what should be there. It is
served to this machine alone, at http://127.0.0.1:PORT."""
EPILOG = """\
examples:
  python -m sgm.app
  python -m sgm.app --model sdxl --checkpoint my_fine_tune.safetensors --lora my_style.safetensors

See docs/app.md."""
MAX_PIXELS = 8192 * 8192


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line of the page. `model` is the tiny one, if no checkpoint is named; `scale` is
    what suits the model.

    Raises:
        UserError: one sentence on the first thing that is wrong.
        SystemExit: code 0 after `--help`.
    """
    values = parsed(build_parser(), argv)
    if values.model is None:
        values.model = "tiny" if values.checkpoint is None else "sdxl"
    if values.scale is None:
        values.scale = TINY_SCALE if values.model == "tiny" else DEFAULT_SCALE
    return values


def build_parser() -> argparse.ArgumentParser:
    """The parser; names are those of `run.py` where that has the flag."""
    parser = Parser(
        prog="python -m sgm.app",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_model(parser)
    _add_sampling(parser)
    _add_page(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar=braces(MODELS),
        type=one_of(tuple(MODELS)),
        help="default: tiny, or sdxl with --checkpoint",
    )
    group.add_argument("--checkpoint", metavar="FILE|FOLDER", help="any SDXL checkpoint")
    group.add_argument("--vae", metavar="FILE", help="another autoencoder")
    add_adaptions(group)
    add_folders(group)
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:<number> or mps")
    group.add_argument(
        "--precision",
        metavar=braces(Precision),
        type=member(Precision),
        help="what the networks compute in (default: fp32; on a CUDA device bf16, or fp16 where "
        "the card has no bf16)",
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--steps",
        metavar="N",
        type=whole(1, 100),
        default=20,
        help="what the page offers at first (default: %(default)s)",
    )
    group.add_argument(
        "--scale",
        metavar="X",
        type=number(0, 1000),
        help=f"classifier-free guidance (default: {DEFAULT_SCALE}; {TINY_SCALE} of the tiny model)",
    )
    add_sampler(group)


def _add_page(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("page")
    group.add_argument(
        "--port", metavar="N", type=whole(1, 65535), help="default: the first free from 7860 on"
    )
    group.add_argument(
        "--share",
        action="store_true",
        help="also at a public address of gradio.live, for a notebook on a hosted machine; whoever "
        "has the address can use the page",
    )
    group.add_argument(
        "--max_pixels",
        metavar="N",
        type=whole(64 * 64, MAX_PIXELS),
        help="larger photos are made smaller to work on (default: what the model was trained for)",
    )
    group.add_argument(
        "--memory",
        metavar="GB",
        type=number(0, 1e6, above_low=True),
        help="for the recordings of all open photos together (default: half of what is free)",
    )
    group.add_argument(
        "--recording_precision",
        metavar=braces(RecordingPrecision),
        type=member(RecordingPrecision),
        default=DEFAULT_RECORDING_PRECISION,
        help="in which recordings are kept (default: %(default)s)",
    )
