"""MACs and latency of every table of docs/reproduce.md: `python -m benchmarks.tables`.

Each row is a profile mode of `run.py` with random weights: a sparse and the dense pass, counted on
shapes and timed in turns on this device. The inpainting mask is the published rectangle; the
SDEdit rows are the published ones only with the published pictures (`--data`), and are labelled
where the pictures are our own.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, ROOT, commit, machine, plain, write_results
from benchmarks.published import EXAMPLES, INPAINTING, NETWORKS, PUBLISHED, Figure
from sgm import runtime
from sgm.cli.inputs import read_inputs
from sgm.cli.main import parse
from sgm.cli.profile import DENSE, SPARSE, measure
from sgm.cli.program import start
from sgm.errors import UserError
from sgm.io.files import check_writable, write_atomically
from sgm.words import Precision, Preset
from tools.compare import markdown_table

logger = logging.getLogger(__name__)

MODELS = ("base", "refiner", "turbo")
TITLES = {"unet": "UNet", "encoder": "encoder", "decoder": "decoder"}
Row = dict[str, object]
# What tells two rows apart.
KEY = ("model", "network", "task", "example", "preset", "precision", "backend", "graphs")
HEAD = ("GMAC published", "GMAC", "+ attention", "ms published", "ms", "faster published", "faster")


@dataclass(frozen=True)
class Case:
    """One row: which pass of which network, for which edit."""

    model: str
    network: str
    task: str
    example: str
    preset: str


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description="MACs and latency of the tables of docs/reproduce.md.",
    )
    parser.add_argument("--quick", action="store_true", help="the tiny model: only a trial")
    parser.add_argument("--macs_only", action="store_true", help="count, do not time")
    parser.add_argument("--data", type=Path, help="folder of the published pictures")
    for flag, choices in (("--models", MODELS), ("--networks", NETWORKS), ("--tasks", EXAMPLES)):
        parser.add_argument(flag, nargs="+", choices=choices, default=tuple(choices))
    presets = tuple(map(str, Preset))
    parser.add_argument("--presets", nargs="+", choices=presets, default=presets)
    parser.add_argument("--precision", choices=[*map(str, Precision)], default="fp32")
    parser.add_argument(
        "--backend", default="auto", help="backend of the sparse operators (default auto)"
    )
    parser.add_argument("--graphs", action="store_true", help="sparse UNet steps as CUDA graphs")
    parser.add_argument("--device", default=None, help="cpu, cuda or mps (default: the best)")
    parser.add_argument("--output", type=Path, default=RESULTS / "tables.json")
    parser.add_argument(
        "--update", action="store_true", help="keep rows of the file that are not measured anew"
    )
    parser.add_argument(
        "--pages",
        action="store_true",
        help="measure nothing: put the file's tables in docs/reproduce.md",
    )
    return parser


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """The rows that are asked for, those of one network together."""
    for model, network, task in PUBLISHED:
        # The refiner is there only with --model sdxl in a trial: not every family has all parts.
        if model in args.models and network in args.networks and task in args.tasks:
            for preset in args.presets:
                for example in EXAMPLES[task]:
                    yield Case(model, network, task, example, preset)


def words_of(case: Case, args: argparse.Namespace) -> list[str]:
    """The command line of `run.py` that measures a case."""
    data = args.data if args.data is not None else ROOT / "assets"
    words = ["--prompt", "a photograph", "--task", case.task, "--mode", f"profile_{case.network}"]
    words += ["--run_type", "sige-turbo" if case.model == "turbo" else "sige"]
    words += ["--preset", case.preset, "--precision", args.precision, "--backend", args.backend]
    words += ["--random_weights", "--config_path", str(ROOT / "configs")]
    words += ["--model", "tiny", "--H", "128", "--W", "256"] if args.quick else []
    words += ["--refined"] if case.model == "refiner" else []
    words += ["--macs_only"] if args.macs_only else []
    words += ["--device", args.device] if args.device else []
    if case.task == INPAINTING:
        # The shipped picture and mask: costs depend on the mask alone, the published rectangle.
        folder = ROOT / "assets" / "inpainting"
        picture, mask = folder / "original" / "0.png", folder / "masks" / "0.npy"
        return [*words, "--init_img", str(picture), "--mask_path", str(mask)]
    folder, name = data / "img2img", f"{case.example}.png"
    original, edited = folder / "original" / name, folder / "edited" / name
    return [*words, "--init_img", str(original), "--edited_img", str(edited)]


def row_of(case: Case, args: argparse.Namespace) -> Row:
    """Measure a case."""
    options = parse(words_of(case, args))
    measured = measure(options, read_inputs(options), graphs=args.graphs)
    gc.collect()  # networks are in cycles with their hooks
    latency = {name: found.figures() for name, found in measured.latency.items()}
    row: Row = {**vars(case), "precision": args.precision, "backend": measured.backend}
    row |= {"graphs": args.graphs, "commit": commit(), "parameters": measured.parameters}
    row["pictures"] = "published" if args.data or case.task == INPAINTING else "own"
    for name, macs in measured.macs.items():
        row[name] = {
            "gmacs": macs.total / 1e9,
            "gmacs_with_attention": macs.with_attention / 1e9,
            "gmacs_products": macs.products / 1e9,
            "latency_ms": latency.get(name),
        }
    if measured.first_steps is not None:
        share, first = measured.first_steps
        counts = {"gmacs": first.total / 1e9, "gmacs_with_attention": first.with_attention / 1e9}
        row["first_steps"] = {"share": share, **counts, "latency_ms": None}
    row["peak_memory_mb"] = measured.peak_memory_mb
    return row


def published(row: Mapping[str, object]) -> tuple[Figure, Figure] | None:
    """The published figures of the dense and the sparse pass of a row, where they are of the same
    networks and pictures."""
    if row["pictures"] != "published" or row["model_family"] != "sdxl":
        return None
    dense, *sparse = PUBLISHED[row["model"], row["network"], row["task"]]
    return dense, sparse[EXAMPLES[row["task"]].index(row["example"])]


def measure_all(args: argparse.Namespace) -> dict[str, object]:
    """Measure the rows that are asked for; the figures of `--output`."""
    device = runtime.pick_device(args.device)
    runtime.check_precision(Precision(args.precision), device)
    figures: dict[str, object] = {
        "benchmark": "tables",
        "device": runtime.describe_device(device),
        "driver": driver(device),
        "machine": machine(),
        "versions": runtime.versions(),
        "commit": commit(),
    }
    rows = []
    todo = list(cases(args))
    for case in tqdm(todo, desc="measuring", unit="row"):
        rows.append(row_of(case, args) | {"model_family": "tiny" if args.quick else "sdxl"})
    if args.update and args.output.is_file():
        new = {key_of(row) for row in rows}
        old = json.loads(args.output.read_text(encoding="utf-8"))
        if old["device"] != figures["device"]:
            raise UserError(
                f"{args.output} was measured on {old['device']} and this is {figures['device']}; "
                "give another --output."
            )
        rows = [row for row in old["rows"] if key_of(row) not in new] + rows
    order = {key: number for number, key in enumerate(PUBLISHED)}
    rows.sort(key=lambda r: (order[r["model"], r["network"], r["task"]], r["preset"] == "fast"))
    return figures | {"rows": rows}


def key_of(row: Mapping[str, object]) -> tuple[object, ...]:
    """What tells a row from another."""
    return tuple(row[name] for name in KEY)


def driver(device: torch.device) -> str | None:
    """The version of the GPU's driver; None on a CPU or where it does not tell."""
    path = Path("/proc/driver/nvidia/version")
    if device.type != "cuda" or not path.is_file():
        return None
    return path.read_text(encoding="utf-8").splitlines()[0].strip()


