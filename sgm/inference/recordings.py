"""What is kept of a picture that is edited many times: its latents, and recordings of it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sgm import runtime
from sgm.errors import UserError
from sgm.inference.choose_store import MakeStore
from sgm.inference.edit import check_sizes
from sgm.inference.loop import Kept, KeptSteps
from sgm.inference.networks import recording
from sgm.inference.noise import NamedNoise, Noise
from sgm.inference.pipeline import Pipeline
from sgm.inference.prefetch import Prefetch
from sgm.inference.progress import NanCheck, Progress, Stopwatch, each
from sgm.inference.region import REGION, BoundedStore, Region, region_in, size_kept
from sgm.inference.stores import Store
from sgm.inference.track import DECODER, ENCODER, LATENTS, Track
from sgm.modules.diffusionmodules.sampling import Denoise
from sgm.sparse.recording import Recording
from sgm.specs import SamplingParams
from sgm.words import RecordingMemory, Task


@dataclass
class RecordingReport:
    """What making the recordings took.

    Attributes:
        seconds: by stage: `encode`, `record`.
        step_bytes: bytes that are kept of one step.
        steps: how many steps were recorded; the others are interpolated.
        place: where the recordings are kept.
    """

    seconds: dict[str, float]
    step_bytes: int
    steps: int
    place: RecordingMemory


class Recordings:
    """The recordings of a picture under one prompt and one noise: of the UNet at some steps, of the
    decoder, and for SDEdit of the encoder. They are made by `make`, or taken from a store by
    `resume`; the attributes `z` and `store` are there after that.

    Args:
        pipeline: sparse, with preset `fast`.
        picture: [3, H, W] in [-1, 1], sides multiples of 64.
        params: base prompt, seed, steps and scale.
        noise: None for named noise of the seed.

    Attributes:
        z: scaled latents of the picture [1, C, h, w].
        store: where the recordings are kept.
        region: where edits may be; None for anywhere.
        tracks: by name, those that edits have used: they are brought up to date with an accepted
            edit.

    Raises:
        ValueError: the pipeline is not sparse with preset `fast`, or the picture's size is wrong.
    """

    def __init__(
        self, pipeline: Pipeline, picture: Tensor, params: SamplingParams, noise: Noise | None
    ) -> None:
        check_sizes({"picture": picture})
        if not pipeline.sparse or not pipeline.recipe.hold:
            raise ValueError("A session needs a sparse pipeline with preset fast.")
        self.pipeline, self.networks = pipeline, pipeline.networks
        self.picture, self.params = picture, params
        self.size = (picture.shape[1], picture.shape[2])
        self.noise = NamedNoise(params.seed) if noise is None else noise
        self.solver = pipeline.solver(params, self.noise)
        self.tracks: dict[str, Track] = {}
        self.region: Region | None = None

    def make(
        self, task: Task, make_store: MakeStore, region: Tensor | None, progress: Progress
    ) -> RecordingReport:
        """Make the recordings of a task.

        Args:
            make_store: the store for so many bytes.
            region: where edits may be, bool [H, W]; None for anywhere.

        Raises:
            ValueError: the region is empty or of another size.
            UserError: there is no room, the strength leaves no step, or the networks' values are
                no numbers.
        """
        if region is not None:
            check_sizes({"picture": self.picture, "region": region})
            self.region = Region.around(region, self.pipeline.recipe)
        track, parts = self.track(task, self.params.strength), dict[str, Recording]()
        with self.scope() as stage:
            with stage("encode"):
                if task is Task.SDEDIT:
                    self.z, parts[ENCODER] = self._recorded_encoding(track)
                else:  # no edit reads the encoder's
                    self.z = self.networks.encode(self.picture, self.noise, "init")
            with stage("record"):
                with self.recording_of(self.networks.decoder, track) as parts[DECODER]:
                    self.networks.decode(self.z)
                rest = sum(size_kept(self.region, name, part) for name, part in parts.items())
                first = self._record(track, progress, lambda size: make_store(size + rest))
            for name, part in parts.items():
                self.store.put(name, part)
            self.put_latents()
        return RecordingReport(stage.seconds, first, len(track.made), self.store.place)

    def resume(self, store: Store) -> None:
        """Use the recordings of the picture that are in a store."""
        self.region = region_in(store, self.pipeline.recipe)
        self.store = store if self.region is None else BoundedStore(store, self.region)
        latents = store.get(LATENTS).values["", "z"]
        assert isinstance(latents, Tensor)
        self.z = latents

    @contextmanager
    def scope(self) -> Iterator[Stopwatch]:
        """Scope in which the networks run; yields a stopwatch."""
        with runtime.seeded(self.params.seed), self.pipeline.scope():
            yield Stopwatch(self.networks.device)

    def recording_of(self, network: nn.Module, track: Track) -> AbstractContextManager[Recording]:
        """Scope in which a network is recorded, in the precision of a track; of the encoder and the
        decoder in int8 without their largest maps."""
        largest = None if network is self.networks.unet else track.recorded.largest(self.size)
        return recording(network, dtype=track.recorded.dtype, largest=largest)

    def denoiser(self, params: SamplingParams, track: Track) -> Denoise:
        """The guided estimate under the prompts of `params`. Until the next one is made, sparse
        passes attend to these prompts. An inpainting network is told that all of the picture is
        masked, as in every SDEdit, or for inpainting, whose masks are not known, that nothing is.
        """
        concat = None
        if self.networks.reads_mask and track.stepped:
            whole = torch.ones(self.size, dtype=torch.bool, device=self.picture.device)
            concat = self.networks.masked(self.picture, whole, self.noise)
        elif self.networks.reads_mask:
            concat = torch.cat([torch.zeros_like(self.z[:, :1]), self.z], dim=1)
        return self.pipeline.denoiser(params, self.size, concat)

    def track(self, task: Task, strength: float) -> Track:
        """The noise levels of a task, and at which steps it is recorded.

        Raises:
            UserError: the strength leaves no step.
        """
        discretization, recipe = self.networks.engine.denoiser.discretization, self.pipeline.recipe
        if task is Task.INPAINTING:
            return Track("inpainting", self.solver.sigmas(discretization), recipe.recorded)
        sigmas = self.solver.sigmas(discretization, strength)
        if len(sigmas) < 2:
            raise UserError(f"Strength {strength} leaves no step; take a larger one or more steps.")
        return Track(f"sdedit-{strength}", sigmas, recipe.sdedit_recorded, stepped=True)

    def ready(self, task: Task, strength: float, progress: Progress) -> Track:
        """The track of an edit, whose recordings are made now if they are not there."""
        track, names = self.track(task, strength), self.store.names()
        if track.name_of_latents in names:
            track.made = track.made_in(names)
        else:
            self._record(track, progress)
        if task is Task.SDEDIT and ENCODER not in names:
            self.store.put(ENCODER, self._recorded_encoding(track)[1])
        self.tracks[track.name] = track
        return track

    @contextmanager
    def kept(self, track: Track, of_prompt: dict[int, str]) -> Iterator[Kept]:
        """Scope with the recordings of a track as an edit reads them.

        Args:
            of_prompt: store keys of what its prompt changes in them, by step.
        """
        of_base = {step: track.name_of(step) for step in track.made}
        latents = track.latents_of(self.store.get(track.name_of_latents))
        with ExitStack() as stack:

            def steps_of(names: dict[int, str]) -> KeptSteps:
                ahead = Prefetch(self.store, names.values(), self.networks.device)
                stack.enter_context(ahead)
                return KeptSteps(lambda step: ahead.get(names[step]), list(names))

            unet = tuple(steps_of(names) for names in (of_base, of_prompt) if names)
            encoder = self.store.get(ENCODER) if track.stepped else None
            yield Kept(self.z, unet, latents, encoder, self.store.get(DECODER))

    def put_latents(self) -> None:
        """Put the latents of the picture into the store."""
        self.store.put(LATENTS, Recording(values={("", "z"): self.z}))

    def _recorded_encoding(self, track: Track) -> tuple[Tensor, Recording]:
        """Latents of the picture, and the recording of the encoder; inside a scope."""
        with self.recording_of(self.networks.encoder, track) as encoder:
            return self.networks.encode(self.picture, self.noise, "init"), encoder

    def _record(self, track: Track, progress: Progress, make_store: MakeStore | None = None) -> int:
        """Make the recordings of a track; returns the bytes that are kept of one step.

        Args:
            make_store: the store for so many bytes; None to use the one that is there.
        """
        size = 0
        denoise = self.denoiser(self.params, track)
        unedited = track.unedited(self.z, self.noise, denoise, self.solver)
        watch = NanCheck(self.networks.device)
        for step in each(track.made, "recording", progress):
            with self.recording_of(self.networks.unet, track) as record:
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
