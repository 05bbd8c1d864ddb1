"""Inpainting: repaint a masked region, everything else held to the picture at every step."""

from dataclasses import dataclass, replace

from torch import Tensor

from sgm.inference.composite import composite
from sgm.inference.held import HeldPlan, Kept
from sgm.inference.networks import Networks, recording, sparse
from sgm.inference.noise import Noise
from sgm.inference.plan import Edit, OnStep, Plan, check_sizes
from sgm.inference.recipes import Recipe, StepMasks
from sgm.modules.diffusionmodules.sampling import Denoise, Solver
from sgm.sparse.masks import MaskPyramid, inpainting_pyramid


@dataclass(frozen=True, eq=False)
class Inpainting(Edit):
    """A picture [3, H, W] in [-1, 1] and a mask, bool [H, W], True where to repaint.

    Raises:
        ValueError: they differ in size, or a side is no multiple of 64.
    """

    image: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        check_sizes({"image": self.image, "mask": self.mask})

    @property
    def size(self) -> tuple[int, int]:
        """See `Edit.size`."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def ratio(self) -> float:
        """See `Edit.ratio`."""
        return self.mask.float().mean().item()

    def prepare(self, networks: Networks, recipe: Recipe | None, noise: Noise) -> Plan:
        """Encode the picture and bring the mask to the size of its latents; see `Edit.prepare`.

        Raises:
            ValueError: the mask is empty.
        """
        z = networks.encode(self.image, noise, "init")
        if recipe is None:
            return InpaintingPlan(z, self._keep(z))
        if recipe.refresh is not None:
            return self.held(z, recipe)
        masks = recipe.inpainting(self.mask.bool())
        return InpaintingPlan(z, self._keep(z), masks, masks)

    def held(self, z: Tensor, recipe: Recipe, kept: Kept | None = None) -> HeldPlan:
        """The plan of an edit that is held to the picture, whose latents are z.

        Args:
            kept: recordings to use instead of making any.
        """
        mask = self.mask.bool()
        sparse_decode = kept is not None or recipe.sparse_decode
        return HeldPlan(
            z,
            None,
            self._keep(z),
            StepMasks(recipe.inpainting(mask)),
            refresh=recipe.refresh or 1,
            kept=kept,
            decoder_masks=recipe.inpainting_decoder(mask) if sparse_decode else None,
        )

    def _keep(self, z: Tensor) -> Tensor:
        """1 where the latents z stay, 0 where they are sampled: [h, w]."""
        return 1 - inpainting_pyramid(self.mask.bool())[z.shape[2], z.shape[3]].to(z)

    def finish(self, picture: Tensor, recipe: Recipe) -> Tensor:
        """See `Edit.finish`; the edited part is the mask."""
        if recipe.feather is None:
            return picture
        return composite(picture, (self.image + 1) / 2, self.mask.bool(), recipe.feather)


@dataclass(frozen=True, eq=False)
class InpaintingPlan(Plan):
    """What is prepared before the loop, and what it ends in.

    Attributes:
        z: scaled latents of the unedited picture [1, C, h, w].
        keep: 1 outside the mask and 0 inside, [h, w] at the size of the latents.
        masks, decoder_masks: the pyramids of a sparse run; None for a dense one.
        x: latents of the result, shape of `z`; None before the loop.
    """

    z: Tensor
    keep: Tensor
    masks: MaskPyramid | None = None
    decoder_masks: MaskPyramid | None = None
    x: Tensor | None = None

    def steps(self, networks: Networks, solver: Solver) -> int:
        """See `Plan.steps`."""
        return len(solver.sigmas(networks.engine.denoiser.discretization)) - 1

    def denoise(
        self,
        networks: Networks,
        denoise: Denoise,
        solver: Solver,
        noise: Noise,
        on_step: OnStep,
    ) -> "InpaintingPlan":
        """The sampling loop: before every step the known region is noised afresh to its level; a
        sparse run records a full pass on the noised picture and then moves x by a sparse one.
        There is no blending after the last step (published)."""
        z, keep, masks = self.z, self.keep, self.masks
        sigmas = solver.sigmas(networks.engine.denoiser.discretization)
        x, state = solver.start(noise("start", z.shape).to(z), sigmas), None
        for i in range(len(sigmas) - 1):
            sigma = sigmas[i].to(z.device)
            known = z + noise(f"step/{i}", z.shape).to(z) * sigma
            x = known * keep + (1 - keep) * x
            if masks is not None:
                with recording(networks.unet, masks):
                    denoise(known, sigma.expand(len(z)))
            with sparse(networks.unet, masks):
                x, state = solver.step(denoise, x, i, sigmas, state)
            on_step(i, x)
        return replace(self, x=x)

    def decode(self, networks: Networks) -> Tensor:
        """See `Plan.decode`; a sparse run records the decoder on the unedited latents."""
        if self.decoder_masks is not None:
            with recording(networks.decoder, self.decoder_masks):
                networks.decode(self.z)
        with sparse(networks.decoder, self.decoder_masks):
            return networks.decode(self._result())

    def for_refiner(self) -> "InpaintingPlan":
        """See `Plan.for_refiner`."""
        return replace(self, z=self._result(), x=None)

    def _result(self) -> Tensor:
        if self.x is None:
            raise ValueError("This plan has no result yet; call denoise first.")
        return self.x
