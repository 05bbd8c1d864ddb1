"""One person's photo, from opening to saving: edits, accepted edits, undo."""

import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sgm.app.budget import Metered
from sgm.app.events import Previews, Shown, Variant, recording_told
from sgm.app.photos import open_photo
from sgm.app.studio import Studio
from sgm.app.worker import Emit, Job
from sgm.cli.outputs import described
from sgm.errors import UserError
from sgm.inference.choose_store import make_store
from sgm.inference.pipeline import EditResult
from sgm.inference.session import EditSession
from sgm.io import imageio
from sgm.io.photos import Photo
from sgm.specs import SamplingParams
from sgm.words import Preset, RunType, Task

SESSION_SEED = 2  # of every recording, whatever the seeds of its edits
MAX_UNDO = 20  # pictures that are kept to go back to


@dataclass(frozen=True)
class Wish:
    """What a person asks for, apart from where.

    Attributes:
        prompt, negative_prompt: what the edit should show, and what not.
        strength: of a drawing's edit: share of the schedule that is run.
        steps: of the whole schedule.
        seeds: one variant for each.
    """

    prompt: str
    negative_prompt: str = ""
    strength: float = 0.8
    steps: int = 50
    seeds: tuple[int, ...] = (1, 2, 3, 4)


class Desk:
    """A person's photo and edits. Everything but `save` is done by the worker's thread, in the
    order in which it was asked for; whatever is asked for, an earlier edit is given up.

    Args:
        studio: what is shared with others.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.photo: Photo | None = None  # with the edits that were accepted
        self.variants: dict[int, Variant] = {}
        self._undo = deque[Photo](maxlen=MAX_UNDO)
        self._accepted: list[str] = []  # how each edit in the picture was made
        self._steps = Wish("").steps  # of the recordings
        self._opening: Job | None = None
        self._edit: Job | None = None

    @property
    def picture(self) -> Image.Image | None:
        """What is edited, RGB; None before a photo is open."""
        return None if self.photo is None else self.photo.image

    def open(self, path: Path, steps: int, emit: Emit) -> Job:
        """Read a photo and record it; what was open before is forgotten.

        Args:
            path: of the file.
            steps: of the edits to come; others make recordings of their own.
        """

        def work(job: Job) -> None:
            photo, before = open_photo(path, self.studio.max_pixels)
            self.studio.budget.drop(self)
            self.photo, self.variants, self._accepted = photo, {}, []
            self._undo.clear()
            job.emit(Shown(photo.image, before))
            self._session(job, steps)

        self.cancel()
        self._opening = self.studio.worker.submit(work, emit)
        return self._opening

    def generate(self, task: Task, paint: Image.Image | None, wish: Wish, emit: Emit) -> Job:
        """Make a variant for every seed.

        Args:
            task: whether the paint marks where to repaint, or is a drawing.
            paint: RGBA; what is not transparent counts. None for nothing.
        """

        def work(job: Job) -> None:
            if self.picture is None:
                raise UserError("There is no photo yet; open one first.")
            paint_here = None if paint is None else paint.resize(self.picture.size)
            layer = np.zeros((1, 1, 4)) if paint_here is None else np.array(paint_here)
            if not layer[..., 3].any():
                raise UserError(
                    "Nothing is painted yet; paint with the brush where the picture should change."
                )
            self.variants = {}
            session = self._session(job, wish.steps)
            for seed in wish.seeds:
                variant = self._variant(job, session, task, layer, wish, seed)
                self.variants[seed] = variant
                job.emit(variant)
            self.studio.budget.settle(self)

        self._give_up_edit()
        self._edit = self.studio.worker.submit(work, emit)
        return self._edit

    def accept(self, seed: int | None, emit: Emit) -> Job:
        """Make a variant the picture that further edits start from.

        Args:
            seed: of the variant; None if there is none.
        """

        def work(job: Job) -> None:
            if seed is None or seed not in self.variants or self.photo is None:
                raise UserError("There is no result to accept; generate one first.")
            variant = self.variants[seed]
            self._undo.append(self.photo)
            self._accepted.append(variant.text)
            now, before = map(imageio.to_bytes, (variant.picture, self.photo.image))
            differs = (now != before).any(dim=0)
            self._move_to(job, self.photo.with_edit(now, differs, blended=True))

        self._give_up_edit()
        return self.studio.worker.submit(work, emit)

    def undo(self, emit: Emit) -> Job:
        """Go back to the picture before the last accepted edit."""

        def work(job: Job) -> None:
            if not self._undo:
                raise UserError("There is no accepted edit to take back.")
            self._accepted.pop()
            self._move_to(job, self._undo.pop())

        self._give_up_edit()
        return self.studio.worker.submit(work, emit)

    def cancel(self) -> None:
        """Give up the edit and the opening of a photo that are not done yet."""
        self._give_up_edit()
        if self._opening is not None:
            self.studio.worker.cancel(self._opening)

    def close(self) -> None:
        """End for a person who has left: stop the edit, and free the recordings."""
        self.cancel()
        self.studio.worker.submit(lambda job: self.studio.budget.drop(self), lambda event: None)

    def save(self, folder: Path) -> Path:
        """Write the picture as PNG with what its file said, and how it was made; its path.

        Raises:
            UserError: there is none.
        """
        if self.photo is None:
            raise UserError("There is no photo yet; open one first.")
        assert self.photo.path is not None  # it was read from a file
        path = folder / f"{self.photo.path.stem}-edited.png"
        self.photo.save(path, "\n\n".join(self._accepted) or None)
        return path

    def _give_up_edit(self) -> None:
        if self._edit is not None:
            self.studio.worker.cancel(self._edit)

    def _session(self, job: Job, steps: int) -> EditSession:
        """The recordings of the picture for edits of so many steps; made if there are none."""
        studio, found = self.studio, self.studio.budget.get(self)
        if found is not None and self._steps == steps:
            return found
        assert self.picture is not None  # one is open
        studio.budget.drop(self)
        picture = imageio.pad_to_multiple(imageio.to_tensor(self.picture))
        params = replace(studio.params, prompt="", seed=SESSION_SEED, steps=steps)
        device = studio.pipeline.networks.device

        def make(size: int) -> Metered:
            studio.budget.make_room(size)
            return Metered(make_store(size, device))

        tell = recording_told(job)
        session = EditSession(studio.pipeline, picture, params, make_store=make, progress=tell)
        self._steps = steps
        studio.budget.put(self, session)
        studio.measure_dense((picture.shape[1], picture.shape[2]))
        return session

    def _variant(
        self, job: Job, session: EditSession, task: Task, layer: np.ndarray, wish: Wish, seed: int
    ) -> Variant:
        """Make one variant, and emit previews while it runs."""
        assert self.picture is not None
        began = time.perf_counter()
        marked = torch.from_numpy(layer[..., 3] > 0)
        preview = Previews(job, session, self.picture, marked, seed)
        session.progress = preview
        mask = imageio.pad_to_multiple(marked)
        words = (wish.prompt, wish.negative_prompt)
        if task is Task.INPAINTING:
            result = session.inpaint(words[0], mask, words[1], seed)
        else:
            drawn = imageio.pad_to_multiple(imageio.to_tensor(_drawn(self.picture, layer)))
            drawn = torch.where(mask, drawn, session.picture)
            result = session.sdedit(words[0], drawn, wish.strength, words[1], mask, seed)
        size = (self.picture.height, self.picture.width)
        picture = imageio.to_picture(imageio.crop_back(result.image, size))
        seconds = time.perf_counter() - began
        dense = self.studio.dense_seconds((mask.shape[0], mask.shape[1]), preview.count)
        return Variant(seed, picture, seconds, dense, self._text(task, wish, seed))

    def _text(self, task: Task, wish: Wish, seed: int) -> str:
        assert self.picture is not None
        params: SamplingParams = replace(
            self.studio.params,
            prompt=wish.prompt,
            negative_prompt=wish.negative_prompt,
            seed=seed,
            steps=wish.steps,
            strength=wish.strength,
        )
        return described(
            params, self.picture.size, self.studio.model, task, RunType.SIGE, Preset.FAST
        )

    def _move_to(self, job: Job, photo: Photo) -> None:
        """Make another picture the one that is edited, and bring the recordings up to date where it
        differs. That is not given up halfway."""
        before, picture = self.picture, photo.image
        self.photo, self.variants = photo, {}
        job.emit(Shown(picture))
        budget, session = self.studio.budget, self.studio.budget.get(self)
        if session is None:
            self._session(job, self._steps)
            return
        differs = torch.from_numpy((np.asarray(before) != np.asarray(picture)).any(-1))
        now = imageio.pad_to_multiple(imageio.to_bytes(picture).float() / 255)
        image = torch.where(imageio.pad_to_multiple(differs), now, (session.picture + 1) / 2)
        session.progress = recording_told(job, check=False)
        try:
            session.accept(EditResult(image, {}))
        except Exception:
            budget.drop(self)  # its recordings may be half of one picture, half of the other
            raise
        budget.settle(self)


def _drawn(picture: Image.Image, layer: np.ndarray) -> Image.Image:
    """A picture with a drawing on it."""
    drawing = Image.fromarray(layer.astype(np.uint8))
    return Image.alpha_composite(picture.convert("RGBA"), drawing).convert("RGB")
