"""The unedited picture at the noise levels of a run: what surrounds an edit, and is recorded.

Every source answers two questions about a step: which latents the unedited picture has there, and
what a full pass does with them. The sampling loop puts the latents back around the edit, and
records the full passes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sgm.inference.noise import Noise
from sgm.modules.diffusionmodules.sampling import Denoise, Solver, SolverState


class Unedited(ABC):
    """Latents of the unedited picture at the steps of a run."""

    @abstractmethod
    def latents(self, step: int) -> Tensor | None:
        """Latents before a step [1, C, h, w]; None where they are not known."""

    @abstractmethod
    def full_pass(self, step: int) -> Tensor:
        """Run the network in full on the latents before a step, in the scope that the caller has
        opened; the estimate, or the latents after the step, [1, C, h, w]."""

    def result(self) -> Tensor | None:
        """Latents after the last step [1, C, h, w]; None where none are put back then."""
        return None


class KnownNoise(Unedited):
    """The picture with noise that is known for every step. With one noise at all levels, what is
    recorded changes smoothly from level to level. No latents are put back after the last step,
    since the decoded picture is put into the input.

    Args:
        z: scaled latents of the picture [1, C, h, w].
        draw: the noise of a step, of the same shape.
        sigmas: levels of the run [steps + 1].
        denoise: what a full pass calls.
    """

    def __init__(
        self, z: Tensor, draw: Callable[[int], Tensor], sigmas: Tensor, denoise: Denoise
    ) -> None:
        self.z, self.draw, self.denoise = z, draw, denoise
        self.sigmas = sigmas.to(z.device)

    def latents(self, step: int) -> Tensor:
        return self.z + self.draw(step) * self.sigmas[step]

    def full_pass(self, step: int) -> Tensor:
        return self.denoise(self.latents(step), self.sigmas[step].expand(len(self.z)))


def fresh_noise(noise: Noise, z: Tensor) -> Callable[[int], Tensor]:
    """A new noise of the shape of z for every step, called `step/<number>` (published): drawn when
    a step begins, and read again by its full pass."""
    return lru_cache(1)(lambda step: noise(f"step/{step}", z.shape).to(z))


class SteppedAlong(Unedited):
    """The picture noised once and denoised for itself, in steps from one level to a later one.

    Args:
        start: its latents at the first level [1, C, h, w].
        made: the steps at which it stops, rising from 0; the last full pass ends in the result.
        sigmas: levels of the run [steps + 1].
        denoise, solver: of the run.
    """

    def __init__(
        self, start: Tensor, made: Sequence[int], sigmas: Tensor, denoise: Denoise, solver: Solver
    ) -> None:
        self.made, self.denoise, self.solver = list(made), denoise, solver
        self._levels = sigmas[[*made, len(sigmas) - 1]]
        self._latents = [start]
        self._state: SolverState | None = None

    def latents(self, step: int) -> Tensor | None:
        """The latents at a step where it stops, or after the last pass; None if it has not come
        there."""
        number = self.made.index(step) if step in self.made else len(self._latents)
        return self._latents[number] if number < len(self._latents) else None

    def full_pass(self, step: int) -> Tensor:
        """One step of the solver; steps are asked for in their order."""
        number = self.made.index(step)
        assert number == len(self._latents) - 1, "each full pass starts where the last ended"
        x, self._state = self.solver.step(
            self.denoise, self._latents[number], number, self._levels, self._state
        )
        self._latents.append(x)
        return x

    def result(self) -> Tensor:
        return self._latents[-1]


@dataclass(frozen=True, eq=False)
class KeptLatents(Unedited):
    """Latents that were kept with their recordings.

    Attributes:
        at: the latents before each recorded step, by its number [1, C, h, w].
        end: the latents after the last step; None where none are put back then.
    """

    at: dict[int, Tensor]
    end: Tensor | None

    def latents(self, step: int) -> Tensor | None:
        return self.at.get(step)

    def full_pass(self, step: int) -> Tensor:
        """Never asked for: the recordings are there."""
        raise AssertionError(f"step {step} was recorded")

    def result(self) -> Tensor | None:
        return self.end


def noised(z: Tensor, draw: Tensor, sigmas: Tensor, solver: Solver) -> Tensor:
    """Latents of a picture z [1, C, h, w] at the first level of a run, as its solver starts."""
    sigma = sigmas[0].to(draw)
    return solver.start((z + draw * sigma) / torch.sqrt(1 + sigma**2), sigmas)
