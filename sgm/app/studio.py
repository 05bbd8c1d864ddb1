"""What all users of the page share: the loaded model, its device, the memory for recordings."""

from dataclasses import dataclass, replace

import torch

from sgm.app.budget import Budget
from sgm.app.worker import Job, Worker
from sgm.inference.inpainting import Inpainting
from sgm.inference.pipeline import Pipeline
from sgm.inference.progress import Step
from sgm.specs import SamplingParams

MEASURED_STEPS = 3  # of a dense run, whose others take as long


@dataclass(frozen=True)
class DenseCost:
    """Seconds that a dense run takes.

    Attributes:
        fixed: for text, encoder and decoder.
        step: for each step.
    """

    fixed: float
    step: float

    def seconds(self, steps: int) -> float:
        """Seconds of a run with this many steps."""
        return self.fixed + self.step * steps


class Studio:
    """A loaded model, and what is known of it.

    Args:
        pipeline: sparse, with preset `fast`.
        params: what holds for every edit, such as scale and sampler; prompt and seed play no part.
        model: its family, for the words in a saved file.
        limit: bytes of all recordings together.
        max_pixels: of a picture that is edited; larger ones are made smaller.
    """

    def __init__(
        self, pipeline: Pipeline, params: SamplingParams, model: str, limit: int, max_pixels: int
    ) -> None:
        self.pipeline, self.params, self.model = pipeline, params, model
        self.max_pixels = max_pixels
        self.worker = Worker(str(pipeline.networks.device))
        self.budget = Budget(limit)
        self._dense: dict[tuple[int, int], DenseCost | None] = {}  # None: it waits to be measured

    def dense_seconds(self, size: tuple[int, int], steps: int) -> float | None:
        """What a dense edit of a padded picture of (height, width) would take; None if that is not
        measured yet."""
        cost = self._dense.get(size)
        return None if cost is None else cost.seconds(steps)

    def measure_dense(self, size: tuple[int, int]) -> None:
        """Measure a dense edit of a size when nobody needs the device, once."""
        if size in self._dense:
            return
        self._dense[size] = None
        self.worker.when_idle(lambda job: self._measure(size, job))

    def _measure(self, size: tuple[int, int], job: Job) -> None:
        """Time a few dense steps on a grey picture; the time does not depend on what it shows."""
        mask = torch.zeros(size, dtype=torch.bool)
        mask[: size[0] // 2] = True
        ours = self.pipeline
        dense = Pipeline(ours.networks, ours.precision, False, ours.turbo, ours.recipe)

        def each_step(step: Step) -> None:
            job.check()

        params = replace(self.params, prompt="", negative_prompt="", steps=MEASURED_STEPS)
        took = dense.edit(Inpainting(torch.zeros(3, *size), mask), params, progress=each_step)
        fixed = took.seconds["encode"] + took.seconds["decode"]
        self._dense[size] = DenseCost(fixed, took.seconds["sample"] / MEASURED_STEPS)
