"""Schedules: which noise levels a run of few or many steps visits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sgm.specs import DEFAULT_STEPS, LCM_STEPS, TURBO_STEPS, SamplingParams, Turbo
from sgm.words import Sampler, Spacing

# (number of steps) -> sigmas [steps + 1], float32, descending, ending in 0
Discretization = Callable[[int], Tensor]

TRAINING_STEPS = 1000
TURBO_INDICES = (0, 100, 200, 300, -1)


def img2img_schedule(sigmas: Tensor, strength: float) -> Tensor:
    """The end of a schedule, for a run that starts from a picture (SDEdit, Meng et al., 2022).

    Args:
        sigmas: [n], descending to its final 0.
        strength: the part of the list to keep, 0 to 1; ValueError for another.

    Returns:
        The last `int(strength * n)` entries, at least one; a single entry (the 0) means no step.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"Strength must be from 0 to 1, not {strength}.")
    return sigmas[-max(int(strength * len(sigmas)), 1) :]


def turbo_schedule(sigmas: Tensor, indices: Sequence[int] = TURBO_INDICES) -> Tensor:
    """The few entries of a long schedule that a distilled model was trained for.

    Args:
        sigmas: of all training steps with the final 0 [n], descending; possibly cut by
            `img2img_schedule`, so that the entries are lower, and perhaps fewer.
        indices: which entries; ValueError unless they rise from 0 or more to a final -1.
    """
    *inner, last = indices
    if last != -1 or any(i < 0 for i in inner) or inner != sorted(set(inner)):
        raise ValueError(f"Turbo indices must rise from 0 or more and end in -1, not {indices}.")
    reached = [i for i in inner if i < len(sigmas) - 1]
    return sigmas[[*reached, len(sigmas) - 1]]


@dataclass(frozen=True)
class Schedule:
    """The levels of a run.

    Attributes:
        whole: makes them at strength 1.
        indices: which of them a distilled model was trained for; None for all.
    """

    whole: Callable[[Discretization], Tensor]
    indices: tuple[int, ...] | None = None

    def sigmas(self, discretization: Discretization, strength: float = 1.0) -> Tensor:
        """The levels of a run: float32 [steps + 1] on the CPU, descending to 0.

        Args:
            discretization: makes the schedule of n steps.
            strength: the part of it to run, 0 to 1; below 1 for a run that starts from a picture.

        Raises:
            ValueError: `strength` or the number of steps is out of range.
        """
        sigmas = img2img_schedule(self.whole(discretization), strength)
        return sigmas if self.indices is None else turbo_schedule(sigmas, self.indices)


def published_steps(steps: int) -> Schedule:
    """So many steps, spread over the training steps as published."""
    return Schedule(lambda discretization: discretization(steps))


def trailing_steps(steps: int) -> Schedule:
    """So many steps at equal distances, counted from the last training step (Lin et al., 2023)."""

    def whole(discretization: Discretization) -> Tensor:
        _check_steps(steps, TRAINING_STEPS)
        width = TRAINING_STEPS / steps
        timesteps = np.round(TRAINING_STEPS - width * np.arange(steps)).astype(int) - 1
        return _at(discretization, timesteps)

    return Schedule(whole)


def lcm_steps(steps: int) -> Schedule:
    """So many of the 50 levels that a latent consistency model was distilled at."""

    def whole(discretization: Discretization) -> Tensor:
        _check_steps(steps, LCM_STEPS)
        trained = np.arange(LCM_STEPS, 0, -1) * (TRAINING_STEPS // LCM_STEPS) - 1
        chosen = np.floor(np.linspace(0, LCM_STEPS, steps, endpoint=False)).astype(int)
        return _at(discretization, trained[chosen])

    return Schedule(whole)


def turbo_steps(indices: tuple[int, ...] = TURBO_INDICES) -> Schedule:
    """The few levels of a distilled model; a strength cuts the long list first."""
    return Schedule(lambda discretization: discretization(TRAINING_STEPS), indices)


def _at(discretization: Discretization, timesteps: np.ndarray) -> Tensor:
    """The levels of training steps, and the final 0."""
    return discretization(TRAINING_STEPS)[[*(TRAINING_STEPS - 1 - timesteps), TRAINING_STEPS]]


def _check_steps(steps: int, most: int) -> None:
    if not 1 <= steps <= most:
        raise ValueError(f"Steps must be from 1 to {most}, not {steps}.")


def schedule_of(params: SamplingParams, turbo: Turbo | None) -> Schedule:
    """The levels that a run asks for; those of a turbo run are its model's, and ValueError for more
    steps than it has."""
    steps = params.steps
    if turbo is not None:
        # The first ones and then the end, as the turbo sampler of generative-models counts.
        steps, most = TURBO_STEPS if steps is None else steps, len(turbo.levels)
        if not 1 <= steps <= most:
            raise ValueError(f"A turbo model takes 1 to {most} steps, not {steps}.")
        return turbo_steps((*turbo.levels[:steps], -1))
    steps = DEFAULT_STEPS if steps is None else steps
    if params.spacing is Spacing.TRAILING:
        return trailing_steps(steps)
    return lcm_steps(steps) if params.sampler is Sampler.LCM else published_steps(steps)
