"""Solvers: how a sampling run is scheduled, started and moved on by one step.

There is no loop here. A caller makes `sigmas`, scales its noise with `start`, and for every `i`
below `len(sigmas) - 1` calls `step`; between the steps it may do as it likes (bring back the known
region, call `denoise(other, per_sample(float(sigmas[i]), other))` to record another latent at the
same level, step a second latent along):

    sigmas = solver.sigmas(discretization, strength)
    x, state = solver.start(noise, sigmas), None
    for i in range(len(sigmas) - 1):
        x, state = solver.step(denoise, x, i, sigmas, state)

Solvers and states are immutable and hold nothing else: two latents need two states, not two
solvers. Noise levels are kept on the CPU, where reading one makes no GPU wait; multiplying a GPU
tensor by `sigmas[i]` is fine.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm.modules.diffusionmodules.denoiser import DiscreteDenoiser, Network
from sgm.modules.diffusionmodules.guiders import Conditioning, Guider

# (x [B, ...], sigma [B] float32) -> guided denoised estimate [B, ...]
Denoise = Callable[[Tensor, Tensor], Tensor]
# (number of steps) -> sigmas [steps + 1], float32, descending, ending in 0
Discretization = Callable[[int], Tensor]

TURBO_TRAINING_STEPS = 1000
TURBO_INDICES = (0, 100, 200, 300, -1)


def guided(
    denoiser: DiscreteDenoiser, network: Network, guider: Guider, c: Conditioning, uc: Conditioning
) -> Denoise:
    """Join denoiser, network, guider and the two conditionings into what `Solver.step` calls.

    Args:
        denoiser: called as `denoiser(network, x, sigma, cond)`.
        network: called by the denoiser as `network(scaled x, level numbers, cond)`.
        guider: makes the batch and combines its predictions.
        c: conditional tensors, each of shape [B, ...].
        uc: unconditional tensors with the same keys; give `c` again for a turbo model.
    """
    cond = guider.conditioning(c, uc)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        batch, levels = guider.batch(x, sigma)
        return guider(denoiser(network, batch, levels, cond), sigma)

    return denoise


def prepare_noise_scale(x: Tensor, sigmas: Tensor) -> Tensor:
    """Unit noise at the size it has at the first level: x * sqrt(1 + sigma_0^2).

    Args:
        x: shape [B, ...]. Not changed.
        sigmas: shape [steps + 1].
    """
    return x * torch.sqrt(1.0 + sigmas[0] ** 2)


def per_sample(sigma: float, x: Tensor) -> Tensor:
    """One noise level for every sample of x [B, ...]: float32, shape [B], on the device of x."""
    return torch.full((x.shape[0],), sigma, dtype=torch.float32, device=x.device)


def dpmpp_2m_step(
    x: Tensor,
    denoised: Tensor,
    old_denoised: Tensor | None,
    sigma: float,
    sigma_next: float,
    sigma_prev: float | None,
) -> Tensor:
    """One step of DPM-Solver++(2M) (Lu et al., 2022, algorithm 2), without noise.

    The solution between two levels is an exponential integral of the denoised estimate in
    lambda = -log(sigma). Without history the estimate is taken as constant (first order, the same
    as DDIM and as Euler's method in sigma), with it as linear through the last two estimates.

    Args:
        x: latents at `sigma`, shape [B, ...].
        denoised: estimate at `sigma`, shape [B, ...].
        old_denoised: estimate at `sigma_prev`, shape [B, ...], or None for a first-order step.
        sigma: the level now, above 0.
        sigma_next: the level to go to, below `sigma`. At 0 lambda is infinite and the first-order
            step ends in `denoised`, which is what is returned, with history too.
        sigma_prev: the level of `old_denoised`, above `sigma`; None without it.

    Returns:
        Latents at `sigma_next`, shape [B, ...].
    """
    if sigma_next == 0:
        return denoised
    slope = denoised
    if old_denoised is not None and sigma_prev is not None:
        # Half the ratio of the two steps' lengths in lambda.
        half_ratio = 0.5 * math.log(sigma / sigma_next) / math.log(sigma_prev / sigma)
        slope = denoised + half_ratio * (denoised - old_denoised)
    ratio = sigma_next / sigma
    return ratio * x + (1.0 - ratio) * slope


def img2img_schedule(sigmas: Tensor, strength: float) -> Tensor:
    """The end of a schedule, for a run that starts from a picture (SDEdit, Meng et al., 2022).

    Args:
        sigmas: shape [n], descending to its final 0.
        strength: the part of the list to keep, 0 to 1.

    Returns:
        The last `int(strength * n)` entries, at least one; a single entry (the 0) means no step.

    Raises:
        ValueError: `strength` is out of range.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"Strength must be from 0 to 1, not {strength}.")
    return sigmas[-max(int(strength * len(sigmas)), 1) :]


