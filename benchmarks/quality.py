"""How far the sparse networks' pictures are from the dense ones': `python -m benchmarks.quality`.

The tiny model makes held-out edits (`tools/tiny/pairs.py`) dense, with preset `published` and with
preset `fast`, at the same seed and with the same noise. Compared with dense are PSNR and SSIM
*inside* the edit (the mask, or where the picture was drawn on) and *outside* of it: farther from
the edit than the published decoder looks for changes around it, which is dilated by 5 and then by
40 pixels. The ring between the two is in neither. And of each picture by itself: whether a judge
(`tools/tiny/judge.py`) finds the object that the prompt asks for in the edit, and how much more the
colours step at the edit's border than they did in the input (of a drawing: 5 pixels around it).

Preset `fast` puts its edit into the input picture. So it is compared twice: `fast` as it is, and
`fast_network`, the network's picture before that, which shows what the sparse passes cost. `warm`
is `fast` from a session that recorded the picture before, under no prompt. The bytes that `fast`
changed outside of the edit's region are counted. With `--sweep`, other dilations and
recordings of `fast_network` follow. PSNR and sharpness of the autoencoder alone, a picture encoded
and decoded again, say what any run could at best keep.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import RESULTS, ROOT, cell, commit, summary, write_figures
from sgm import runtime
from sgm.cli.program import start
from sgm.inference.noise import NamedNoise, Noise, fixed_noise
from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import FAST, PUBLISHED, Recipe
from sgm.inference.session import EditSession
from sgm.io.files import check_writable
from sgm.io.imageio import to_picture, to_tensor
from sgm.metrics import psnr
from sgm.sparse.masks import SDEDIT_DILATION, dilate
from sgm.specs import (
    DEFAULT_STEPS,
    MODELS,
    TINY_SCALE,
    TURBO_STEPS,
    RecordingSettings,
    SamplingParams,
)
from sgm.words import Precision, Task
from tools.compare import (
    Edit,
    inpainting_edit,
    likeness,
    markdown_table,
    run_edit,
    sdedit_edit,
)
from tools.tiny.judge import Judge, load_judge
from tools.tiny.looks import asked_for, looks, object_table, percent, sharpness
from tools.tiny.pairs import HELD_OUT, held_out_scene, inpainting_pair, sdedit_pair
from tools.tiny.scenes import render
from tools.ways import Way, load_ways

SPEC = MODELS["tiny"]
METRICS = {
    "psnr_inside": "PSNR inside (dB)",
    "ssim_inside": "SSIM inside",
    "psnr_outside": "PSNR outside (dB)",
    "ssim_outside": "SSIM outside",
    "edit_ratio": "edited share",
    "changed_outside": "bytes changed outside",
    "found": "object found",
    "border_step": "step at the border (of 255)",
}
# Recipes of `--sweep`, each without the composition. Dilations are by halving of the picture, the
# last number for all that follow: latents are the fourth.
SWEEP: dict[str, Recipe] = {
    **{f"level {n}": replace(FAST, level=n) for n in (0, 1, 2, 3)},
    "latents 1": replace(FAST, level=(1, 1, 1, 1, 1)),
    "latents 3": replace(FAST, level=(1, 1, 1, 3, 1)),
    "half latents 2": replace(FAST, level=(1, 1, 1, 2, 2, 1)),
    "quarter latents 2": replace(FAST, level=(1, 1, 1, 2, 1, 2)),
    **{f"sdedit {n}": replace(FAST, sdedit=n) for n in (5, 12, 20)},
    "sdedit, no early": replace(FAST, early=0.0),
    "sdedit, early 20": replace(FAST, sdedit_early=20),
    **{f"sdedit, early {n:.0%} of steps": replace(FAST, early=n) for n in (0.2, 0.3)},
    "sparse decoder": replace(FAST, sparse_decode=True),
    "sparse decoder, sdedit 40": replace(FAST, sparse_decode=True, sdedit_decoder=40),
    "all recorded": FAST.with_recordings(RecordingSettings(every=1)),
    **{
        f"{count} recorded, power {power}, order {order}": replace(
            FAST, recorded=recorded, sdedit_recorded=recorded
        )
        for count in (5, 6, 7, 8)
        for power, order in ((1.0, 2), (1.15, 2), (1.5, 2), (2.0, 2), (1.0, 3))
        for recorded in (replace(FAST.recorded, count=count, power=power, order=order),)
    },
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description="Sparse against dense pictures, tiny model.",
    )
    parser.add_argument("--pairs", type=int, default=50, help="edits of each task (default 50)")
    parser.add_argument("--turbo", action="store_true", help="the few-step model")
    parser.add_argument(
        "--steps", type=int, default=None, help="sampler steps (default 50, turbo 4)"
    )
    parser.add_argument("--seed", type=int, default=0, help="number of the first pair (default 0)")
    parser.add_argument("--task", choices=[*map(str, Task), "all"], default="all")
    parser.add_argument(
        "--sweep",
        nargs="?",
        const="",
        metavar="WORD",
        help="other dilations and recordings too; only those with the word in their names",
    )
    parser.add_argument(
        "--output", type=Path, help="default: quality.json, or quality_turbo.json, in its folder"
    )
    parser.add_argument(
        "--weight_path", type=Path, default=ROOT / "pretrained", help="folder of the weights"
    )
    parser.add_argument("--device", default=None, help="cpu, cuda or mps (default: the best)")
    parser.add_argument("--precision", choices=[*map(str, Precision)], default="fp32")
    return parser


def make_edit(task: Task, number: int) -> Edit:
    """Held-out pair `number` (from 0) of a task as an edit."""
    seed = HELD_OUT + number
    if task is Task.INPAINTING:
        image, mask, prompt = inpainting_pair(seed)
        edit = inpainting_edit(to_tensor(image), torch.from_numpy(mask), prompt, seed)
    else:
        image, edited, prompt = sdedit_pair(seed)
        edit = sdedit_edit(to_tensor(image), to_tensor(edited), prompt, seed)
    return replace(edit, scale=TINY_SCALE)


def compare(
    pipelines: Mapping[Way, Pipeline],
    edit: Edit,
    steps: int,
    recipes: dict[str, Recipe],
    judge: Judge,
) -> dict[str, dict[str, object]]:
    """The figures of one edit by the name of the run."""
    # One noise for all steps in every run, as preset `fast` has.
    noise = fixed_noise(NamedNoise(edit.seed))
    dense = run_edit(pipelines[Way.DENSE], edit, steps, noise=noise).image
    pictures = {"dense": dense}
    pictures["published"] = run_edit(pipelines[Way.PUBLISHED], edit, steps, noise=noise).image
    fast = pipelines[Way.FAST]
    for name, recipe in recipes.items():
        one = fast.with_recipe(replace(recipe, blend=None))
        pictures[name] = run_edit(one, edit, steps, noise=noise).image
    pictures["fast"] = edit.request(FAST.blend).finish(pictures["fast_network"], FAST)
    pictures["warm"] = warm(fast, edit, steps, noise)
    return {
        run: {
            "changed_outside": changed_outside(edit, picture, run not in ("dense", "published")),
            **judged(judge, edit, dense, picture),
        }
        for run, picture in pictures.items()
    }


def judged(judge: Judge, edit: Edit, dense: Tensor, picture: Tensor) -> dict[str, object]:
    """What an edit is, and how one of its pictures [3, H, W] in [0, 1] looks beside the dense."""
    name = asked_for(edit.prompt)
    border = edit.mask if edit.edited is None else dilate(edit.mask, SDEDIT_DILATION)
    seen = looks(judge, to_picture(picture), to_picture(source_of(edit)), edit.mask, border, name)
    return {
        "seed": edit.seed,
        "prompt": edit.prompt,
        "object": name,
        "edit_ratio": edit.mask.float().mean().item(),
        **asdict(likeness(dense, picture, edit.mask)),
        **asdict(seen),
    }


def warm(fast: Pipeline, edit: Edit, steps: int, noise: Noise) -> Tensor:
    """The edit from a session that recorded the picture without a prompt: [3, H, W] in [0, 1]."""
    params = SamplingParams("", seed=edit.seed, steps=steps, scale=edit.scale)
    session = EditSession(fast, edit.image, params, edit.task, noise=noise)
    if edit.edited is None:
        return session.inpaint(edit.prompt, edit.mask).image
    return session.sdedit(edit.prompt, edit.edited).image


def changed_outside(edit: Edit, picture: Tensor, fast: bool) -> int:
    """Bytes that differ from the input outside of the region that a preset may change."""
    recipe = FAST if fast else PUBLISHED
    region = edit.request(FAST.blend).touched(FAST) if fast else None
    if region is None:
        region = edit.mask if edit.edited is None else recipe.sdedit_region(edit.mask)
    before, after = (np.asarray(to_picture(image)) for image in (source_of(edit), picture))
    return int(((before != after) & ~region.numpy()[..., None]).sum())


def source_of(edit: Edit) -> Tensor:
    """The picture that an edit starts from, [3, H, W] in [0, 1]."""
    return ((edit.image if edit.edited is None else edit.edited) + 1) / 2


def reconstruction(pipeline: Pipeline, number: int) -> tuple[float, float]:
    """PSNR in dB and sharpness of a held-out scene after the autoencoder, without the posterior's
    noise."""
    networks = pipeline.networks
    first_stage = networks.engine.first_stage_model
    x = to_tensor(render(held_out_scene(HELD_OUT + number)))
    with torch.inference_mode():
        dtype = first_stage.quant_conv.weight.dtype
        z = first_stage.posterior(x[None].to(networks.device, dtype)).mode()
        made = networks.decode(z * networks.engine.scale_factor).cpu()
        return psnr(made, (x + 1) / 2), sharpness(made, (x + 1) / 2)


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Run all edits; the figures of `--output`."""
    device = runtime.pick_device(args.device)
    precision = Precision(args.precision)
    runtime.check_precision(precision, device)
    pipelines = load_ways(SPEC, args.weight_path, device, precision, args.turbo)
    judge = load_judge()
    recipes = {"fast_network": FAST}
    if args.sweep is not None:
        recipes |= {name: recipe for name, recipe in SWEEP.items() if args.sweep in name}
    tasks = list(Task) if args.task == "all" else [Task(args.task)]
    numbers = range(args.seed, args.seed + args.pairs)
    results: dict[str, object] = {}
    with tqdm(total=len(tasks) * args.pairs, desc="editing", unit="pair") as bar:
        for task in tasks:
            edits = []
            for number in numbers:
                edits.append(
                    compare(pipelines, make_edit(task, number), args.steps, recipes, judge)
                )
                bar.update()
            results[task.value] = {
                run: {
                    "summary": {m: summary(edit[run][m] for edit in edits) for m in METRICS},
                    "edits": [edit[run] for edit in edits],
                }
                for run in edits[0]
            }
    vae = [reconstruction(pipelines[Way.DENSE], number) for number in numbers]
    weights = {}
    for path in SPEC.own(args.weight_path, "turbo" if args.turbo else "base").files:
        with safe_open(path, framework="pt") as file:
            weights[path.name] = file.metadata() or {}
    return {
        "benchmark": "quality",
        "model": SPEC.name,
        "turbo": args.turbo,
        "weights": weights,
        "recipes": {name: asdict(recipe) for name, recipe in recipes.items()},
        "precision": precision.value,
        "steps": args.steps,
        "seed": args.seed,
        "pairs": args.pairs,
        "size": list(SPEC.trained_size),
        "device": runtime.describe_device(device),
        "versions": runtime.versions(),
        "commit": commit(),
        "tasks": results,
        "autoencoder_psnr": summary(value for value, _ in vae),
        "autoencoder_sharpness": summary(value for _, value in vae),
    }


