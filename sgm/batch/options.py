"""The flags of a batch: those of `run.py`, which then hold for every row, and its own."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sgm.cli.option_types import add, parsed, whole
from sgm.cli.options import build_parser
from sgm.errors import UserError
from sgm.io import files
from sgm.words import Preset, RunType

MAX_WORKERS = 4096
# Of `run.py`, but of no sense for many edits: a batch names its own files, and loads one model.
NOT_IN_A_BATCH = (
    *("output_path", "json", "mode", "record", "recording", "recording_memory", "refined"),
    *("refiner_checkpoint", "random_weights", "macs_only", "seeds", "overwrite"),
)
DESCRIPTION = """\
Make many edits with one loaded model. EDITS has one edit a row: JSON lines or CSV, with the names
of run.py's options (task, init_img, mask_path, prompt, seed, ...). Rows of one picture share one
recording of it. Stopped and started again, a batch goes on where it was."""
EPILOG = """\
examples:
  python -m sgm.batch edits.jsonl --output results --model tiny
  python -m sgm.batch edits.csv --output results --ray --workers 2 --threads 1

Every other option is one of run.py, and holds for each row that does not have its own; see
`python run.py --help`. The path of results.jsonl goes to stdout, everything else to stderr. The
exit code is 0, 1 if a row failed, 2 if the batch ended before its time."""


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line of a batch, checked as far as no row is needed: the options of `run.py` and
    its own; `ray` is None or an address, empty for a Ray of one's own. UserError on the first thing
    that is wrong; SystemExit after `--help`."""
    parser = build_parser()
    parser.prog, parser.description, parser.epilog = "python -m sgm.batch", DESCRIPTION, EPILOG
    _add_batch(parser)
    # What a batch is for; `run.py` has the published defaults.
    parser.set_defaults(run_type=RunType.SIGE, preset=Preset.FAST)
    values = parsed(parser, argv)
    for name in NOT_IN_A_BATCH:
        if getattr(values, name) != parser.get_default(name):
            raise UserError(f"--{name} is for one edit at a time; leave it out, or use run.py.")
    if values.ray is None and values.workers is not None:
        raise UserError("--workers says how many processes Ray has; add --ray.")
    files.check_input_file(values.edits)
    files.check_writable(values.output / "results.jsonl")
    if values.against is not None and not values.against.is_dir():
        raise UserError(f"Folder {values.against} does not exist; check --against.")
    return values


def _add_batch(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("batch")
    group.add_argument("edits", metavar="EDITS", type=Path, help="the rows: .jsonl, .json or .csv")
    text = "folder of the pictures and of results.jsonl; rows done there are not made again"
    group.add_argument("--output", metavar="DIR", type=Path, required=True, help=text)
    text = "go on without the rows that cannot be used (default: name them, and stop)"
    group.add_argument("--skip_bad", action="store_true", help=text)
    text = "compare each result with the picture of the same name there: metrics.csv, summary.md"
    add(group, "--against DIR", text, Path)
    text = """use several devices by Ray: of this machine, or with an address (or auto) of that
        cluster"""
    group.add_argument("--ray", metavar="ADDRESS", nargs="?", const="", help=text)
    text = "with --ray (default: one a GPU; without GPUs as many as --threads leaves room for)"
    add(group, "--workers N", text, whole(1, MAX_WORKERS))
    text = """CPU threads of each worker (default: PyTorch's own); on a CPU the last bits of a
        result depend on it"""
    add(group, "--threads N", text, whole(1, 1024))
