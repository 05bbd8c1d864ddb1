"""Crop and stitch beside sparse edits: `python -m benchmarks.crop`.

What people do today for an edit of a part: cut out the mask and a margin around it, run the dense
model on that, and put the result back. The tiny model makes held-out edits (`tools/tiny/pairs.py`)
in this way, dense over the whole picture, and with preset `fast`, cold and warm. All results are
put into the picture with the same ring and the same matching of colours.

A crop can be *enlarged* (the mask and 32 pixels around it, scaled to a number of pixels) or *plain*
(as many pixels of the picture around the mask, at its own scale, or smaller where the edit and a
margin do not fit). Their numbers of pixels are those of the whole picture, half and a quarter, so
that a crop costs about as much as dense, half as much, and as much as a warm edit. Sides are
multiples of 64, so the shares are near these.

PSNR and SSIM are inside the edit, against the whole picture's dense result. A crop cannot have the
noise of the whole picture, so it shows another sample: `dense, another seed` says how far apart two
dense results of one edit are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import RESULTS, ROOT, cell, commit, machine, summary, write_results
from benchmarks.quality import SPEC, judged, make_edit
from sgm import runtime
from sgm.cli.program import start
from sgm.inference.crop import Cropped, EditRequest
from sgm.inference.noise import NamedNoise, fixed_noise
from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import FAST
from sgm.inference.window import Window, window_around
from sgm.io.files import check_writable
from sgm.specs import SamplingParams
from sgm.words import Precision, Task
from tools.compare import Edit, markdown_table, run_edit
from tools.tiny.judge import Judge, load_judge
from tools.tiny.looks import percent
from tools.ways import Made, Way, load_ways, make, unet_macs

MARGIN = 32  # pixels around the mask of an enlarged crop, as the common tools have it
HEIGHT, WIDTH = SPEC.trained_size
# By name: the pixels that the network gets as (height, width), and whether the crop is enlarged.
CROPS = {
    "crop enlarged, whole": ((HEIGHT, WIDTH), True),
    "crop enlarged, half": ((HEIGHT, WIDTH // 2), True),
    "crop enlarged, quarter": ((HEIGHT // 2, WIDTH // 2), True),
    "crop plain, half": ((HEIGHT, WIDTH // 2), False),
    "crop plain, quarter": ((HEIGHT // 2, WIDTH // 2), False),
}
DENSE, OTHER, COLD, WARM = "dense", "dense, another seed", "fast, cold", "fast, warm"
OTHER_SEED = 1_000_000  # added to an edit's own
# What is compared, and whether more of it is better.
FIGURES = {
    "seconds": ("seconds", False),
    "gmac": ("UNet GMAC", False),
    "psnr_inside": ("PSNR", True),
    "ssim_inside": ("SSIM", True),
    "found": ("object found", True),
    "border_step": ("border step", False),
}


@dataclass(frozen=True, eq=False)
class Networks:
    """The networks of all ways.

    Attributes:
        dense, fast: put their edits into the input alike.
        judge: finds objects.
    """

    dense: Pipeline
    fast: Pipeline
    judge: Judge

    @classmethod
    def load(cls, weight_path: Path, device: torch.device) -> Networks:
        """Of the tiny model in fp32; UserError: a file is missing or does not fit."""
        loaded = load_ways(SPEC, weight_path, device, Precision.FP32)
        return cls(loaded[Way.DENSE].with_recipe(FAST), loaded[Way.FAST], load_judge())


def window_of(mask: Tensor, crop: str) -> Window:
    """The window of a way to crop, for a mask, bool [H, W]."""
    pixels, enlarged = CROPS[crop]
    return window_around(mask, pixels, MARGIN if enlarged else None)


def cropped(edit: Edit, window: Window) -> Cropped:
    """An edit as its window's."""
    pictures = (edit.image, edit.edited, edit.mask)
    return EditRequest(*pictures, edit.strength, FAST.blend).within(window)


def edited_in_crop(dense: Pipeline, edit: Edit, crop: str, steps: int) -> Made:
    """Make an edit in a crop."""
    params = SamplingParams(edit.prompt, seed=edit.seed, steps=steps, scale=edit.scale)
    wanted = cropped(edit, window_of(edit.mask, crop))
    result = dense.edit(wanted, params, fixed_noise(NamedNoise(edit.seed)))
    return Made(result.image, sum(result.seconds.values()))