def table(figures: dict[str, object]) -> str:
    """The figures as Markdown: a row for every task and run."""
    rows = []
    for task, runs in figures["tasks"].items():
        for run, result in runs.items():
            found = result["summary"]
            rows.append(
                (
                    f"{task}, {run}",
                    cell(found["psnr_inside"]["mean"], 1),
                    cell(found["psnr_inside"]["median"], 1),
                    cell(found["ssim_inside"]["mean"], 3),
                    cell(found["psnr_outside"]["mean"], 1),
                    cell(found["changed_outside"]["mean"], 0),
                    percent(found["found"]["mean"]),
                    cell(found["border_step"]["mean"], 1),
                )
            )
    alone, sharp = figures["autoencoder_psnr"], figures["autoencoder_sharpness"]["mean"]
    values = (cell(alone["mean"], 1), cell(alone["median"], 1), *"-----")
    rows.append((f"autoencoder alone (sharpness {cell(sharp, 2)})", *values))
    head = ("against dense", "PSNR inside", "median", "SSIM", "PSNR outside", "bytes outside")
    return markdown_table((*head, "object found", "border step"), rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the JSON file, print the table; the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    args.steps = (
        (TURBO_STEPS if args.turbo else DEFAULT_STEPS) if args.steps is None else args.steps
    )
    args.output = args.output or RESULTS / f"quality{'_turbo' if args.turbo else ''}.json"
    if args.pairs < 1 or args.steps < 1 or args.seed < 0:
        parser.error("--pairs and --steps must be at least 1, and --seed at least 0.")
    check_writable(args.output)
    figures = measure(args)
    write_figures(args.output, figures)
    print(table(figures), object_table(figures), sep="\n\n")
    print(f"\n{args.output}")
    return 0


if __name__ == "__main__":
    start("benchmarks.quality", main)
