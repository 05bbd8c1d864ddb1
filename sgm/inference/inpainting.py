"""Inpainting: repaint a masked region, everything else held to the picture at every step."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sgm.inference.networks import Networks, recording, sparse
from sgm.inference.noise import Noise
from sgm.modules.diffusionmodules.sampling import Denoise, Solver
from sgm.sparse.masks import MaskPyramid

# Called as (step number, latents) after every sampler step.
OnStep = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class InpaintingPlan:
    """What is prepared before the loop.

    Attributes:
        z: scaled latents of the unedited picture [1, C, h, w].
        keep: 1 outside the mask and 0 inside, [h, w] at the size of the latents.
        masks, decoder_masks: the pyramids of a sparse run; None for a dense one.
    """

    z: Tensor
    keep: Tensor
    masks: MaskPyramid | None
    decoder_masks: MaskPyramid | None


def prepare(
    networks: Networks,
    picture: Tensor,
    pyramid: MaskPyramid,
    sparse_run: bool,
    noise: Noise,
    decoder_pyramid: MaskPyramid | None = None,
) -> InpaintingPlan:
    """Encode the picture and bring the mask to the size of its latents.

    Args:
        picture: [3, H, W] in [-1, 1].
        pyramid: the masks at all resolutions; its level at the size of the latents is repainted.
        sparse_run: whether the UNet and the decoder will run sparsely.
        decoder_pyramid: other masks for the decoder.
    """
    z = networks.encode(picture, noise, "init")
    keep = 1 - pyramid[z.shape[2], z.shape[3]].to(z)
    if not sparse_run:
        return InpaintingPlan(z, keep, None, None)
    return InpaintingPlan(z, keep, pyramid, decoder_pyramid or pyramid)


def denoise_latents(
    networks: Networks,
    plan: InpaintingPlan,
    denoise: Denoise,
    solver: Solver,
    noise: Noise,
    on_step: OnStep,
) -> Tensor:
    """The sampling loop: before every step the known region is noised afresh to its level; a
    sparse run records a full pass on the noised picture and then moves x by a sparse one.

    Returns:
        Scaled latents [1, C, h, w]. There is no blending after the last step (published).
    """
    z, keep, masks = plan.z, plan.keep, plan.masks
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
    return x


def decode(networks: Networks, plan: InpaintingPlan, x: Tensor) -> Tensor:
    """Picture [3, H, W] in [0, 1]; a sparse run records the decoder on the unedited latents."""
    masks = plan.decoder_masks
    if masks is not None:
        with recording(networks.decoder, masks):
            networks.decode(plan.z)
    with sparse(networks.decoder, masks):
        return networks.decode(x)