def turbo_schedule(sigmas: Tensor, indices: Sequence[int] = TURBO_INDICES) -> Tensor:
    """The few entries of a long schedule that a distilled model was trained for.

    Args:
        sigmas: the list of all training steps with its final 0, shape [n], descending; possibly
            cut by `img2img_schedule`, which moves the entries to lower sigmas.
        indices: which entries, rising; the last is -1, the final 0.

    Returns:
        Shape [len(indices)], descending. Entries that a cut list does not reach are left out, so
        a low strength makes fewer steps.

    Raises:
        ValueError: `indices` do not rise from 0 or more to a final -1.
    """
    *inner, last = indices
    if last != -1 or any(i < 0 for i in inner) or inner != sorted(set(inner)):
        raise ValueError(f"Turbo indices must rise from 0 or more and end in -1, not {indices}.")
    reached = [i for i in inner if i < len(sigmas) - 1]
    return sigmas[[*reached, len(sigmas) - 1]]


@dataclass(frozen=True, eq=False)
class SolverState:
    """What a multistep solver remembers of the step before: its estimate [B, ...] and level."""

    denoised: Tensor
    sigma: float


class Solver(ABC):
    """A schedule together with DPM++ 2M steps along it.

    The published turbo sampler is such a schedule too: its recorded trajectories follow DPM++ 2M
    to 1e-6 relative. Euler's method misses single steps by 2e-3 to 8e-3, and no noise is drawn, so
    it is not the ancestral sampler that the distilled model came with.
    """

    @abstractmethod
    def sigmas(self, discretization: Discretization, strength: float = 1.0) -> Tensor:
        """The levels of a run.

        Args:
            discretization: makes the schedule of n steps.
            strength: the part of it to run, 0 to 1; below 1 for a run that starts from a picture.

        Returns:
            float32 on the CPU, shape [steps + 1], descending to 0.

        Raises:
            ValueError: `strength` or the number of steps is out of range.
        """

    def start(self, x: Tensor, sigmas: Tensor) -> Tensor:
        """Latents [B, ...] of about unit size, scaled to the first level."""
        return prepare_noise_scale(x, sigmas)

    def step(
        self,
        denoise: Denoise,
        x: Tensor,
        i: int,
        sigmas: Tensor,
        state: SolverState | None = None,
    ) -> tuple[Tensor, SolverState]:
        """Move latents from `sigmas[i]` to `sigmas[i + 1]`, with one call of `denoise`.

        Args:
            denoise: `(x, sigma [B] float32) -> estimate`, guidance included.
            x: latents at `sigmas[i]`, shape [B, ...]. Not changed.
            i: number of the step, 0 to len(sigmas) - 2.
            sigmas: as returned by `sigmas`.
            state: as returned by the step before of the same latents; None for the first.

        Returns:
            Latents at `sigmas[i + 1]`, shape [B, ...], and the state for the next step.
        """
        sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
        denoised = denoise(x, per_sample(sigma, x))
        old_denoised, sigma_prev = (None, None) if state is None else (state.denoised, state.sigma)
        x_next = dpmpp_2m_step(x, denoised, old_denoised, sigma, sigma_next, sigma_prev)
        return x_next, SolverState(denoised, sigma)


@dataclass(frozen=True)
class DPMPP2M(Solver):
    """DPM++ 2M over `steps` levels of the whole schedule."""

    steps: int = 50

    def sigmas(self, discretization: Discretization, strength: float = 1.0) -> Tensor:
        """See `Solver.sigmas`."""
        return img2img_schedule(discretization(self.steps), strength)


@dataclass(frozen=True)
class TurboSubstep(Solver):
    """DPM++ 2M over the few levels of a distilled model; a strength cuts the long list first."""

    indices: tuple[int, ...] = TURBO_INDICES

    def sigmas(self, discretization: Discretization, strength: float = 1.0) -> Tensor:
        """See `Solver.sigmas`."""
        cut = img2img_schedule(discretization(TURBO_TRAINING_STEPS), strength)
        return turbo_schedule(cut, self.indices)


def turbo_solver(steps: int, levels: Sequence[int] = TURBO_INDICES[:-1]) -> TurboSubstep:
    """The first `steps` of some levels and then the end, as the turbo sampler of generative-models
    counts its steps.

    Raises:
        ValueError: there are fewer levels, or no step.
    """
    if not 1 <= steps <= len(levels):
        raise ValueError(f"A turbo model takes 1 to {len(levels)} steps, not {steps}.")
    return TurboSubstep((*levels[:steps], -1))
