"""The loop of preset `fast`: what is not edited follows the noised picture, with one fixed noise.

At every noise level the unedited latents are z + noise * sigma, whatever was sampled before. So a
recording at one level needs no other level, changes smoothly from level to level, and can be kept:
an edit may make it at every K-th step only (see `sgm.inference.between`), or read recordings that
were made long ago.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgm.inference.between import Between, spread
from sgm.inference.networks import Networks, recording, sparse, state_of
from sgm.inference.noise import Noise
from sgm.inference.plan import OnStep, Plan
from sgm.inference.recipes import StepMasks
from sgm.modules.diffusionmodules.sampling import Denoise, Solver
from sgm.sparse.masks import MaskPyramid
from sgm.sparse.recording import Recording


@dataclass(frozen=True, eq=False)
class Kept:
    """Recordings of an unedited picture that were made before.

    Attributes:
        unet: the recording for a number of steps that remain, the present one included.
        encoder, decoder: of the picture and of its latents.
    """

    unet: Callable[[int], Recording]
    encoder: Recording
    decoder: Recording


@dataclass(frozen=True, eq=False)
class HeldPlan(Plan):
    """An edit whose surroundings are held to the noised picture.

    Attributes:
        z: scaled latents of the unedited picture [1, C, h, w].
        start: latents that the edit starts from (SDEdit); None for noise alone (inpainting).
        keep: 1 outside of what is sampled and 0 inside, [h, w]; None for what the masks compute.
        masks: of the UNet.
        strength: share of the schedule that is run.
        refresh: steps from one recording to the next, at most.
        kept: recordings to use instead of making any.
        decoder_masks: to decode sparsely, from `kept` or a recording made for it; None to decode
            the result alone, in full.
        x: latents of the result; None before the loop.
    """

    z: Tensor
    start: Tensor | None
    keep: Tensor | None
    masks: StepMasks
    strength: float = 1.0
    refresh: int = 1
    kept: Kept | None = None
    decoder_masks: MaskPyramid | None = None
    x: Tensor | None = None

    def steps(self, networks: Networks, solver: Solver) -> int:
        """See `Plan.steps`."""
        return len(self._sigmas(networks, solver)) - 1

    def _sigmas(self, networks: Networks, solver: Solver) -> Tensor:
        return solver.sigmas(networks.engine.denoiser.discretization, self.strength)

    def denoise(
        self,
        networks: Networks,
        denoise: Denoise,
        solver: Solver,
        noise: Noise,
        on_step: OnStep,
    ) -> "HeldPlan":
        """The sampling loop: before every step the surroundings are put back; what a sparse step
        reads of them is recorded at some steps and lies between these at others, or was kept."""
        z = self.z
        sigmas = self._sigmas(networks, solver)
        draw = held_draw(noise, z)
        x, state = solver.start(self._first(draw, sigmas), sigmas), None
        count = len(sigmas) - 1

        def record(step: int) -> Recording:
            level, state = sigmas[step].to(z.device), state_of(networks.unet)
            with state.recording(self.masks.late):
                denoise(z + draw * level, level.expand(len(z)))
            return state.kept()

        # Without kept recordings the masks are the same at every step, as a mean needs.
        between = Between(record, spread(count, self.refresh))
        for i in range(count):
            known = z + draw * sigmas[i].to(z.device)
            masks = self.masks.at(i, count)
            keep = self.keep
            if keep is None:
                keep = 1 - masks[z.shape[2], z.shape[3]].to(z)
            x = known * keep + (1 - keep) * x
            found = between.at(i) if self.kept is None else self.kept.unet(count - i)
            state_of(networks.unet).use(found)
            with sparse(networks.unet, masks):
                x, state = solver.step(denoise, x, i, sigmas, state)
            on_step(i, x)
        return replace(self, x=x)

    def _first(self, draw: Tensor, sigmas: Tensor) -> Tensor:
        """What `Solver.start` scales to the first level: noise, or the noised start."""
        if self.start is None:
            return draw
        sigma = sigmas[0].to(draw)
        return (self.start + draw * sigma) / torch.sqrt(1 + sigma**2)

    def decode(self, networks: Networks) -> Tensor:
        """See `Plan.decode`."""
        if self.kept is not None:
            state_of(networks.decoder).use(self.kept.decoder)
        elif self.decoder_masks is not None:
            with recording(networks.decoder, self.decoder_masks):
                networks.decode(self.z)
        with sparse(networks.decoder, self.decoder_masks):
            return networks.decode(self._result())

    def for_refiner(self) -> "HeldPlan":
        """See `Plan.for_refiner`."""
        start = None if self.start is None else self._result()
        return replace(self, z=self._result(), start=start, x=None)

    def _result(self) -> Tensor:
        if self.x is None:
            raise ValueError("This plan has no result yet; call denoise first.")
        return self.x


def held_draw(noise: Noise, z: Tensor) -> Tensor:
    """The one noise of a held edit, shape of the latents z; its name is `start`."""
    return noise("start", z.shape).to(z)


def held_noise(noise: Noise) -> Noise:
    """A source that gives every step the noise of the start: for a dense run that is to be
    compared with a held one."""
    return lambda name, shape: noise("start" if name.startswith("step/") else name, shape)