def compare(networks: Networks, edit: Edit, steps: int) -> dict[str, dict[str, object]]:
    """The figures of one edit by the name of the way."""
    dense, fast = networks.dense, networks.fast
    ways = {Way.DENSE: dense, Way.FAST: fast}
    other = fixed_noise(NamedNoise(edit.seed + OTHER_SEED))
    again = run_edit(dense, edit, steps, noise=other)
    made = {
        DENSE: make(Way.DENSE, ways, edit, "", steps),
        OTHER: Made(again.image, sum(again.seconds.values())),
        COLD: make(Way.FAST, ways, edit, "", steps),
        WARM: make(Way.WARM, ways, edit, "", steps),
        **{crop: edited_in_crop(dense, edit, crop, steps) for crop in CROPS},
    }
    sparse = unet_macs(fast, edit.request(FAST.blend), steps)
    whole = unet_macs(dense, edit.request(FAST.blend), steps).edit
    macs = {DENSE: whole, OTHER: whole, COLD: sparse.record + sparse.edit, WARM: sparse.edit}
    for crop in CROPS:
        macs[crop] = unet_macs(dense, cropped(edit, window_of(edit.mask, crop)), steps).edit
    return {
        way: {
            "seconds": one.seconds,
            "gmac": macs[way] / 1e9,
            **judged(networks.judge, edit, made[DENSE].image, one.image),
        }
        for way, one in made.items()
    }


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Make all edits; the figures of `--output`."""
    device = runtime.pick_device(args.device)
    networks = Networks.load(args.weight_path, device)
    tasks: dict[str, object] = {}
    with tqdm(total=len(Task) * args.pairs, desc="editing", unit="pair") as bar:
        for task in Task:
            compare(networks, make_edit(task, 0), 2)  # the first run pays for choosing kernels
            edits = []
            for number in range(args.pairs):
                edits.append(compare(networks, make_edit(task, number), args.steps))
                bar.update()
            tasks[task.value] = {
                way: {
                    "summary": {key: summary(edit[way][key] for edit in edits) for key in FIGURES},
                    "edits": [edit[way] for edit in edits],
                }
                for way in edits[0]
            }
    return {
        "benchmark": "crop",
        "model": SPEC.name,
        "pairs": args.pairs,
        "steps": args.steps,
        "margin": MARGIN,
        "device": runtime.describe_device(device),
        "machine": machine(),
        "versions": runtime.versions(),
        "commit": commit(),
        "tasks": tasks,
    }


def table(figures: Mapping[str, object]) -> str:
    """The figures as Markdown: a row for every task and way, and where crops come out better."""
    head = ("edit", "seconds", "faster", "UNet GMAC", "fewer", "PSNR", "median", "SSIM")
    rows, said = [], []
    for task, ways in figures["tasks"].items():
        mean = {way: means(found["summary"]) for way, found in ways.items()}
        for way, found in ways.items():
            one, first = mean[way], mean[DENSE]
            rows.append(
                (
                    f"{task}, {way}",
                    cell(one["seconds"], 2),
                    f"{first['seconds'] / one['seconds']:.2f}x",
                    cell(one["gmac"], 1),
                    f"{first['gmac'] / one['gmac']:.2f}x",
                    cell(one["psnr_inside"], 1),
                    cell(found["summary"]["psnr_inside"]["median"], 1),
                    cell(one["ssim_inside"], 3),
                    percent(one["found"]),
                    cell(one["border_step"], 1),
                )
            )
        said += [(f"{task}, {crop}", *better_than(mean, crop)) for crop in CROPS]
    better = markdown_table(("better", f"than `{COLD}` in", f"than `{WARM}` in"), said)
    return f"{markdown_table((*head, 'object found', 'border step'), rows)}\n\n{better}"


def means(found: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The means of a way by figure."""
    return {key: found[key]["mean"] for key in FIGURES}


def better_than(mean: Mapping[str, Mapping[str, float | None]], crop: str) -> list[str]:
    """In which figures a crop is better than `fast`, cold and warm; equal is not better."""
    said = []
    for way in (COLD, WARM):
        better = []
        for key, (name, more) in FIGURES.items():
            ours, theirs = mean[way][key], mean[crop][key]
            known = ours is not None and theirs is not None
            if known and (theirs > ours if more else theirs < ours):
                better.append(name)
        said.append(", ".join(better) or "nothing")
    return said


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.crop",
        description="Crop and stitch beside sparse edits, tiny model.",
    )
    parser.add_argument("--pairs", type=int, default=50, help="edits of each task (default 50)")
    parser.add_argument("--steps", type=int, default=50, help="sampler steps (default 50)")
    parser.add_argument("--output", type=Path, default=RESULTS / "crop.json")
    parser.add_argument(
        "--weight_path", type=Path, default=ROOT / "pretrained", help="folder of the weights"
    )
    parser.add_argument("--device", default=None, help="cpu, cuda or mps (default: the best)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write JSON and Markdown, print the table; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.pairs < 1 or args.steps < 2:
        parser.error("--pairs must be at least 1 and --steps at least 2.")
    check_writable(args.output)
    write_results(args.output, measure(args), table)
    return 0


if __name__ == "__main__":
    start("benchmarks.crop", main)
