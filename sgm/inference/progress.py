"""How far a run is, and how long its stages took."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm


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
