"""Record a picture once, edit it many times: every edit runs sparse passes only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sgm import runtime
from sgm.inference.ahead import Ahead
from sgm.inference.between import Between, spread
from sgm.inference.finite import FiniteWatch
from sgm.inference.held import HeldPlan, Kept, held_draw
from sgm.inference.inpainting import Inpainting
from sgm.inference.networks import recording, sparse, state_of
from sgm.inference.noise import NamedNoise, Noise
from sgm.inference.pipeline import EditResult, Pipeline, Stopwatch
from sgm.inference.plan import check_sizes
from sgm.inference.sdedit import SDEdit
from sgm.inference.stores import DeviceStore, Store
from sgm.modules.diffusionmodules.sampling import Denoise
from sgm.sparse.masks import MaskPyramid
from sgm.sparse.recording import Recording
from sgm.specs import RecordingMemory, SamplingParams

ENCODER, DECODER, LATENTS = "encoder", "decoder", "latents"
# Given the bytes of all recordings together; where to keep them.
MakeStore = Callable[[int], Store]


def step_name(remaining: int) -> str:
    """The name of the recording of a step, by how many steps remain from it on."""
    return f"unet-{remaining:04d}"


@dataclass
class SessionReport:
    """What making the recordings took.

    Attributes:
        seconds: by stage: `encode`, `record`.
        step_bytes: size of one step's recording.
        steps: how many were recorded; the others lie between these.
        place: where they are kept.
    """

    seconds: dict[str, float]
    step_bytes: int
    steps: int
    place: RecordingMemory


class EditSession:
    """A picture with its recordings.

    The recordings are made once, under the base prompt of `params` and one fixed noise, at every
    few steps (`refresh` of the pipeline's recipe; see `sgm.inference.between`). An edit
    has its own prompt: the text's keys and values are computed for it, everything else that is
    read around the edit is as recorded.

    Args:
        pipeline: sparse, with preset `fast`; used by one thing at a time.
        picture: [3, H, W] in [-1, 1], sides multiples of 64.
        params: base prompt, seed, steps and scale of every edit; its `strength` plays no part.
        strength: the largest that an edit may have; 1 allows inpainting.
        make_store: chooses where recordings are kept, given their size in bytes (see
            `sgm.inference.places`); by default on the device.
        noise: source of the session's noise; by default named noise of the seed.
        progress: show bars on stderr.

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
        strength: float = 1.0,
        make_store: MakeStore = lambda size: DeviceStore(),
        noise: Noise | None = None,
        progress: bool = False,
    ) -> None:
        self._set(pipeline, picture, params, strength, noise, progress)
        self.made = spread(self.steps, pipeline.recipe.refresh)
        with self._scope() as stage:
            with stage("encode"), recording(self.networks.encoder) as encoder:
                self.z = self.networks.encode(picture, self.noise, "init")
            with stage("record"):
                report = self._record(make_store, encoder)
        self.report = replace(report, seconds=stage.seconds)

    @classmethod
    def resume(
        cls,
        pipeline: Pipeline,
        picture: Tensor,
        params: SamplingParams,
        strength: float,
        store: Store,
        noise: Noise | None = None,
        progress: bool = False,
    ) -> "EditSession":
        """A session whose recordings are in a store already; arguments as those of the class."""
        session = cls.__new__(cls)
        session._set(pipeline, picture, params, strength, noise, progress)
        session.store, names = store, store.names()
        session.made = [n for n in range(session.steps) if session._name(n) in names]
        latents = store.get(LATENTS).values["", "z"]
        assert isinstance(latents, Tensor)
        session.z = latents
        return session

    def _set(
        self,
        pipeline: Pipeline,
        picture: Tensor,
        params: SamplingParams,
        strength: float,
        noise: Noise | None,
        progress: bool,
    ) -> None:
        check_sizes({"picture": picture})
        if not pipeline.sparse or pipeline.recipe.refresh is None:
            raise ValueError("A session needs a sparse pipeline with preset fast.")
        self.pipeline, self.networks = pipeline, pipeline.networks
        self.picture, self.params, self.strength = picture, params, strength
        self.progress = progress
        self.noise = NamedNoise(params.seed) if noise is None else noise
        self.solver = pipeline.solver(params.steps)
        discretization = self.networks.engine.denoiser.discretization
        self.sigmas = self.solver.sigmas(discretization, strength)
        self.steps = len(self.sigmas) - 1

    @contextmanager
    def _scope(self) -> Iterator[Stopwatch]:
        with runtime.seeded(self.params.seed), self.pipeline.scope():
            yield Stopwatch(self.networks.device)

    def _denoiser(self) -> Denoise:
        """Under the base prompt."""
        return self.pipeline.denoiser(self.params, (self.picture.shape[1], self.picture.shape[2]))

    def _name(self, step: int) -> str:
        """Of the recording of a step, counted from the first."""
        return step_name(self.steps - step)

    def _levels(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, noised picture and level of every recorded step."""
        draw = held_draw(self.noise, self.z)
        for i in tqdm(self.made, desc="recording", unit="step", disable=not self.progress):
            sigma = self.sigmas[i].to(self.z.device)
            yield self._name(i), self.z + draw * sigma, sigma.expand(len(self.z))

    def _record(self, make_store: MakeStore, encoder: Recording) -> SessionReport:
        with recording(self.networks.decoder) as decoder:
            self.networks.decode(self.z)
        denoise = self._denoiser()
        step_bytes, steps = 0, len(self.made)
        if not self.steps:
            raise ValueError(f"Strength {self.strength} is too small for a single step.")
        watch = FiniteWatch(self.networks.device)
        for step, (name, known, sigma) in zip(self.made, self._levels(), strict=True):
            with recording(self.networks.unet) as record:
                watch(step, denoise(known, sigma))
            if not step_bytes:
                step_bytes = record.size_in_bytes()
                rest = encoder.size_in_bytes() + decoder.size_in_bytes()
                self.store = make_store(step_bytes * steps + rest)
            self.store.put(name, record)
        self.store.put(ENCODER, encoder)
        self.store.put(DECODER, decoder)
        self._put_latents()
        watch.check(self.pipeline.precision)
        return SessionReport({}, step_bytes, steps, self.store.place)

    def _put_latents(self) -> None:
        latents = Recording()
        latents.values["", "z"] = self.z
        self.store.put(LATENTS, latents)

    @contextmanager
    def _kept(self) -> Iterator[Kept]:
        """The recordings as an edit reads them."""
        get = self.store.get
        encoder, decoder = get(ENCODER), get(DECODER)
        names = [self._name(step) for step in self.made]
        with Ahead(self.store, names, self.networks.device) as ahead:
            between = Between(lambda step: ahead.get(self._name(step)), self.made)
            yield Kept(lambda remaining: between.at(self.steps - remaining), encoder, decoder)

    def has_steps_of(self, strength: float) -> bool:
        """Whether every noise level of a run of this strength was recorded."""
        wanted = self.solver.sigmas(self.networks.engine.denoiser.discretization, strength)
        return torch.equal(wanted, self.sigmas[-len(wanted) :])

    def inpaint(self, prompt: str, mask: Tensor, negative_prompt: str = "") -> EditResult:
        """Repaint the masked part of the picture.

        Args:
            mask: bool [H, W], True where to repaint; not empty.

        Raises:
            ValueError: the mask is empty or of another size, or only SDEdit was recorded.
        """
        if not self.has_steps_of(1.0):
            raise ValueError("The session was recorded for a strength below 1, so for SDEdit only.")
        edit = Inpainting(self.picture, mask)
        recipe = self.pipeline.recipe
        return self._edit(
            edit, prompt, negative_prompt, lambda kept: edit.held(self.z, recipe, kept)
        )

    def sdedit(
        self, prompt: str, edited: Tensor, strength: float = 0.8, negative_prompt: str = ""
    ) -> EditResult:
        """Turn what was drawn on the picture into something in the manner of the model.

        Args:
            edited: the picture with the drawing, [3, H, W] in [-1, 1].
            strength: share of the schedule that is run, at most the session's; of a turbo model,
                whose levels depend on it, only the session's.

        Raises:
            ValueError: nothing was drawn, the size differs, or the strength's steps were not
                recorded.
        """
        if not self.has_steps_of(strength):
            raise ValueError(
                f"Strength {strength} needs steps that were not recorded, which are those of "
                f"strength {self.strength}."
            )
        edit, recipe = SDEdit(self.picture, edited, strength), self.pipeline.recipe
        return self._edit(
            edit,
            prompt,
            negative_prompt,
            lambda kept: edit.held(self.networks, self.z, recipe, self.noise, kept),
        )

    def _edit(
        self,
        edit: Inpainting | SDEdit,
        prompt: str,
        negative_prompt: str,
        prepare: Callable[[Kept], HeldPlan],
    ) -> EditResult:
        params = replace(self.params, prompt=prompt, negative_prompt=negative_prompt)
        with self._scope() as stage, self._kept() as kept:
            with stage("encode"):
                plan = prepare(kept)
            done = self.pipeline.denoise(plan, params, edit.size, self.noise, stage, self.progress)
            with stage("decode"):
                picture = self.pipeline.decode(done)
        return EditResult(edit.finish(picture, self.pipeline.recipe), stage.seconds, edit.ratio)

    def accept(self, result: EditResult) -> None:
        """Make an edited picture the one that further edits start from. The recordings are
        brought up to date by sparse passes, where the picture has changed.

        Raises:
            ValueError: the result is of another size.
        """
        check_sizes({"picture": self.picture, "result": result.image})
        # Compared as results are, where an unedited pixel is exactly this; the way back rounds.
        changed = (result.image != (self.picture + 1) / 2).any(dim=0)
        if not changed.any():
            return
        picture = torch.where(changed, result.image * 2 - 1, self.picture)
        masks = self.pipeline.recipe.inpainting(changed)
        networks = self.networks
        with self._scope():
            state_of(networks.encoder).use(self.store.get(ENCODER))
            with sparse(networks.encoder, masks, update=True):
                z = networks.encode(picture, self.noise, "init")
            self.store.put(ENCODER, state_of(networks.encoder).record)
            latent_mask = masks[z.shape[2], z.shape[3]].to(z.device)
            self.z = torch.where(latent_mask, z, self.z)
            self._update(DECODER, networks.decoder, masks, lambda: networks.decode(self.z))
            denoise = self._denoiser()
            for name, known, sigma in self._levels():
                self._update(name, networks.unet, masks, lambda x=known, s=sigma: denoise(x, s))
            self._put_latents()
        self.picture = picture

    def _update(
        self, name: str, network: nn.Module, masks: MaskPyramid, run: Callable[[], object]
    ) -> None:
        """Bring one kept recording up to date by a sparse pass that writes into it."""
        state_of(network).use(self.store.get(name))
        with sparse(network, masks, update=True):
            run()
        self.store.put(name, state_of(network).record)
