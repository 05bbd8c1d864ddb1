"""Events of a desk while it works: recordings, previews, results."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from sgm.app.preview import LatentColours
from sgm.app.worker import Job
from sgm.inference.progress import Step
from sgm.inference.session import EditSession
from sgm.io import imageio

BETWEEN = 0.8  # seconds from one preview to the next, at least
PREVIEW_EVERY = 4  # steps


@dataclass(frozen=True, eq=False)
class Shown:
    """The picture that is edited has changed.

    Attributes:
        picture: RGB.
        before: (width, height) of the file, if it was made smaller; else None.
    """

    picture: Image.Image
    before: tuple[int, int] | None = None


@dataclass(frozen=True)
class Recording:
    """A recording is being made, or brought up to date.

    Attributes:
        number, count: of its steps.
        seconds: since its begin.
    """

    number: int
    count: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Preview:
    """A variant as it looks at a step: colours of its latents.

    Attributes:
        seed: of the variant.
        picture: RGB.
        number, count: of the step.
    """

    seed: int
    picture: Image.Image
    number: int
    count: int


@dataclass(frozen=True, eq=False)
class Variant:
    """A result.

    Attributes:
        seed: of the noise in it.
        picture: RGB.
        seconds: that it took.
        dense: seconds that a dense run would have taken; None if that is not known yet.
        text: how it was made, for the file.
    """

    seed: int
    picture: Image.Image
    seconds: float
    dense: float | None
    text: str


class Previews:
    """What is said while a variant is made; ends it when it is given up."""

    def __init__(
        self, job: Job, session: EditSession, picture: Image.Image, marked: Tensor, seed: int
    ) -> None:
        self.job, self.picture, self.marked, self.seed = job, picture, marked, seed
        self.count = 0  # of sampling steps
        self._recording = recording_told(job)
        self._colours: LatentColours | None = None
        self._kept, self._last = session.recordings, time.perf_counter()

    def __call__(self, step: Step) -> None:
        if step.stage != "sampling":
            self._recording(step)
            return
        self.job.check()
        self.count, now = step.count, time.perf_counter()
        due = step.number % PREVIEW_EVERY == 0 and now - self._last >= BETWEEN
        if step.estimate is None or not due or step.number == step.count:
            return
        self._last = now
        if self._colours is None:
            self._colours = LatentColours(self._kept.z, self._kept.picture)
        rough = imageio.crop_back(self._colours(step.estimate), tuple(self.marked.shape))
        shown = torch.where(self.marked, rough, imageio.to_bytes(self.picture) / 255)
        picture = imageio.to_picture(shown)
        self.job.emit(Preview(self.seed, picture, step.number, step.count))


def recording_told(job: Job, check: bool = True) -> Callable[[Step], None]:
    """What is said of recordings.

    Args:
        check: whether they may be given up.
    """
    began = time.perf_counter()

    def tell(step: Step) -> None:
        if check:
            job.check()
        job.emit(Recording(step.number, step.count, time.perf_counter() - began))

    return tell