def _number(value: float | None, ending: str = "") -> str:
    return "-" if value is None else f"{value:.2f}{ending}"


def _median(row: Mapping[str, object], name: str) -> float | None:
    latency = row[name]["latency_ms"]
    return None if latency is None else latency["median"]


def table(figures: Mapping[str, object], model: str, task: str, pictures: str = "published") -> str:
    """One table of docs/reproduce.md as Markdown: a row for each pass, then how it was measured.

    Args:
        pictures: "published" or "own".
    """
    wanted = (model, task, pictures)
    rows = [row for row in figures["rows"] if _table_of(row) == wanted]
    lines, seen = [], set()
    for row in rows:
        known = published(row)
        dense, sparse = known if known is not None else (None, None)
        kind = (row["network"], row["precision"])
        if kind not in seen:
            seen.add(kind)
            title = f"{TITLES[row['network']]}, original"
            lines.append(_line(title, row, DENSE, dense, None))
        example = "" if task == INPAINTING else f" {row['example']}"
        own = " (own pictures)" if row["pictures"] == "own" else ""
        preset = "" if row["preset"] == "published" else ", fast"
        half = "" if row["precision"] == "fp32" else f", {row['precision']}"
        package = ", package sige" if row["backend"] == "sige" else ""
        title = f"{TITLES[row['network']]}, SIGE{example}{preset}{package}{half}{own}"
        # The published figures are those of the published preset.
        sparse = sparse if row["preset"] == "published" else None
        lines.append(_line(title, row, SPARSE, sparse, dense))
        if "first_steps" in row:
            share = row["first_steps"]["share"]
            lines.append(_line(f"{title}, first {share:.0%}", row, "first_steps", None, None))
    return markdown_table(*_with_figures((f"{model}, {task}", *HEAD), lines))


