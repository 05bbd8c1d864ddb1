"""Whole edits of the real size, composed of timed passes: `python -m benchmarks.compose`.

An edit of 50 steps at 512x1024 takes over half an hour on two cores, and does one of a few passes
over and over. So the passes that `benchmarks.rivals` timed are added up: of the UNet, the encoder
and the decoder, dense and of both presets. Text, the sampler's own arithmetic, masks and borders
are not in it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common import RESULTS
from sgm.cli.program import start
from sgm.errors import UserError
from sgm.inference.presets import FAST
from sgm.io.files import write_atomically
from tools.compare import markdown_table

FILES = {"unet": "rivals.json", "encoder": "rivals_encoder.json", "decoder": "rivals_decoder.json"}
ROWS = ("dense", "published", "fast")
EXAMPLES = {"mask": "inpainting, published mask", "0": "SDEdit, published example 0"}
EXAMPLES |= {"1": "SDEdit, published example 1"}
STRENGTH = 0.8  # of the SDEdit examples
Seconds = Mapping[tuple[str, str], float]  # by network and row, of one example


def passes(folder: Path, example: str) -> dict[tuple[str, str], float]:
    """Seconds of every pass of an example.

    Raises:
        UserError: `benchmarks.rivals` has not timed it.
    """
    found = {}
    for network, name in FILES.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is not there; `python -m benchmarks.rivals` makes it.")
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        for kind in ROWS:
            one = next(r for r in rows if (r["example"], r["row"]) == (example, kind))
            found[network, kind] = one["latency_ms"]["median"] / 1e3
    return found


def edits(took: Seconds, steps: int, drawn: bool) -> dict[str, float]:
    """Seconds of an edit of so many steps, by the way it is made.

    Args:
        drawn: SDEdit, which encodes the picture that was drawn on, too.
    """
    full, whole, made = took["unet", "dense"], took["encoder", "dense"], took["decoder", "dense"]
    recorded = len(FAST.sdedit_recorded.steps(steps) if drawn else FAST.recorded.steps(steps))
    encoded = {kind: took["encoder", kind] if drawn else 0.0 for kind in ("published", "fast")}
    sparse = steps * took["unet", "fast"] + encoded["fast"]
    warm = sparse + took["decoder", "fast"]
    return {
        "dense": whole + steps * full + made,
        "published": whole
        + encoded["published"]
        + steps * (full + took["unet", "published"])
        + made
        + took["decoder", "published"],
        "cold": whole + recorded * full + sparse + made,
        "warm, new prompt": warm + FAST.recorded.prompt_steps * full,
        "warm": warm,
    }


def table(folder: Path, steps: int) -> str:
    """Seconds of all edits, and times faster than dense, as Markdown."""
    rows = []
    for example, name in EXAMPLES.items():
        drawn = example != "mask"
        found = edits(passes(folder, example), int(STRENGTH * steps) if drawn else steps, drawn)
        cells = [f"{found['dense']:.0f}"]
        cells += [
            f"{seconds:.0f} ({found['dense'] / seconds:.1f}x)"
            for way, seconds in found.items()
            if way != "dense"
        ]
        rows.append((name, *cells))
    return markdown_table(("edit, seconds", *found), rows)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compose", description="Whole edits, composed of timed passes."
    )
    parser.add_argument("--steps", type=int, default=50, help="of the sampler (default 50)")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="of the timed passes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and write it beside the passes.

    Raises:
        UserError: passes that were not timed.
    """
    args = build_parser().parse_args(argv)
    text = table(args.folder, args.steps)
    path = args.folder / "composed.md"
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))
    print(text)
    return 0


if __name__ == "__main__":
    start("benchmarks.compose", main)
