"""What few-step models need: Euler's and LCM's steps, their noise levels, no guidance.

Every step is compared with that of diffusers' scheduler, from its latents. The schedulers are given
our table of the noise levels, which is in float64; theirs is a product of 1000 numbers in float32.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sgm.config import instantiate_from_config
from sgm.inference.noise import NamedNoise, by_level
from sgm.inference.pipeline import Pipeline
from sgm.modules.diffusionmodules.denoiser import DiscreteDenoiser
from sgm.modules.diffusionmodules.discretizer import LegacyDDPMDiscretization
from sgm.modules.diffusionmodules.sampling import (
    Solver,
    dpmpp_2m_step,
    euler_step,
    guidance_batch,
    lcm_step,
)
from sgm.modules.diffusionmodules.schedules import (
    Schedule,
    lcm_steps,
    published_steps,
    trailing_steps,
)
from sgm.specs import MODELS, SamplingParams
from sgm.words import Precision, Preset, RunType, Sampler, Spacing
from tests.conftest import ROOT, max_error
from tests.diffusers_here import diffusers_or_skip

FOLDER = "sgm.modules.diffusionmodules"
# A step is a handful of float32 operations on either side, with logarithms among them.
ROUNDING = 16 * 2.0**-24
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMED = NamedNoise(5)


def denoiser_of(v: bool, zero: bool) -> DiscreteDenoiser:
    scaling = "VScaling" if v else "EpsScaling"
    schedule = {"target": f"{FOLDER}.discretizer.LegacyDDPMDiscretization"}
    params = {
        "num_idx": 1000,
        "scaling_config": {"target": f"{FOLDER}.denoiser_scaling.{scaling}"},
        "discretization_config": schedule | {"params": {"zero_terminal_snr": zero}},
    }
    return instantiate_from_config(
        {"target": f"{FOLDER}.denoiser.DiscreteDenoiser", "params": params}
    )


def network(x: Tensor, t: Tensor, cond: object = None) -> Tensor:
    """Any function of latents and level will do."""
    return torch.sin(2 * x + t.reshape(-1, 1) / 300) + 0.1 * x


def scheduler_of(name: str, v: bool, zero: bool, denoiser: DiscreteDenoiser) -> object:
    (diffusers,) = diffusers_or_skip()
    common = BETAS | {"prediction_type": "v_prediction" if v else "epsilon"}
    common["rescale_betas_zero_snr"] = zero
    if name == "lcm":  # its boundary term, which fades with the scale of the level, is left out
        scheduler = diffusers.LCMScheduler(**common, timestep_scaling=1e12, clip_sample=False)
    elif name == "euler":
        scheduler = diffusers.EulerDiscreteScheduler(**common, timestep_spacing="trailing")
    else:
        common |= {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
        scheduler = diffusers.DPMSolverMultistepScheduler(**common)
    table = (1 / (1 + denoiser.sigmas.double() ** 2)).clamp(min=2.0**-24)
    scheduler.alphas_cumprod = table.float()
    return scheduler


MOVES = {"euler": euler_step, "dpmpp2m": dpmpp_2m_step}
CASES = [
    (name, steps, v, zero)
    for name in ("euler", "dpmpp2m", "lcm")
    for steps in (1, 2, 4, 8, 15, 23)
    for v, zero in ((False, False), (True, False), (True, True))
]


@pytest.mark.parametrize(("name", "steps", "v", "zero"), CASES)
def test_every_step_is_that_of_diffusers(name: str, steps: int, v: bool, zero: bool) -> None:
    denoiser = denoiser_of(v, zero)
    scheduler = scheduler_of(name, v, zero, denoiser)
    scheduler.set_timesteps(steps)
    draw = by_level(NAMED)
    if name == "lcm":
        solver = Solver(lcm_steps(steps), lcm_step(draw))
    else:
        solver = Solver(trailing_steps(steps), MOVES[name])
    sigmas = solver.sigmas(denoiser.discretization)
    levels = denoiser.sigma_to_idx(sigmas[:-1]).tolist()
    assert [int(t) for t in scheduler.timesteps] == levels

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(network, x, sigma, {})

    x = solver.start(torch.randn(3, 50), sigmas)
    state = None
    # Euler's scheduler works on picture + sigma noise, the others on that scaled to unit size.
    unit = [1.0 if name == "euler" else float((1 + s**2).rsqrt()) for s in sigmas.double()]
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.scale_model_input(x * unit[i], t)
        output = network(theirs, torch.tensor([int(t)]))
        if name == "lcm":
            noise = draw(float(sigmas[i + 1]), x) if i + 1 < steps else None
            previous = diffusers_lcm_step(scheduler, output, t, x * unit[i], noise)
        else:
            previous = scheduler.step(output, t, x * unit[i]).prev_sample
        ours, state = solver.step(denoise, x, i, sigmas, state)
        # Relative to the largest number on the way.
        size = max(float(n.abs().max()) for n in (x, sigmas[i] * output, ours))
        assert max_error(ours, previous / unit[i + 1]) <= ROUNDING * size, i
        x = ours


def diffusers_lcm_step(
    scheduler: object, output: Tensor, t: Tensor, x: Tensor, noise: Tensor | None
) -> Tensor:
    """A step of diffusers with a given noise, which it draws itself."""
    from diffusers.schedulers import scheduling_lcm

    drawn, scheduling_lcm.randn_tensor = scheduling_lcm.randn_tensor, lambda *a, **k: noise
    try:
        return scheduler.step(output, t, x).prev_sample
    finally:
        scheduling_lcm.randn_tensor = drawn


def test_the_boundary_term_that_is_left_out_is_small() -> None:
    (diffusers,) = diffusers_or_skip()
    scheduler = diffusers.LCMScheduler(**BETAS)
    for level in range(19, 1000, 20):
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(level))
        assert float(skip) < 1e-5 and abs(1 - float(out)) < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 30, 50, 333, 999, 1000])
def test_trailing_levels(steps: int) -> None:
    (diffusers,) = diffusers_or_skip()
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    denoiser = denoiser_of(False, False)
    sigmas = trailing_steps(steps).sigmas(denoiser.discretization)
    assert denoiser.sigma_to_idx(sigmas[:-1]).tolist() == [int(t) for t in scheduler.timesteps]
    assert sigmas[-1] == 0 and len(sigmas) == steps + 1


@pytest.mark.parametrize(
    ("steps", "levels"),
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 759, 499, 259]),
        (8, [999, 879, 759, 639, 499, 379, 259, 139]),
    ],
)
def test_lcm_levels(steps: int, levels: list[int]) -> None:
    denoiser = denoiser_of(False, False)
    sigmas = lcm_steps(steps).sigmas(denoiser.discretization)
    assert denoiser.sigma_to_idx(sigmas[:-1]).tolist() == levels


@pytest.mark.parametrize(("kind", "most"), [(trailing_steps, 1000), (lcm_steps, 50)])
def test_steps_out_of_range(kind: Callable[[int], Schedule], most: int) -> None:
    for steps in (0, most + 1):
        with pytest.raises(ValueError, match=f"1 to {most}, not {steps}"):
            kind(steps).sigmas(LegacyDDPMDiscretization())


@pytest.mark.parametrize("kind", [trailing_steps, lcm_steps, published_steps])
def test_strength_cuts_every_schedule(kind: Callable[[int], Schedule]) -> None:
    whole, part = (kind(8).sigmas(LegacyDDPMDiscretization(), s) for s in (1.0, 0.5))
    assert torch.equal(part, whole[-4:])


def test_a_level_has_one_noise() -> None:
    draw, like = by_level(NAMED), torch.zeros(2, 3, dtype=torch.float16)
    first = draw(1.5, like)
    assert draw(1.5, like) is first and first.dtype is torch.float16
    assert not torch.equal(draw(0.5, like), first)


# ---- guidance ----


def test_guidance_up_to_1_is_none() -> None:
    c, uc = {"vector": torch.ones(1)}, {"vector": torch.zeros(1)}
    for scale in (0.0, 0.5, 1.0):
        assert guidance_batch(c, uc, scale) == c
    assert guidance_batch(c, uc, 1.01)["vector"].tolist() == [0, 1]


@pytest.fixture(scope="module")
def pipes() -> dict[str, Pipeline]:
    folder = ROOT / "pretrained"
    kinds = {"original": Preset.PUBLISHED, "sige": Preset.PUBLISHED, "fast": Preset.FAST}
    return {
        name: Pipeline.load(
            MODELS["tiny"],
            RunType.ORIGINAL if name == "original" else RunType.SIGE,
            ROOT / "configs",
            Path(folder),
            torch.device("cpu"),
            Precision.FP32,
            preset=preset,
            progress=False,
        )
        for name, preset in kinds.items()
    }


def edit(pipe: Pipeline, params: SamplingParams, sizes: list[int]) -> Tensor:
    """An inpainting; keeps the sizes of the batches that the network got."""
    from sgm.inference.inpainting import Inpainting

    picture = torch.linspace(-1, 1, 64 * 64).reshape(64, 64).expand(3, 64, 64)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:40, 20:50] = True
    hook = pipe.networks.unet.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(args[0])), with_kwargs=True
    )
    try:
        return pipe.edit(Inpainting(picture, mask), params, NamedNoise(params.seed)).image
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["original", "sige", "fast"])
def test_a_scale_of_1_takes_half_the_batch(name: str, pipes: dict[str, Pipeline]) -> None:
    alone: list[int] = []
    both: list[int] = []
    params = SamplingParams("a horse", steps=3, scale=1.0)
    single = edit(pipes[name], params, alone)
    assert set(alone) == {1}
    double = edit(pipes[name], SamplingParams("a horse", steps=3, scale=1.0 + 1e-6), both)
    assert set(both) == {2} and len(both) == len(alone)
    assert max_error(single, double) < 1e-4


@pytest.mark.parametrize("name", ["original", "sige", "fast"])
@pytest.mark.parametrize("sampler", [Sampler.EULER, Sampler.LCM], ids=str)
def test_few_step_samplers_edit(name: str, sampler: Sampler, pipes: dict[str, Pipeline]) -> None:
    params = SamplingParams("a horse", steps=4, scale=1.0, sampler=sampler)
    first = edit(pipes[name], params, [])
    assert torch.equal(edit(pipes[name], params, []), first)  # the same noise again
    default = edit(pipes[name], SamplingParams("a horse", steps=4, scale=1.0), [])
    assert max_error(first, default) > 1e-3
    if sampler is Sampler.EULER:
        spaced = SamplingParams("a horse", steps=3, scale=1.0, sampler=sampler)
        trailing = SamplingParams(
            "a horse", steps=3, scale=1.0, sampler=sampler, spacing=Spacing.TRAILING
        )
        assert max_error(*(edit(pipes[name], p, []) for p in (spaced, trailing))) > 1e-5