def _with_figures(
    head: tuple[str, ...], lines: list[tuple[str, ...]]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table without the columns in which nothing was measured."""
    kept = [n for n in range(len(head)) if any(line[n] != "-" for line in lines)]
    return tuple(head[n] for n in kept), [tuple(line[n] for n in kept) for line in lines]


def _line(
    title: str,
    row: Mapping[str, object],
    name: str,
    known: Figure | None,
    known_dense: Figure | None,
) -> tuple[str, ...]:
    """The cells of one pass; `known` are its published figures."""
    counted = row[name]
    ours, dense = _median(row, name), _median(row, DENSE)
    faster = known_faster = None
    if name == SPARSE and ours is not None and dense is not None:
        faster = dense / ours
    if known is not None and known_dense is not None and known.milliseconds is not None:
        known_faster = known_dense.milliseconds / known.milliseconds
    return (
        title,
        _number(None if known is None else known.gmacs),
        _number(counted["gmacs"]),
        _number(counted["gmacs_with_attention"]),
        _number(None if known is None else known.milliseconds),
        _number(ours),
        _number(known_faster, "x"),
        _number(faster, "x"),
    )


def source(figures: Mapping[str, object]) -> str:
    """One sentence on where the figures come from."""
    processor = figures["machine"]["processor"]
    device = processor if figures["device"] == "cpu" else figures["device"]
    timed = any(_median(row, SPARSE) is not None for row in figures["rows"])
    where = f"; ms on {device}" if timed else "; not timed"
    return f"Ours: PyTorch {figures['versions']['torch']}, commit {figures['commit']}{where}."


def tables(figures: Mapping[str, object]) -> dict[str, str]:
    """The tables by `<model> <task>`, of our own pictures `<model> <task> own`; those that have
    rows."""
    found = dict.fromkeys(map(_table_of, figures["rows"]))
    return {
        f"{model} {task}{' own' if pictures == 'own' else ''}": table(
            figures, model, task, pictures
        )
        for model, task, pictures in found
    }


def _table_of(row: Row) -> tuple[str, str, str]:
    return row["model"], row["task"], row["pictures"]


def into_page(text: str, figures: Mapping[str, object]) -> str:
    """A page with its blocks `<!-- tables: <model> <task> [own] -->` to `<!-- /tables -->` filled.

    Raises:
        UserError: a block is not closed.
    """
    for name, content in tables(figures).items():
        start = f"<!-- tables: {name} -->\n"
        before, found, rest = text.partition(start)
        if not found:
            continue
        _, closed, after = rest.partition("<!-- /tables -->")
        if not closed:
            raise UserError(f"The page does not close its block {name!r}; add <!-- /tables -->.")
        text = f"{before}{start}{content}\n\n{source(figures)}\n{closed}{after}"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write JSON and Markdown, print the tables; or fill the page. The exit code."""
    args = build_parser().parse_args(argv)
    if args.pages:
        figures = json.loads(args.output.read_text(encoding="utf-8"))
        page = ROOT / "docs" / "reproduce.md"
        text = into_page(page.read_text(encoding="utf-8"), figures)
        write_atomically(page, lambda file: file.write(text.encode()))
        return 0
    check_writable(args.output)
    write_results(
        args.output,
        plain(measure_all(args)),
        lambda figures: "\n\n".join([*tables(figures).values(), source(figures)]),
    )
    return 0


if __name__ == "__main__":
    start("tables", main)
