"""Guidance, and solvers: how a sampling run is started and moved on by one step.

The loop is the caller's, who may do between the steps as he likes:

    sigmas = solver.sigmas(discretization, strength)
    x, state = solver.start(noise, sigmas), None
    for i in range(len(sigmas) - 1):
        x, state = solver.step(denoise, x, i, sigmas, state)

Solvers and states are immutable: two latents need two states, not two solvers. Noise levels are
kept on the CPU, where reading one makes no GPU wait.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm.modules.diffusionmodules.denoiser import DiscreteDenoiser, Network
from sgm.modules.diffusionmodules.schedules import Discretization, Schedule, schedule_of
from sgm.specs import SamplingParams, Turbo
from sgm.words import Sampler

Conditioning = Mapping[str, Tensor]
# (x [B, ...], sigma [B] float32) -> guided denoised estimate [B, ...]
Denoise = Callable[[Tensor, Tensor], Tensor]
# (latents x, this step, next level, step before) -> latents at the next level, as `dpmpp_2m_step`
Step = Callable[[Tensor, "SolverState", float, "SolverState | None"], Tensor]
# (noise level, latents [B, ...]) -> standard normal noise like the latents, the same whenever it is
# asked for the same level
Draw = Callable[[float, Tensor], Tensor]


def guidance_batch(c: Conditioning, uc: Conditioning, scale: float) -> dict[str, Tensor]:
    """The conditioning of every step's batch: each tensor [2B, ...], the unconditional half first.
    Of a scale up to 1 there is no guidance, and the batch is `c` [B, ...].

    Raises:
        ValueError: `c` and `uc` have different keys.
    """
    if scale <= 1:
        return dict(c)
    if c.keys() != uc.keys():
        got = " and ".join(", ".join(sorted(cond)) or "none" for cond in (c, uc))
        raise ValueError(f"Guidance needs the same keys with and without prompt, not {got}.")
    return {key: torch.cat([uc[key], c[key]]) for key in c}


def guided(
    denoiser: DiscreteDenoiser, network: Network, batch: Conditioning, scale: float
) -> Denoise:
    """Classifier-free guidance (Ho and Salimans, 2021): u + scale * (c - u), both from one batch.
    Of a scale up to 1 the prompt's estimate alone, at half the cost, which is what few-step models
    were distilled for.

    Args:
        network: called by the denoiser as `network(scaled x, level numbers, batch)`.
        batch: of `guidance_batch`.
    """

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if scale <= 1:
            return denoiser(network, x, sigma, batch)
        pair = denoiser(network, torch.cat([x, x]), torch.cat([sigma, sigma]), batch)
        unconditional, conditional = pair.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return denoise


def per_sample(sigma: float, x: Tensor) -> Tensor:
    """One noise level for every sample of x [B, ...]: float32, shape [B], on the device of x."""
    return torch.full((x.shape[0],), sigma, dtype=torch.float32, device=x.device)


@dataclass(frozen=True, eq=False)
class SolverState:
    """What a multistep solver remembers of a step: its estimate [B, ...] and level."""

    denoised: Tensor
    sigma: float


def dpmpp_2m_step(
    x: Tensor, now: SolverState, sigma_next: float, before: SolverState | None
) -> Tensor:
    """One step of DPM-Solver++(2M) (Lu et al., 2022, algorithm 2), without noise.

    Args:
        x: latents at the level now [B, ...].
        now: their estimate, and the level, above 0.
        sigma_next: the level to go to, below that; at 0 the step ends in the estimate.
        before: the estimate and the level of the step before; None for a first-order step, which is
            DDIM's and Euler's in sigma.

    Returns:
        Latents at `sigma_next` [B, ...].
    """
    if sigma_next == 0:
        return now.denoised
    slope = now.denoised
    if before is not None:
        # Half the ratio of the two steps' lengths in lambda.
        half_ratio = 0.5 * math.log(now.sigma / sigma_next) / math.log(before.sigma / now.sigma)
        slope = now.denoised + half_ratio * (now.denoised - before.denoised)
    ratio = sigma_next / now.sigma
    return ratio * x + (1.0 - ratio) * slope


def euler_step(
    x: Tensor, now: SolverState, sigma_next: float, before: SolverState | None
) -> Tensor:
    """One step of Euler's method in sigma, which is DDIM without noise (Song et al., 2021)."""
    return dpmpp_2m_step(x, now, sigma_next, None)


def lcm_step(draw: Draw) -> Step:
    """Steps of a latent consistency model (Luo et al., 2023): every one jumps to the picture and
    adds new noise of the next level, from `draw`. The boundary term of the paper, which mixes in
    less than 1e-5 of the latents, is left out."""

    def step(x: Tensor, now: SolverState, sigma_next: float, before: SolverState | None) -> Tensor:
        return now.denoised + sigma_next * draw(sigma_next, x) if sigma_next else now.denoised

    return step


@dataclass(frozen=True)
class Solver:
    """Steps of one kind along a schedule.

    The published turbo sampler makes steps of DPM++ 2M along its own schedule: its recorded
    trajectories follow them to 1e-6 relative. Euler's method misses single steps by 2e-3 to 8e-3,
    and no noise is drawn, so it is not the ancestral sampler that the distilled model came with.

    Attributes:
        schedule: the levels of a run.
        move: a step between two of them.
    """

    schedule: Schedule
    move: Step = dpmpp_2m_step

    def sigmas(self, discretization: Discretization, strength: float = 1.0) -> Tensor:
        """The levels of a run; see `Schedule.sigmas`."""
        return self.schedule.sigmas(discretization, strength)

    def start(self, x: Tensor, sigmas: Tensor) -> Tensor:
        """Latents [B, ...] of about unit size, as large as noise is at the first level."""
        return x * torch.sqrt(1.0 + sigmas[0] ** 2)

    def step(
        self, denoise: Denoise, x: Tensor, i: int, sigmas: Tensor, state: SolverState | None = None
    ) -> tuple[Tensor, SolverState]:
        """Move latents from `sigmas[i]` to `sigmas[i + 1]`, with one call of `denoise`.

        Args:
            x: latents at `sigmas[i]` [B, ...]; not changed.
            state: of the step before of the same latents; None for the first.

        Returns:
            Latents at `sigmas[i + 1]` [B, ...], and the state for the next step.
        """
        sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
        now = SolverState(denoise(x, per_sample(sigma, x)), sigma)
        return self.move(x, now, sigma_next, state), now


def solver_of(params: SamplingParams, turbo: Turbo | None, draw: Draw) -> Solver:
    """The solver that a run asks for, along its schedule; `draw` is for one that draws. ValueError
    for a turbo run of more steps than its model has levels."""
    steps = {Sampler.DPMPP2M: dpmpp_2m_step, Sampler.EULER: euler_step, Sampler.LCM: lcm_step(draw)}
    return Solver(schedule_of(params, turbo), steps[params.sampler])
