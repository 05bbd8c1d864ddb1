"""Schedules, denoiser, guidance, solvers and the loops written on them, against the golden data."""

import copy
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgm.config import instantiate_from_config
from sgm.models.diffusion import OpenAIWrapper
from sgm.modules.diffusionmodules.denoiser import DiscreteDenoiser
from sgm.modules.diffusionmodules.denoiser_scaling import EpsScaling
from sgm.modules.diffusionmodules.discretizer import LegacyDDPMDiscretization
from sgm.modules.diffusionmodules.sampling import (
    Denoise,
    Solver,
    SolverState,
    dpmpp_2m_step,
    guidance_batch,
    guided,
    per_sample,
)
from sgm.modules.diffusionmodules.schedules import (
    img2img_schedule,
    published_steps,
    turbo_schedule,
    turbo_steps,
)
from sgm.modules.diffusionmodules.util import timestep_embedding
from tests.conftest import Golden, max_error

SCALING = 1e-6  # golden README: schedules and scalings, relative
TRAJECTORY = 1e-4  # trajectories on toy denoisers, relative to the largest value
EMBEDDING = 1e-6

LoadGolden = Callable[[str], Golden]
FOLDER = "sgm.modules.diffusionmodules"
DENOISER_CONFIG = {
    "target": f"{FOLDER}.denoiser.DiscreteDenoiser",
    "params": {
        "num_idx": 1000,
        "scaling_config": {"target": f"{FOLDER}.denoiser_scaling.EpsScaling"},
        "discretization_config": {"target": f"{FOLDER}.discretizer.LegacyDDPMDiscretization"},
    },
}


@pytest.fixture
def data(golden: LoadGolden) -> Golden:
    return golden("sampling")


@pytest.fixture
def denoiser() -> DiscreteDenoiser:
    return instantiate_from_config(DENOISER_CONFIG)


def relative(result: Tensor, reference: Tensor) -> float:
    """Largest difference relative to the largest value."""
    return max_error(result, reference) / reference.abs().max().item()


def assert_scaling(result: Tensor, reference: Tensor) -> None:
    assert result.dtype == reference.dtype
    torch.testing.assert_close(result, reference, rtol=SCALING, atol=0)


# ---- schedules ----


@pytest.mark.parametrize("steps", [1, 6, 20, 50, 1000])
def test_schedule(data: Golden, steps: int) -> None:
    discretization = LegacyDDPMDiscretization()
    assert_scaling(discretization(steps), data[f"sigmas/{steps}"])
    no_zero = discretization(steps, append_zero=False)
    assert_scaling(no_zero, data[f"sigmas/{steps}_no_zero"])


def test_schedule_cuts_timesteps_as_published() -> None:
    """Of 99 steps the one at 999 - 77 * 999 / 99 = 222 rounds to just below and is cut to 221."""
    discretization = LegacyDDPMDiscretization()
    assert discretization(99)[77] == discretization(1000)[999 - 221]


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_schedule_out_of_range(steps: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to 1000, not {steps}"):
        LegacyDDPMDiscretization()(steps)


@pytest.mark.parametrize("steps", [50, 6])
@pytest.mark.parametrize("strength", [0.01, 0.3, 0.8, 1.0])
def test_img2img_schedule(data: Golden, steps: int, strength: float) -> None:
    reference = data[f"img2img/n{steps}_strength{strength}"]
    assert_scaling(img2img_schedule(LegacyDDPMDiscretization()(steps), strength), reference)


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_strength_out_of_range(strength: float) -> None:
    with pytest.raises(ValueError, match=f"0 to 1, not {strength}"):
        img2img_schedule(torch.tensor([1.0, 0.0]), strength)


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        (1001, [0, 100, 200, 300, 1000]),
        (301, [0, 100, 200, 300]),  # entry 300 is the final one: once, not twice
        (150, [0, 100, 149]),
        (1, [0]),
    ],
)
def test_turbo_schedule_of_a_cut_list(length: int, kept: list[int]) -> None:
    sigmas = torch.arange(length - 1, -1, -1.0)
    assert turbo_schedule(sigmas).tolist() == [length - 1 - i for i in kept]


