"""How far a run is, how long its stages took, and whether its latents are numbers."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from sgm.errors import UserError
from sgm.words import Precision

NEVER = 2**31 - 1  # the number of a step that never comes


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a run that is done.

    Attributes:
        stage: `recording`, `sampling` or `updating`.
        number, count: of the step, from 1, and of how many.
        estimate: when sampling, the latents as they would be at the end [1, C, h, w].
    """

    stage: str
    number: int
    count: int
    estimate: Tensor | None = None


# Whether to show bars on stderr; or what to call after every step. What that raises ends the run.
Progress = bool | Callable[[Step], None]
# To be called as a step is done, with an estimate if there is one.
Done = Callable[[Tensor | None], None]


@contextmanager
def told(stage: str, count: int, progress: Progress) -> Iterator[Done]:
    """Scope of a stage with so many steps."""
    silent = callable(progress) or not progress
    number = 0
    with tqdm(total=count, desc=stage, unit="step", disable=silent) as bar:

        def done(estimate: Tensor | None = None) -> None:
            nonlocal number
            number += 1
            bar.update()
            if callable(progress):
                progress(Step(stage, number, count, estimate))

        yield done


def each(steps: Sequence[int], stage: str, progress: Progress) -> Iterator[int]:
    """The steps of a stage, each told as done when the next one is asked for."""
    with told(stage, len(steps), progress) as done:
        for step in steps:
            yield step
            done(None)


@dataclass
class Stopwatch:
    """Seconds by stage, summed, with the device synchronised at the edges."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._synchronise()
        began = time.perf_counter()
        yield
        self._synchronise()
        elapsed = time.perf_counter() - began
        self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class NanCheck:
    """Looks at the latents of every step without making their device wait: the number of the first
    step with a bad value stays there until `check` reads it."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), NEVER, dtype=torch.int32, device=device)
        self._steps = 0

    def __call__(self, step: int, x: Tensor) -> None:
        """Look at latents of any shape, of a step counted from 0."""
        bad = (~x.isfinite().all()).int()
        # `torch.where` with numbers would copy them to the device, and wait for that.
        self._first = torch.minimum(self._first, NEVER - bad * (NEVER - step))
        self._steps = max(self._steps, step + 1)

    def check(self, precision: Precision) -> None:
        """Wait for the device; UserError that names the step from which on there were values that
        are no numbers. On the meta device, where passes are counted, there is nothing to see."""
        first = NEVER if self._first.is_meta else int(self._first)
        if first == NEVER:
            return
        remedy = "use a smaller --scale, or check the checkpoint"
        if precision is not Precision.FP32:
            remedy = f"{remedy}, or use --precision fp32"
        raise UserError(
            f"The latents are no numbers from step {first + 1} of {self._steps} on, at "
            f"{precision}; {remedy}."
        )
