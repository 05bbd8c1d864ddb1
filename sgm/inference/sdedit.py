"""SDEdit (Meng et al., 2022): noise a picture that was drawn on, and denoise it again."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgm.inference.inpainting import OnStep
from sgm.inference.networks import Networks, recording, sparse
from sgm.inference.noise import Noise
from sgm.modules.diffusionmodules.sampling import Denoise, Solver
from sgm.sparse.masks import MaskPyramid


@dataclass(frozen=True)
class SDEditPlan:
    """What is prepared before the loop, and what it ends in.

    Attributes:
        edited: scaled latents of the edited picture [1, C, h, w].
        init: those of the unedited picture; None in a dense run.
        masks, decoder_masks: the pyramids of a sparse run; None in a dense one.
    """

    edited: Tensor
    init: Tensor | None = None
    masks: MaskPyramid | None = None
    decoder_masks: MaskPyramid | None = None


def prepare_dense(networks: Networks, edited: Tensor, noise: Noise) -> SDEditPlan:
    """Encode the edited picture [3, H, W] in [-1, 1]; the unedited one plays no part."""
    return SDEditPlan(networks.encode(edited, noise, "edited"))


def prepare_sparse(
    networks: Networks,
    init: Tensor,
    edited: Tensor,
    masks: MaskPyramid,
    decoder_masks: MaskPyramid,
    noise: Noise,
) -> SDEditPlan:
    """Encode the unedited picture in full and the edited one sparsely (published order)."""
    with recording(networks.encoder, masks):
        z_init = networks.encode(init, noise, "init")
    with sparse(networks.encoder, masks):
        z_edited = networks.encode(edited, noise, "edited")
    networks.forget()  # of the encoder, before the UNet needs the memory
    return SDEditPlan(z_edited, z_init, masks, decoder_masks)


def denoise_latents(
    networks: Networks,
    plan: SDEditPlan,
    denoise: Denoise,
    solver: Solver,
    strength: float,
    noise: Noise,
    on_step: OnStep,
) -> SDEditPlan:
    """The sampling loop over the last `strength` of the schedule. In a sparse run both latents get
    the same noise and are stepped side by side: a full pass on the unedited one, which records,
    and a sparse pass on the edited one.

    Returns:
        The plan with its latents denoised.
    """
    sigmas = solver.sigmas(networks.engine.denoiser.discretization, strength)
    draw = noise("start", plan.edited.shape).to(plan.edited)
    size = torch.sqrt(1 + sigmas[0] ** 2).to(draw)

    def start(z: Tensor) -> Tensor:
        return solver.start((z + draw * sigmas[0].to(draw)) / size, sigmas)

    edited, edited_state = start(plan.edited), None
    init, init_state = None if plan.init is None else start(plan.init), None
    for i in range(len(sigmas) - 1):
        if init is not None:
            with recording(networks.unet, plan.masks):
                init, init_state = solver.step(denoise, init, i, sigmas, init_state)
        with sparse(networks.unet, plan.masks):
            edited, edited_state = solver.step(denoise, edited, i, sigmas, edited_state)
        on_step(i, edited)
    return replace(plan, edited=edited, init=init)


def decode(networks: Networks, plan: SDEditPlan) -> Tensor:
    """Picture [3, H, W] in [0, 1]; a sparse run records the decoder on the unedited result."""
    if plan.init is not None:
        with recording(networks.decoder, plan.decoder_masks):
            networks.decode(plan.init)
    with sparse(networks.decoder, plan.decoder_masks):
        return networks.decode(plan.edited)
