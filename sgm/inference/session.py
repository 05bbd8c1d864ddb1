"""Record a picture once, edit it many times: every edit runs sparse passes only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from sgm import runtime
from sgm.inference.edit import check_sizes
from sgm.inference.inpainting import Inpainting
from sgm.inference.loop import Kept, Plan
from sgm.inference.nan_check import NanCheck
from sgm.inference.networks import recording, sparse, with_mask
from sgm.inference.noise import NamedNoise, Noise, noise_inside
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.prefetch import kept_of
from sgm.inference.progress import Progress, Stopwatch, each
from sgm.inference.prompt_shift import record_shift
from sgm.inference.sdedit import SDEdit
from sgm.inference.stores import DeviceStore, Store
from sgm.inference.track import DECODER, ENCODER, Track
from sgm.modules.diffusionmodules.sampling import Denoise
from sgm.sparse.masks import MaskPyramid, cover
from sgm.sparse.recording import Recording, narrow
from sgm.sparse.sparsify import handle_of
from sgm.specs import SamplingParams
from sgm.words import RecordingMemory, Task

LATENTS = "latents"
# Given the bytes of all recordings together; where to keep them.
MakeStore = Callable[[int], Store]


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
    have recordings of their own (see `sgm.inference.track`), which are made when first needed. An
    edit has its own prompt: the text's keys and values are computed for it, and a few full passes
    say how everything else would have been recorded under it (see `sgm.inference.prompt_shift`).

    Args:
        pipeline: sparse, with preset `fast`; used by one thing at a time.
        picture: [3, H, W] in [-1, 1], sides multiples of 64.
        params: base prompt, seed, steps and scale of every edit, and the strength of `task`.
        task: for which recordings are made at once.
        make_store: chooses where recordings are kept, given their size in bytes (see
            `sgm.inference.choose_store`); by default on the device.
        noise: source of the session's noise; by default named noise of the seed.
        progress: show bars on stderr, or call this after every step; may be set anew at any time.

    Raises:
        ValueError: the pipeline is not sparse with preset `fast`, the picture's size is wrong, or
            the strength is too small for a step.
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
    ) -> None:
        self._set(pipeline, picture, params, noise, progress)
        with self._scope() as stage:
            dtype = pipeline.recipe.recorded.dtype
            with stage("encode"), recording(self.networks.encoder, dtype=dtype) as encoder:
                self.z = self.networks.encode(picture, self.noise, "init")
            with stage("record"):
                with recording(self.networks.decoder, dtype=dtype) as decoder:
                    self.networks.decode(self.z)
                track = self._track(task, params.strength)
                rest = encoder.size_in_bytes() + decoder.size_in_bytes()
                first = self._record(track, lambda size: make_store(size + rest))
            self.store.put(ENCODER, encoder)
            self.store.put(DECODER, decoder)
            self._put_latents()
        steps = len(track.made)
        self.report = SessionReport(stage.seconds, first, steps, self.store.place)

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
        session.store = store
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

    @contextmanager
    def _scope(self) -> Iterator[Stopwatch]:
        with runtime.seeded(self.params.seed), self.pipeline.scope():
            yield Stopwatch(self.networks.device)

    def _denoiser(self, params: SamplingParams) -> Denoise:
        """Under some prompt; until the next one, sparse passes attend to it. An inpainting network
        is shown all of the picture."""
        size, concat = (self.picture.shape[1], self.picture.shape[2]), None
        if self.networks.reads_mask:
            concat = with_mask(self.z, torch.zeros_like(self.z[:, :1]))
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
        """Whether an edit of this kind has its recordings; if not, the first such edit makes
        them."""
        return self._track(task, strength).name_of_latents in self.store.names()

    def _record(self, track: Track, make_store: MakeStore | None = None) -> int:
        """Make the recordings of a track; bytes of one step.

        Args:
            make_store: given the bytes of all steps; None to use the store that is there.
        """
        handle, size = handle_of(self.networks.unet), 0
        unedited = track.unedited(self.z, self.noise, self._denoiser(self.params), self.solver)
        watch = NanCheck(self.networks.device)
        for step in each(track.made, "recording", self.progress):
            with handle.recording(dtype=track.recorded.dtype) as record:
                watch(step, unedited.full_pass(step))
            if not size:
                size = record.size_in_bytes()
                if make_store is not None:
                    # With room for what one other prompt changes.
                    count = len(track.made) + len(track.steps_of_prompt())
                    self.store = make_store(size * count)
            self.store.put(track.name_of(step), record)
        watch.check(self.pipeline.precision)
        self.store.put(track.name_of_latents, track.kept_latents(unedited))
        self.tracks[track.name] = track
        return size

    def _put_latents(self) -> None:
        latents = Recording()
        latents.values["", "z"] = self.z
        self.store.put(LATENTS, latents)

    def _ready(self, task: Task, strength: float) -> Track:
        """The track of an edit, recorded now if it was not before."""
        track = self._track(task, strength)
        if self.is_recorded(task, strength):
            track.made = track.made_in(self.store.names())
        else:
            with self._scope():
                self._record(track)
        self.tracks[track.name] = track
        return track

    def _prompt_names(self, track: Track, params: SamplingParams) -> dict[int, str]:
        """Store keys of what the prompt of an edit changes, by step; they are there afterwards."""
        words = (params.prompt, params.negative_prompt)
        if words == (self.params.prompt, self.params.negative_prompt):
            return {}
        names = {step: track.name_of_prompt(*words, step) for step in track.steps_of_prompt()}
        if not self.store.names().issuperset(names.values()):
            denoise, watch = self._denoiser(params), NanCheck(self.networks.device)
            latents = track.latents_of(self.store.get(track.name_of_latents))
            unedited = latents or track.unedited(self.z, self.noise, denoise, self.solver)
            unet = self.networks.unet
            record_shift(track, names, self.store, unet, unedited, denoise, watch, self.progress)
            watch.check(self.pipeline.precision)
        return names

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
        recipe = self.pipeline.recipe
        edit = Inpainting(self.picture, mask, recipe.blend)
        track = self._ready(Task.INPAINTING, 1.0)
        params = replace(self.params, prompt=prompt, negative_prompt=negative_prompt)
        return self._edit(
            edit, track, params, lambda kept: edit.from_recording(self.z, recipe, kept), seed
        )

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
        recipe = self.pipeline.recipe
        edit = SDEdit(self.picture, edited, strength, drawing, recipe.blend)
        track = self._ready(Task.SDEDIT, strength)
        return self._edit(
            edit,
            track,
            replace(self.params, prompt=prompt, negative_prompt=negative_prompt),
            lambda kept: edit.from_recording(self.networks, self.z, recipe, self.noise, kept),
            seed,
        )

    def _edit(
        self,
        edit: Inpainting | SDEdit,
        track: Track,
        params: SamplingParams,
        prepare: Callable[[Kept], Plan],
        seed: int | None,
    ) -> EditResult:
        with self._scope() as stage:
            with stage("record"):
                of_prompt = self._prompt_names(track, params)
            with kept_of(track, of_prompt, self.store, self.networks.device) as kept:
                with stage("encode"):
                    plan = replace(prepare(kept), concat=edit.concat(self.networks, self.noise))
                noise = noise_inside(plan.inside, seed, self.noise)
                done = self.pipeline.denoise(plan, params, edit.size, noise, stage, self.progress)
                with stage("decode"):
                    picture = self.pipeline.decode(done)
        return EditResult(edit.finish(picture, self.pipeline.recipe), stage.seconds, edit.ratio)

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
        if not changed.any():
            return
        picture = torch.where(changed, result.image * 2 - 1, self.picture)
        masks = cover(self.pipeline.recipe.inpainting(changed), changed)
        networks = self.networks
        with self._scope():
            z = self._update(
                ENCODER,
                networks.encoder,
                masks,
                lambda: networks.encode(picture, self.noise, "init"),
            )
            latent_mask = masks[z.shape[2], z.shape[3]].to(z.device)
            self.z = torch.where(latent_mask, z, self.z)
            self._update(DECODER, networks.decoder, masks, lambda: networks.decode(self.z))
            denoise, updated = self._denoiser(self.params), {ENCODER, DECODER, LATENTS}
            for track in self.tracks.values():
                updated |= {track.name_of_latents, *map(track.name_of, track.made)}
                unedited = track.unedited(self.z, self.noise, denoise, self.solver)
                for step in each(track.made, "updating", self.progress):
                    run = partial(unedited.full_pass, step)
                    self._update(track.name_of(step), networks.unet, masks, run)
                self.store.put(track.name_of_latents, track.kept_latents(unedited))
            self._put_latents()
            for name in self.store.names() - updated:
                self.store.forget(name)
        self.picture = picture

    def _update(
        self, name: str, network: nn.Module, masks: MaskPyramid, run: Callable[[], Tensor]
    ) -> Tensor:
        """Bring one kept recording up to date by a sparse pass that writes into it; what the pass
        returns."""
        handle_of(network).use(self.store.get(name))
        with sparse(network, masks, update=True):
            out = run()
        dtype = self.pipeline.recipe.recorded.dtype
        self.store.put(name, narrow(handle_of(network).record, dtype))
        return out
