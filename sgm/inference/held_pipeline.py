"""The call of a pipeline of diffusers, with the latents around an edit held to a picture's."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sgm.errors import UserError
from sgm.sparse.ops import select_ops
from sgm.sparse.sparsify import Pass, Sparse, sparsify
from sgm.sparse.swap import NotSparseError

# Pipelines that edit no mask, and the ones for their networks that do.
INPAINTING = {
    "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline": "StableDiffusionXLControlNetInpaintPipeline",
}
# Arguments of a pipeline's call that a session gives itself.
OWN = re.compile(
    r"(mask_)?image|strength|num_inference_steps|guidance_scale|generator|latents|height|width"
    r"|output_type|return_dict|num_images_per_prompt|padding_mask_crop|timesteps|sigmas"
    r"|denoising_(start|end)|callback.*"
)


class HeldPipeline:
    """A pipeline for inpainting, its networks made sparse, and the latents and the noise of a
    picture. Every call starts from the generator's present state.

    Raises:
        NotSparseError, TypeError: the pipeline cannot be used.
    """

    z: Tensor  # scaled latents of the picture [1, 4, h, w]
    noise: Tensor  # of the same shape

    def __init__(
        self, pipe: Any, num_inference_steps: int, guidance_scale: float, generator: torch.Generator
    ) -> None:
        self.pipe = inpainting_pipeline(pipe)
        self.unet, self.encoder, self.decoder = sparse_networks(self.pipe)
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self._seeded = generator.device, generator.get_state()

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes, wherever its weights lie meanwhile."""
        return self.pipe._execution_device

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.z.shape[2], self.z.shape[3]

    def run(
        self,
        image: Tensor,
        mask: Tensor,
        start: Tensor | None,
        inside: Tensor,
        strength: float,
        encoder: Callable[[Pass], Any],
        given: Mapping[str, Any],
    ) -> Tensor:
        """One call of the pipeline.

        The latents around what is sampled are put back after every step here, and not by the
        pipeline, which does it for 4 channels only: it is told that all is masked.

        Args:
            image: [3, H, W] in [-1, 1].
            mask: bool [H, W], for a network with 9 channels, which reads it.
            start: latents that the edit starts from, before noise; None for noise alone.
            inside: bool [h, w], what is sampled.
            encoder: called in place of each pass of the encoder, for a network with 9 channels.
            given: further arguments of the call.

        Returns:
            The picture [3, H, W] in [0, 1], float32 on the CPU.
        """
        scheduler, nine = self.pipe.scheduler, self.pipe.unet.config.in_channels == 9
        levels, inside = self.levels(strength), inside.to(self.device)
        first, scale = levels[:1], float(scheduler.init_noise_sigma)
        own = self.noise * scale
        if start is not None:
            own = scheduler.add_noise(start, self.noise, first)
        x = torch.where(inside, own, scheduler.add_noise(self.z, self.noise, first))

        def put_back(pipe: Any, i: int, t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            known = self.z
            if i + 1 < len(levels):
                known = scheduler.add_noise(self.z, self.noise, levels[i + 1 : i + 2])
            return {"latents": torch.where(inside, tensors["latents"], known)}

        shown = mask if nine else torch.ones_like(mask)
        with self.encoder.each_pass(encoder if nine else Pass.zeros):
            out = self.pipe(
                image=(image[None] + 1) / 2,
                mask_image=shown[None, None].float(),
                height=image.shape[1],
                width=image.shape[2],
                strength=strength,
                num_inference_steps=self.num_inference_steps,
                guidance_scale=self.guidance_scale,
                generator=self.generator(),
                latents=x / scale,
                output_type="pt",
                callback_on_step_end=put_back,
                **given,
            )
        return out.images[0].float().cpu()

    def levels(self, strength: float) -> Tensor:
        """Time steps of a call [n], from the first (UserError if there are none); the scheduler is
        set to it."""
        self.pipe.scheduler.set_timesteps(self.num_inference_steps, device=self.device)
        levels, _ = self.pipe.get_timesteps(self.num_inference_steps, strength, self.device)
        if not len(levels):
            raise UserError(f"Strength {strength} leaves no step; take a larger one or more steps.")
        return levels

    def generator(self) -> torch.Generator:
        """A generator in the state that the session began with."""
        device, state = self._seeded
        generator = torch.Generator(device)
        generator.set_state(state)
        return generator

    def encode(self, picture: Tensor) -> Tensor:
        """Scaled latents [1, 4, h, w] of a picture [3, H, W] in [-1, 1]; of equal pictures equal
        ones, since the posterior's draw is always the same."""
        ready = self.pipe.image_processor.preprocess((picture[None] + 1) / 2)
        ready = ready.to(self.device, self.pipe.unet.dtype)
        return self.pipe._encode_vae_image(image=ready, generator=self.generator())

    def draw_noise(self) -> Tensor:
        """The session's noise [1, 4, h, w]; the draw after that of the posterior."""
        generator, shape = self.generator(), self.z.shape
        for _ in range(2):
            noise = randn_tensor(shape, generator, self.device, self.z.dtype)
        return noise


def inpainting_pipeline(pipe: Any) -> Any:
    """A pipeline that edits a mask, with the networks of the given one, or itself if it does;
    TypeError if there is none."""
    name = type(pipe).__name__
    if name in INPAINTING:
        made: Any = getattr(diffusers, INPAINTING[name])
        modules, options = made._get_signature_keys(made)
        parts = {k: v for k, v in pipe.components.items() if k in modules}
        return made(**parts, **{k: pipe.config[k] for k in options if k in pipe.config})
    arguments = inspect.signature(type(pipe).__call__).parameters
    if {"mask_image", "callback_on_step_end"} <= set(arguments) and hasattr(pipe, "unet"):
        return pipe
    raise TypeError(
        f"{name} cannot be used; expected a pipeline of diffusers for inpainting with a UNet, or "
        f"one of {', '.join(INPAINTING)}."
    )


def sparse_networks(pipe: Any) -> tuple[Sparse, Sparse, Sparse]:
    """UNet, encoder and decoder of a pipeline, made sparse for where it computes. NotSparseError if
    one cannot be, or the autoencoder runs in tiles."""
    if getattr(pipe.vae, "use_tiling", False):
        raise NotSparseError("The autoencoder runs in tiles; call pipe.vae.disable_tiling first.")
    for part in ("encoder", "decoder"):
        if not hasattr(pipe.vae, part):
            raise NotSparseError(f"There are no rules for a {type(pipe.vae).__name__}.")
    ops = select_ops("auto", pipe._execution_device)
    found = [sparsify(n, ops=ops) for n in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder)]
    for handle in found:
        handle.network.to(memory_format=ops.memory_format)
    unet, encoder, decoder = found
    return unet, encoder, decoder


def checked(call: Mapping[str, Any] | None) -> dict[str, Any]:
    """Further arguments of a call; TypeError for one that the session gives."""
    for name in call or {}:
        if OWN.fullmatch(name):
            raise TypeError(f"{name} is given by the session; take it out of `call`.")
    return dict(call or {})
