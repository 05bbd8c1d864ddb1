"""Convert a checkpoint: `python convert_weights.py SRC DST`, or look at one with `--check FILE`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sgm.cli.program import start
from sgm.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="convert_weights.py",
        description="Write a checkpoint in another precision, with the projections around its "
        "transformers as 1x1 convolutions (what the published port needs; optional here, since "
        "both forms load). The source is never changed.",
    )
    parser.add_argument("source", nargs="?", type=Path, metavar="SRC", help="the published file")
    parser.add_argument("target", nargs="?", type=Path, metavar="DST", help="the file to write")
    parser.add_argument(
        "--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="default: %(default)s"
    )
    parser.add_argument(
        "--no-conv", action="store_true", help="projections as linear layers, the way back"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing DST")
    parser.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        help="say what a file or a folder of diffusers is, and end",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code.

    Raises:
        UserError: a file that cannot be read or written; one sentence.
    """
    args = build_parser().parse_args(argv)
    from sgm.io import convert
    from sgm.io.files import check_input_file

    if args.check is not None:
        from sgm.io.describe import describe

        if not args.check.is_dir():
            check_input_file(args.check)
        print(describe(args.check, Path(__file__).parent / "configs"))
        return 0
    if args.source is None or args.target is None:
        raise UserError("Name two files, SRC and DST, or one with --check.")
    check_input_file(args.source)
    dtype = convert.DTYPES[args.dtype]
    size = convert.convert(args.source, args.target, dtype, not args.no_conv, args.force)
    print(f"{args.target} {size}")
    return 0


if __name__ == "__main__":
    start("convert_weights.py", main)