@pytest.mark.parametrize("indices", [(0, 100), (100, 0, -1), (0, 0, -1), (-2, -1)], ids=str)
def test_turbo_indices_that_do_not_rise(indices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rise"):
        turbo_schedule(torch.arange(1000, -1, -1.0), indices)


# ---- denoiser, guidance, wrapper, embedding ----


def test_denoiser_levels_and_scalings(data: Golden, denoiser: DiscreteDenoiser) -> None:
    assert_scaling(denoiser.sigmas, data["sigmas/1000_no_zero_flipped"])
    index = denoiser.sigma_to_idx(data["denoiser/sigma"])  # three of them are midpoints
    assert torch.equal(index, data["denoiser/index"])
    assert torch.equal(index, data["denoiser/c_noise"])
    level = denoiser.idx_to_sigma(index)
    assert_scaling(level, data["denoiser/sigma_quantised"])
    for name, value in zip(("c_skip", "c_out", "c_in"), EpsScaling()(level), strict=False):
        assert_scaling(value, data[f"denoiser/{name}"])


def tanh_network(x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    assert t.dtype == torch.int64
    shape = (-1, *[1] * (x.ndim - 1))
    return x.tanh() + 0.001 * t.view(shape) + cond["vector"][:, 0].view(shape)


def test_denoiser_forward(data: Golden, denoiser: DiscreteDenoiser) -> None:
    cond = {"vector": data["denoiser/forward_vector"]}
    x, sigma = data["denoiser/forward_x"], data["denoiser/forward_sigma"]
    result = denoiser(tanh_network, x, sigma, cond)
    assert relative(result, data["denoiser/forward_out"]) <= SCALING


def test_denoiser_table_survives_how_a_model_is_built(denoiser: DiscreteDenoiser) -> None:
    assert not denoiser.state_dict() and not list(denoiser.buffers())
    with torch.device("meta"):
        built = instantiate_from_config(DENOISER_CONFIG)
    built.load_state_dict({}, strict=True, assign=True)
    for module in (built, copy.deepcopy(built).to_empty(device="cpu").half()):
        assert torch.equal(module.sigmas, denoiser.sigmas)
        sigma = torch.tensor([[14.0], [0.03]])
        assert torch.equal(module.sigma_to_idx(sigma), denoiser.sigma_to_idx(sigma))


def test_denoiser_keeps_float32_around_a_half_network(denoiser: DiscreteDenoiser) -> None:
    x, sigma = torch.ones(1, 4, 2, 2), torch.ones(1)
    assert denoiser(lambda x, t, cond: x.bfloat16(), x, sigma, {}).dtype == torch.float32


def test_cfg(data: Golden) -> None:
    pair = data["cfg/pair"]
    denoise = guided(lambda network, x, sigma, cond: pair, None, {}, 6.0)
    result = denoise(torch.ones(len(pair) // 2, 1), torch.ones(len(pair) // 2))
    assert relative(result, data["cfg/guided"]) <= SCALING


def test_what_guidance_puts_in_a_batch() -> None:
    x, sigma = torch.randn(2, 4, 3, 3), torch.tensor([1.0, 2.0])
    c, uc = {"vector": torch.ones(2, 5)}, {"vector": torch.zeros(2, 5)}
    calls = []

    def watched(network: None, x: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        calls.append((x, sigma, cond))
        return x

    for scale in (1.0, 6.0):
        guided(watched, None, guidance_batch(c, uc, scale), scale)(x, sigma)
    (alone, level, cond), (batch, levels, both) = calls
    assert alone is x and level is sigma and cond == c
    assert torch.equal(batch, torch.cat([x, x])) and levels.tolist() == [1, 2, 1, 2]
    assert both["vector"][:, 0].tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="not vector and none"):
        guidance_batch(c, {}, 6.0)


def test_wrapper_names_and_keys() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(2, 2)

        def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, y: Tensor) -> Any:
            return x, timesteps, context, y

    wrapper = OpenAIWrapper(Network())
    assert sorted(wrapper.state_dict()) == [
        "diffusion_model.out.bias",
        "diffusion_model.out.weight",
    ]
    x, t, context, y = torch.arange(4.0)
    assert wrapper(x, t, {"vector": y, "crossattn": context}) == (x, t, context, y)


@pytest.mark.parametrize("dim", [320, 64, 7])
def test_timestep_embedding(data: Golden, dim: int) -> None:
    result = timestep_embedding(data["embedding/timesteps"], dim)
    assert max_error(result, data[f"embedding/timestep_{dim}"]) <= EMBEDDING


def test_timestep_embedding_of_integers(data: Golden) -> None:
    result = timestep_embedding(torch.tensor([0, 7, 999]), 320)
    assert max_error(result, data["embedding/timestep_320_int64"]) <= EMBEDDING


@pytest.mark.parametrize(
    ("key", "values", "dim"),
    [
        ("concat_256", "sizes", 256),
        ("concat_8", "sizes", 8),
        ("concat_256_score", "score", 256),
    ],
)
def test_size_embedding(data: Golden, key: str, values: str, dim: int) -> None:
    columns = data[f"embedding/{values}"]
    result = timestep_embedding(columns.flatten(), dim).reshape(len(columns), -1)
    assert max_error(result, data[f"embedding/{key}"]) <= EMBEDDING


# ---- solvers and loops ----


def toy_denoiser(network: None, x: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """The golden toy: D(x, sigma, cond) = x / (1 + sigma^2) * (1 + 0.1 v)."""
    shape = (-1, 1, 1, 1)
    return x / (1 + sigma.view(shape) ** 2) * (1 + 0.1 * cond["vector"][:, 0].view(shape))


def make_solver(data: Golden, name: str) -> Solver:
    steps = data.info["trajectory_steps"]
    return Solver(published_steps(steps) if name == "dpmpp2m" else turbo_steps())


def make_denoise(data: Golden, name: str, scale: float, samples: int) -> Denoise:
    """The guided toy; the turbo sampler is given the conditional tensors on both halves."""
    c = {"vector": data["trajectory/cond_vector"][:samples]}
    uc = c if name == "turbo" else {"vector": data["trajectory/uc_vector"][:samples]}
    return guided(toy_denoiser, None, guidance_batch(c, uc, scale), scale)


@pytest.mark.parametrize("name", ["dpmpp2m", "turbo"])
@pytest.mark.parametrize(
    ("run", "scale", "strength"),
    [
        ("identity", 1.0, 1.0),
        ("cfg6", 6.0, 1.0),
        ("cfg6_strength0.8", 6.0, 0.8),
    ],
    ids=["identity", "cfg6", "cfg6-strength0.8"],
)
def test_trajectory(data: Golden, name: str, run: str, scale: float, strength: float) -> None:
    key = f"trajectory/{name}_{run}"
    solver, denoise = make_solver(data, name), make_denoise(data, name, scale, samples=2)
    sigmas = solver.sigmas(LegacyDDPMDiscretization(), strength)
    assert_scaling(sigmas, data[f"{key}/sigmas"])
    x_init = data["trajectory/x_init"]
    x, state = solver.start(x_init, sigmas), None
    assert torch.equal(x_init, data["trajectory/x_init"])  # the caller's noise is not overwritten
    given, denoised = [], []
    for i in range(len(sigmas) - 1):
        given.append(x)
        x, state = solver.step(denoise, x, i, sigmas, state)
        denoised.append(state.denoised)
    assert relative(torch.stack(given), data[f"{key}/x_given"]) <= TRAJECTORY
    assert relative(torch.stack(denoised), data[f"{key}/denoised"]) <= TRAJECTORY
    assert relative(x, data[f"{key}/final"]) <= TRAJECTORY


@pytest.mark.parametrize("name", ["dpmpp2m", "turbo"])
@pytest.mark.parametrize("kind", ["original", "sige"])
def test_inpainting_loop(data: Golden, name: str, kind: str) -> None:
    """The known region is noised afresh before each step; the recording pass has its own history.

    The product's recording pass needs no step: it drops the result. The golden data stepped it.
    """
    key, x0, keep = f"loops/inpaint_{name}_{kind}", data["loops/x0"], data["loops/keep_mask"]
    solver, denoise = make_solver(data, name), make_denoise(data, name, 6.0, samples=1)
    sigmas = solver.sigmas(LegacyDDPMDiscretization())
    torch.manual_seed(data.info["loops"]["global_seed"])
    x, state, known_state = solver.start(torch.randn_like(x0), sigmas), None, None
    given, returned = [], []
    for i in range(len(sigmas) - 1):
        known = x0 + torch.randn_like(x0) * sigmas[i]
        x = known * keep + (1 - keep) * x
        if kind == "sige":
            stepped, known_state = solver.step(denoise, known, i, sigmas, known_state)
            recorded = denoise(known, per_sample(float(sigmas[i]), known))
            assert torch.equal(recorded, known_state.denoised)
            given.append(known)
            returned.append(stepped)
        given.append(x)
        x, state = solver.step(denoise, x, i, sigmas, state)
        returned.append(x)
    assert relative(torch.stack(given), data[f"{key}/x_given"]) <= TRAJECTORY
    assert relative(torch.stack(returned), data[f"{key}/x_returned"]) <= TRAJECTORY
    assert relative(x, data[f"{key}/final"]) <= TRAJECTORY


@pytest.mark.parametrize("name", ["dpmpp2m", "turbo"])
def test_sdedit_loop(data: Golden, name: str) -> None:
    """Two latents side by side, one solver, two histories."""
    key = f"loops/sdedit_{name}"
    solver, denoise = make_solver(data, name), make_denoise(data, name, 6.0, samples=1)
    sigmas = solver.sigmas(LegacyDDPMDiscretization(), strength=0.8)
    init, edited = (solver.start(data[f"{key}/{part}"], sigmas) for part in ("init", "edited"))
    init_state = edited_state = None
    given = []
    for i in range(len(sigmas) - 1):
        given += [init, edited]
        init, init_state = solver.step(denoise, init, i, sigmas, init_state)
        edited, edited_state = solver.step(denoise, edited, i, sigmas, edited_state)
    assert relative(torch.stack(given), data[f"{key}/x_given"]) <= TRAJECTORY
    assert relative(init, data[f"{key}/final_init"]) <= TRAJECTORY
    assert relative(edited, data[f"{key}/final_edited"]) <= TRAJECTORY


def test_second_order_converges_faster_than_first() -> None:
    """On D(x, sigma) = x / (1 + sigma^2) the exact solution is x ~ sqrt(1 + sigma^2)."""

    def error(steps: int, with_history: bool) -> float:
        sigmas = torch.logspace(1, -1, steps + 1, dtype=torch.float64).tolist()
        x, before = torch.ones(1, dtype=torch.float64), None
        for sigma, following in pairwise(sigmas):
            now = SolverState(x / (1 + sigma**2), sigma)
            x = dpmpp_2m_step(x, now, following, before)
            before = now if with_history else None
        return abs(x.item() - (1.01 / 101) ** 0.5)

    assert error(100, with_history=False) / error(200, with_history=False) < 2.5
    assert error(100, with_history=True) / error(200, with_history=True) > 3.5


def test_start_and_last_step() -> None:
    x, sigmas = torch.full((2, 1), 2.0), torch.tensor([3.0**0.5, 0.0])
    assert Solver(published_steps(1)).start(x, sigmas).flatten().tolist() == pytest.approx(
        [4.0, 4.0]
    )
    levels = []
    result, state = Solver(published_steps(1)).step(
        lambda x, s: levels.append(s) or x - 1, x, 0, sigmas
    )
    assert torch.equal(result, x - 1) and state.sigma == pytest.approx(3.0**0.5)
    assert levels[0].shape == (2,) and levels[0].dtype == torch.float32
