"""How well edits meet their surroundings: `python -m benchmarks.border`.

The tiny model makes held-out edits (`tools/tiny/pairs.py`), dense and with preset `fast`, with the
same noise. Each is put into its picture with and without `--match_border`. Figures:

- The *colour step*: what the picture is shifted by just outside of the ring (input less network's
  picture), less what the edit is shifted by just inside, both averaged over a few pixels along the
  border; its mean over the border, in levels of 255. An object that reaches across the border is
  the same on both sides in the network's picture, so it counts nothing.
- PSNR inside the edit, sparse against dense, both put in the same way; and against the network's
  dense picture as it is, which drifts from the input's colours itself.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import RESULTS, ROOT, commit, write_results
from benchmarks.quality import SPEC, make_edit
from sgm import runtime
from sgm.cli.program import start
from sgm.inference.border import blur
from sgm.inference.noise import NamedNoise, fixed_noise
from sgm.inference.presets import FAST
from sgm.io.files import check_writable
from sgm.metrics import psnr
from sgm.specs import Blend
from sgm.words import Precision, Task
from tools.compare import Edit, markdown_table, run_edit
from tools.ways import Way, load_ways

STRIP, ALONG = 4, 4.0  # pixels on either side that are compared, and sigma of the mean along
FIGURES = {
    "step": "colour step",
    "psnr_alike": "PSNR, dense put in alike",
    "psnr_raw": "PSNR, dense as it is",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.border", description=__doc__)
    parser.add_argument("--pairs", type=int, default=50, help="edits of each task (default 50)")
    parser.add_argument("--steps", type=int, default=20, help="sampler steps (default 20)")
    parser.add_argument("--output", type=Path, default=RESULTS / "border.json")
    return parser


def colour_step(result: Tensor, network: Tensor, weight: Tensor) -> float:
    """The colour step of a result across the border of its edit, in levels of 255.

    Args:
        result, network: [3, H, W] in [0, 1]: as it is written, and before it was put in.
        weight: opacity of the edit [H, W]; the border is where it is between 0 and 1.
    """

    def near(mask: Tensor) -> Tensor:
        return F.max_pool2d(mask[None, None].float(), 2 * STRIP + 1, 1, STRIP)[0, 0] > 0

    def along(strip: Tensor) -> Tensor:
        sums = blur(torch.cat([(result - network) * strip, strip[None].float()]), ALONG)
        return torch.where(sums[3] > 0.02, sums[:3] / sums[3], float("nan"))

    inside, outside = weight >= 1, weight <= 0
    step = along(inside & near(~inside)) - along(outside & near(~outside))
    return 255 * step.abs().mean(0)[~inside & ~outside].nanmean().item()


def figures_of(edit: Edit, dense: Tensor, network: Tensor) -> dict[str, dict[str, float]]:
    """The figures of one edit, without and with matching.

    Args:
        dense, network: the pictures of the dense and of the sparse networks, [3, H, W] in [0, 1].
    """
    found = {}
    for name, matched in (("as it is", False), ("matched", True)):
        request = edit.request(Blend(match_border=matched))
        result = request.finish(network, FAST)
        found[name] = {
            "step": colour_step(result, network, request.weight(FAST)),
            "psnr_alike": psnr(request.finish(dense, FAST), result, edit.mask),
            "psnr_raw": psnr(dense, result, edit.mask),
        }
    return found


def measure(pairs: int, steps: int) -> dict[str, object]:
    """Make all edits; the figures of `--output`."""
    device, precision = torch.device("cpu"), Precision.FP32
    ways = load_ways(SPEC, ROOT / "pretrained", device, precision)
    bare = ways[Way.FAST].with_recipe(replace(FAST, blend=None))
    results: dict[str, object] = {}
    with tqdm(total=len(Task) * pairs, desc="editing", unit="pair") as bar:
        for task in Task:
            edits = []
            for number in range(pairs):
                edit = make_edit(task, number)
                noise = fixed_noise(NamedNoise(edit.seed))
                dense, network = (
                    run_edit(pipeline, edit, steps, noise=noise).image
                    for pipeline in (ways[Way.DENSE], bare)
                )
                edits.append(figures_of(edit, dense, network))
                bar.update()
            results[task.value] = summary(edits)
    return {
        "benchmark": "border",
        "pairs": pairs,
        "steps": steps,
        "device": runtime.describe_device(device),
        "versions": runtime.versions(),
        "commit": commit(),
        "tasks": results,
    }


def summary(edits: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over the edits of a task, by how they were put in."""
    return {
        name: {key: statistics.fmean(edit[name][key] for edit in edits) for key in FIGURES}
        for name in edits[0]
    }


def table(figures: Mapping[str, object]) -> str:
    """The figures as Markdown."""
    rows = [
        (f"{task}, {name}", *(f"{found[key]:.1f}" for key in FIGURES))
        for task, ways in figures["tasks"].items()
        for name, found in ways.items()
    ]
    return markdown_table(("edits", *FIGURES.values()), rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the JSON file and the table beside it, print it; the exit code."""
    args = build_parser().parse_args(argv)
    check_writable(args.output)
    write_results(args.output, measure(args.pairs, args.steps), table)
    return 0


if __name__ == "__main__":
    start("benchmarks.border", main)
