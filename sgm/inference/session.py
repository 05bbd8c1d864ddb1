"""Record a picture once, edit it many times: every edit runs sparse passes only."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sgm import runtime
from sgm.inference.choose_store import MakeStore
from sgm.inference.edit import check_sizes
from sgm.inference.inpainting import Inpainting
from sgm.inference.networks import recording
from sgm.inference.noise import NamedNoise, Noise, noise_inside
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.prefetch import kept_of
from sgm.inference.progress import NanCheck, Progress, Stopwatch, each
from sgm.inference.region import (
    REGION,
    BoundedStore,
    Region,
    check_within,
    region_in,
    size_kept,
)
from sgm.inference.sdedit import SDEdit
from sgm.inference.stores import DeviceStore, Store
from sgm.inference.track import DECODER, ENCODER, LATENTS, Track
from sgm.inference.updates import bring_up_to_date, names_of_prompt
from sgm.modules.diffusionmodules.sampling import Denoise
from sgm.sparse.recording import Recording
from sgm.sparse.sparsify import handle_of
from sgm.specs import SamplingParams
from sgm.words import RecordingMemory, Task


@dataclass
class SessionReport:
    """What making the recordings took.

    Attributes:
        seconds: by stage: `encode`, `record`.
        step_bytes: size of one step's recording.
        steps: how many were recorded; the others are interpolated.
        place: where they are kept.
    """

    seconds: dict[str, float]
    step_bytes: int
    steps: int
    place: RecordingMemory


class EditSession:
    """A picture with its recordings.

    The recordings are made once, under the base prompt of `params` and one noise, at a few steps of
    the schedule; those of the other steps are interpolated. Inpainting and every strength of SDEdit
    have recordings of their own, which are made when first needed. An edit has its own prompt: the
    text's keys and values are computed for it, and a few full passes say how all else would change.

    Args:
        pipeline: sparse, with preset `fast`; used by one thing at a time.
        picture: [3, H, W] in [-1, 1], sides multiples of 64.
        params: base prompt, seed, steps and scale of every edit, and the strength of `task`.
        task: for which recordings are made at once.
        make_store: where recordings are kept, given their size in bytes; by default the device.
        noise: source of the session's noise; by default named noise of the seed.
        progress: show bars on stderr, or call this after every step; may be set anew at any time.
        region: where edits may be, bool [H, W], so that less has to be kept; None for anywhere.

    Raises:
        ValueError: the pipeline is not sparse with preset `fast`, the picture's or the region's
            size is wrong, the region is empty, or the strength is too small for a step.
        UserError: the recordings cannot be kept, or the networks' values are no numbers.
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
        self._set(pipeline, picture, params, noise, progress)
        if region is not None:
            check_sizes({"picture": picture, "region": region})
            self.region = Region.around(region, pipeline.recipe)
        parts: dict[str, Recording] = {}
        with self.scope() as stage:
            with stage("encode"):
                if task is Task.SDEDIT:
                    self.z, parts[ENCODER] = self._recorded_encoding()
                else:  # no edit reads the encoder's
                    self.z = self.networks.encode(picture, self.noise, "init")
            with stage("record"):
                with self._recording(self.networks.decoder) as parts[DECODER]:
                    self.networks.decode(self.z)
                track = self._track(task, params.strength)
                rest = sum(size_kept(self.region, name, part) for name, part in parts.items())
                first = self._record(track, lambda size: make_store(size + rest))
            for name, part in parts.items():
                self.store.put(name, part)
            self.put_latents()
        self.report = SessionReport(stage.seconds, first, len(track.made), self.store.place)

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
        """A session whose recordings are in a store already; arguments as those of the class."""
        session = cls.__new__(cls)
        session._set(pipeline, picture, params, noise, progress)
        session.region = region_in(store, pipeline.recipe)
        session.store = store if session.region is None else BoundedStore(store, session.region)
        latents = store.get(LATENTS).values["", "z"]
        assert isinstance(latents, Tensor)
        session.z = latents
        return session

    def _set(
        self,
        pipeline: Pipeline,
        picture: Tensor,
        params: SamplingParams,
        noise: Noise | None,
        progress: Progress,
    ) -> None:
        check_sizes({"picture": picture})
        if not pipeline.sparse or not pipeline.recipe.hold:
            raise ValueError("A session needs a sparse pipeline with preset fast.")
        self.pipeline, self.networks = pipeline, pipeline.networks
        self.picture, self.params, self.progress = picture, params, progress
        self.noise = NamedNoise(params.seed) if noise is None else noise
        self.solver = pipeline.solver(params, self.noise)
        self.tracks: dict[str, Track] = {}
        self.region: Region | None = None

    def _recorded_encoding(self) -> tuple[Tensor, Recording]:
        """Latents of the picture, and the recording of the encoder; inside a scope."""
        with self._recording(self.networks.encoder) as encoder:
            return self.networks.encode(self.picture, self.noise, "init"), encoder

    def _recording(self, network: nn.Module) -> AbstractContextManager[Recording]:
        """Scope in which the encoder or the decoder is recorded on the picture."""
        recorded, (_, height, width) = self.pipeline.recipe.recorded, self.picture.shape
        return recording(network, dtype=recorded.dtype, largest=recorded.largest((height, width)))

    @contextmanager
    def scope(self) -> Iterator[Stopwatch]:
        """Scope in which its networks run; yields a stopwatch."""
        with runtime.seeded(self.params.seed), self.pipeline.scope():
            yield Stopwatch(self.networks.device)

    def denoiser(self, params: SamplingParams) -> Denoise:
        """Under some prompt; until the next one, sparse passes attend to it. An inpainting network
        is shown all of the picture."""
        size, concat = (self.picture.shape[1], self.picture.shape[2]), None
        if self.networks.reads_mask:
            concat = torch.cat([torch.zeros_like(self.z[:, :1]), self.z], dim=1)
        return self.pipeline.denoiser(params, size, concat)

    def _track(self, task: Task, strength: float) -> Track:
        """The levels of a task, and which of them are recorded.

        Raises:
            ValueError: the strength is too small for a single step.
        """
        discretization, recipe = self.networks.engine.denoiser.discretization, self.pipeline.recipe
        if task is Task.INPAINTING:
            return Track("inpainting", self.solver.sigmas(discretization), recipe.recorded)
        sigmas = self.solver.sigmas(discretization, strength)
        if len(sigmas) < 2:
            raise ValueError(f"Strength {strength} is too small for a single step.")
        return Track(f"sdedit-{strength}", sigmas, recipe.sdedit_recorded, stepped=True)

    def is_recorded(self, task: Task, strength: float) -> bool:
        """Whether an edit of this kind has its recordings; if not, the first makes them."""
        return self._track(task, strength).name_of_latents in self.store.names()

    def _record(self, track: Track, make_store: MakeStore | None = None) -> int:
        """Make the recordings of a track; bytes of one step.

        Args:
            make_store: given the bytes of all steps; None to use the store that is there.
        """
        handle, size = handle_of(self.networks.unet), 0
        unedited = track.unedited(self.z, self.noise, self.denoiser(self.params), self.solver)
        watch = NanCheck(self.networks.device)
        for step in each(track.made, "recording", self.progress):
            with handle.recording(dtype=track.recorded.dtype) as record:
                watch(step, unedited.full_pass(step))
            if not size:
                size = size_kept(self.region, track.name_of(step), record)
                if make_store is not None:
                    # With room for what one other prompt changes.
                    count = len(track.made) + len(track.steps_of_prompt())
                    self._use(make_store(size * count))
            self.store.put(track.name_of(step), record)
        watch.check(self.pipeline.precision)
        self.store.put(track.name_of_latents, track.kept_latents(unedited))
        self.tracks[track.name] = track
        return size

    def _use(self, store: Store) -> None:
        """Keep everything in a store from now on."""
        self.store = store
        if self.region is not None:
            store.put(REGION, self.region.recording())
            self.store = BoundedStore(store, self.region)

    def put_latents(self) -> None:
        """Keep those of the picture."""
        self.store.put(LATENTS, Recording(values={("", "z"): self.z}))

    def _ready(self, task: Task, strength: float) -> Track:
        """The track of an edit, recorded now if it was not before."""
        track = self._track(task, strength)
        if self.is_recorded(task, strength):
            track.made = track.made_in(self.store.names())
        else:
            with self.scope():
                self._record(track)
        if task is Task.SDEDIT and ENCODER not in self.store.names():
            with self.scope():
                self.store.put(ENCODER, self._recorded_encoding()[1])
        self.tracks[track.name] = track
        return track

    def inpaint(
        self, prompt: str, mask: Tensor, negative_prompt: str = "", seed: int | None = None
    ) -> EditResult:
        """Repaint the masked part of the picture.

        Args:
            mask: bool [H, W], True where to repaint, or float with a soft border; not empty.
            seed: of the noise inside the edit; None for that of the recordings.

        Raises:
            ValueError: the mask is empty or of another size.
        """
        edit = Inpainting(self.picture, mask, self.pipeline.recipe.blend)
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
            ValueError: nothing was drawn, the size differs, or the strength makes no step.
        """
        edit = SDEdit(self.picture, edited, strength, drawing, self.pipeline.recipe.blend)
        return self._edit(edit, Task.SDEDIT, strength, (prompt, negative_prompt), seed)

    def _edit(
        self,
        edit: Inpainting | SDEdit,
        task: Task,
        strength: float,
        prompts: tuple[str, str],
        seed: int | None,
    ) -> EditResult:
        recipe = self.pipeline.recipe
        check_within(self.region, edit, recipe)
        track = self._ready(task, strength)
        params = replace(self.params, prompt=prompts[0], negative_prompt=prompts[1])
        edit = self.pipeline.placed(edit)
        with self.scope() as stage:
            with stage("record"):
                of_prompt = names_of_prompt(self, track, params)
            with kept_of(self.z, track, of_prompt, self.store, self.networks.device) as kept:
                with stage("encode"):
                    plan = edit.prepare(self.networks, recipe, self.noise, kept)
                    plan = replace(plan, concat=edit.concat(self.networks, self.noise))
                noise = noise_inside(plan.inside, seed, self.noise)
                done = self.pipeline.denoise(plan, params, edit.size, noise, stage, self.progress)
                with stage("decode"):
                    picture = self.pipeline.decode(done)
            return self.pipeline.finished(edit, picture, stage.seconds)

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
            with self.scope():
                bring_up_to_date(self, picture, changed)
            self.picture = picture
