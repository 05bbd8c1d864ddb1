"""A refined edit: the base model and then the refiner, which runs the whole task again."""

import gc
from collections.abc import Callable

import torch

from sgm import runtime
from sgm.inference.edit import Edit
from sgm.inference.loop import Plan
from sgm.inference.noise import Noise, sequential_noise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.progress import Stopwatch
from sgm.specs import SamplingParams

# Called with False for the base (or turbo) model and then with True for the refiner.
Load = Callable[[bool], Pipeline]


def refined_edit(
    load: Load,
    edit: Edit,
    params: SamplingParams,
    noise: Noise = sequential_noise,
    progress: bool = False,
) -> EditResult:
    """Make an edit with the base, free it, and run the task again with the refiner on the base's
    latents. The seed is set once, before the base (published).

    Args:
        load: keeps no reference to what it returns, or the base stays in memory.
        noise: source of the random draws; the refiner's names begin with `refiner/`.
    """
    with runtime.seeded(params.seed):
        plan, seconds = _base_plan(_quietly(load, False), edit, params, noise, progress)
        release_memory()
        refiner = _quietly(load, True)
        stage = Stopwatch(refiner.networks.device, seconds)
        with refiner.scope():
            plan = refiner.denoise(
                plan.for_refiner(),
                params,
                edit.size,
                lambda name, shape: noise(f"refiner/{name}", shape),
                stage,
                progress,
            )
            with stage("decode"):
                picture = refiner.decode(plan)
            return refiner.finished(refiner.placed(edit), picture, seconds)


def _quietly(load: Load, refiner: bool) -> Pipeline:
    """Load without moving the run's generator on, as building networks may draw numbers."""
    with torch.random.fork_rng(devices=[]):
        return load(refiner)


def _base_plan(
    base: Pipeline, edit: Edit, params: SamplingParams, noise: Noise, progress: bool
) -> tuple[Plan, dict[str, float]]:
    """The base's denoised plan, and its seconds by stage. In a function of its own, so that its
    end drops every reference to the base."""
    stage = Stopwatch(base.networks.device)
    with base.scope():
        with stage("encode"):
            plan = base.prepare(edit, noise)
        plan = base.denoise(plan, params, edit.size, noise, stage, progress)
    return plan, stage.seconds


def release_memory() -> None:
    """Give back what is no longer referenced: modules are in reference cycles with their hooks and
    states, and CUDA keeps freed memory for itself until it is told."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
