"""Record a picture once, edit it many times by sparse passes."""

from dataclasses import replace

import torch
from torch import Tensor

from sgm.inference.choose_store import MakeStore
from sgm.inference.edit import check_sizes
from sgm.inference.inpainting import Inpainting
from sgm.inference.noise import Noise, noise_inside
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.progress import Progress
from sgm.inference.recordings import Recordings
from sgm.inference.region import check_within
from sgm.inference.sdedit import SDEdit
from sgm.inference.stores import DeviceStore, Store
from sgm.inference.updates import bring_up_to_date, names_of_prompt
from sgm.specs import SamplingParams
from sgm.words import Task


class EditSession:
    """A picture with its recordings.

    The recordings are made once, under the base prompt of `params` and one noise, at a few steps of
    the schedule; those of the other steps are interpolated. Inpainting and every strength of SDEdit
    have recordings of their own, which are made when first needed. An edit has its own prompt: keys
    and values of its text are computed, and a few full passes under it measure how everything else
    in the recordings changes.

    Args:
        pipeline: sparse, with preset `fast`; used by one thing at a time.
        picture: [3, H, W] in [-1, 1], sides multiples of 64.
        params: base prompt, seed, steps and scale of every edit, and the strength of `task`.
        task: for which recordings are made at once.
        make_store: where recordings are kept, given their size in bytes; by default the device.
        noise: source of the session's noise; by default named noise of the seed.
        progress: show bars on stderr, or call this after every step; may be set anew at any time.
        region: where edits may be, bool [H, W], so that less has to be kept; None for anywhere.

    Attributes:
        report: what making the recordings took.

    Raises:
        ValueError: the pipeline is not sparse with preset `fast`, the picture's or the region's
            size is wrong, or the region is empty.
        UserError: the recordings cannot be kept, the strength leaves no step, or the networks'
            values are no numbers.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        picture: Tensor,
        params: SamplingParams,
        task: Task = Task.INPAINTING,
        make_store: MakeStore = lambda size: DeviceStore(),
        noise: Noise | None = None,
        progress: Progress = False,
        region: Tensor | None = None,
    ) -> None:
        self.recordings, self.progress = Recordings(pipeline, picture, params, noise), progress
        self.report = self.recordings.make(task, make_store, region, progress)

    @classmethod
    def resume(
        cls,
        pipeline: Pipeline,
        picture: Tensor,
        params: SamplingParams,
        store: Store,
        noise: Noise | None = None,
        progress: Progress = False,
    ) -> "EditSession":
        """A session whose recordings are in a store already; it has no `report`. The other
        arguments are those of the class, as they were when the recordings were made."""
        session = cls.__new__(cls)
        session.recordings = Recordings(pipeline, picture, params, noise)
        session.progress = progress
        session.recordings.resume(store)
        return session

    @property
    def picture(self) -> Tensor:
        """What edits start from, [3, H, W] in [-1, 1]."""
        return self.recordings.picture

    def is_recorded(self, task: Task, strength: float) -> bool:
        """Whether an edit of this kind has its recordings; if not, the first makes them."""
        track = self.recordings.track(task, strength)
        return track.name_of_latents in self.recordings.store.names()

    def inpaint(
        self, prompt: str, mask: Tensor, negative_prompt: str = "", seed: int | None = None
    ) -> EditResult:
        """Repaint the masked part of the picture.

        Args:
            mask: bool [H, W], True where to repaint, or float with a soft border; not empty.
            seed: of the noise inside the edit; None for that of the recordings.

        Raises:
            ValueError: the mask is empty or of another size.
            UserError: the edit reaches beyond the region.
        """
        edit = Inpainting(self.picture, mask, self.recordings.pipeline.recipe.blend)
        return self._edit(edit, Task.INPAINTING, 1.0, (prompt, negative_prompt), seed)

    def sdedit(
        self,
        prompt: str,
        edited: Tensor,
        strength: float = 0.8,
        negative_prompt: str = "",
        drawing: Tensor | None = None,
        seed: int | None = None,
    ) -> EditResult:
        """Turn what was drawn on the picture into something in the manner of the model.

        Args:
            edited: the picture with the drawing, [3, H, W] in [-1, 1].
            strength: share of the schedule that is run; the first edit of a strength makes its
                recordings.
            drawing: where it was drawn on, bool [H, W]; None to look for it.
            seed: as for `inpaint`.

        Raises:
            ValueError: nothing was drawn, or the size differs.
            UserError: the strength leaves no step, or the edit reaches beyond the region.
        """
        blend = self.recordings.pipeline.recipe.blend
        edit = SDEdit(self.picture, edited, strength, drawing, blend)
        return self._edit(edit, Task.SDEDIT, strength, (prompt, negative_prompt), seed)

    def _edit(
        self,
        edit: Inpainting | SDEdit,
        task: Task,
        strength: float,
        prompts: tuple[str, str],
        seed: int | None,
    ) -> EditResult:
        recordings, pipeline = self.recordings, self.recordings.pipeline
        recipe = pipeline.recipe
        check_within(recordings.region, edit, recipe)
        params = replace(recordings.params, prompt=prompts[0], negative_prompt=prompts[1])
        edit, networks, fixed = pipeline.placed(edit), pipeline.networks, recordings.noise
        with recordings.scope() as stage:
            with stage("record"):
                track = recordings.ready(task, strength, self.progress)
                of_prompt = names_of_prompt(recordings, track, params, self.progress)
            with recordings.kept(track, of_prompt) as kept:
                with stage("encode"):
                    plan = edit.prepare(networks, recipe, fixed, kept)
                    plan = replace(plan, concat=edit.concat(networks, fixed))
                noise = noise_inside(plan.inside, seed, fixed)
                done = pipeline.denoise(plan, params, edit.size, noise, stage, self.progress)
                with stage("decode"):
                    picture = pipeline.decode(done)
            return pipeline.finished(edit, picture, stage.seconds)

    def accept(self, result: EditResult) -> None:
        """Make an edited picture the one that further edits start from. The recordings that were
        used are brought up to date by sparse passes, where the picture has changed; others, and
        what a prompt changes, are made anew when they are needed.

        Raises:
            ValueError: the result is of another size.
        """
        check_sizes({"picture": self.picture, "result": result.image})
        # Compared as results are, where an unedited pixel is exactly this; the way back rounds.
        changed = (result.image != (self.picture + 1) / 2).any(dim=0)
        if changed.any():
            picture = torch.where(changed, result.image * 2 - 1, self.picture)
            with self.recordings.scope():
                bring_up_to_date(self.recordings, picture, changed, self.progress)
