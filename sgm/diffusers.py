"""Edits with a pipeline of diffusers that is already there.

    session = EditSession(pipe, image, prompt="a grassland", num_inference_steps=30)
    out = session.inpaint("a horse on a grassland", mask_image)
    session.accept(out)
    out = session.img2img("a horse by a lake", drawn_on, strength=0.6)

The pipeline's own call does the sampling: its scheduler, LoRAs, ControlNet and offloading work as
before. Only the passes of its UNet and of its autoencoder are others. A first call records the
picture under one noise at a few steps; each edit is a call whose passes are sparse.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from sgm.editor import Mask, Picture, to_mask, to_tensor
from sgm.inference.choose_store import make_store
from sgm.inference.edit import Edit
from sgm.inference.inpainting import Inpainting
from sgm.inference.interpolate import Interpolated
from sgm.inference.prefetch import Prefetch
from sgm.inference.presets import FAST, Recipe, StepMasks
from sgm.inference.sdedit import SDEdit
from sgm.inference.stores import Store
from sgm.io import imageio
from sgm.sparse.masks import MaskPyramid, difference_mask, inpainting_pyramid
from sgm.sparse.ops import select_ops
from sgm.sparse.recording import Recording
from sgm.sparse.sparsify import NotSparseError, Pass, Sparse, sparsify
from sgm.sparse.state import SparseStateError
from sgm.words import RecordingMemory

ENCODER, DECODER = "encoder", "decoder"
# Pipelines that edit no mask, and the ones for their networks that do.
INPAINTING = {
    "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLInpaintPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLControlNetInpaintPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline": "StableDiffusionXLControlNetInpaintPipeline",
}
# Arguments of a pipeline's call that a session gives itself.
OWN = (
    "image mask_image strength num_inference_steps guidance_scale generator latents height width "
    "output_type return_dict num_images_per_prompt padding_mask_crop timesteps sigmas "
    "denoising_start denoising_end callback_on_step_end callback_on_step_end_tensor_inputs"
).split()


@dataclass(frozen=True, eq=False)
class Masks:
    """What an edit computes.

    Attributes:
        inside: bool [h, w], the latents that are sampled; those around are known.
        encoder, unet, decoder: masks of the networks.
    """

    inside: Tensor
    encoder: MaskPyramid
    unet: StepMasks
    decoder: MaskPyramid


@dataclass(frozen=True, eq=False)
class Passes:
    """How the networks run in a call of the pipeline, and what is known around the edit.

    Attributes:
        unet, encoder: stand for each pass (see `Sparse.each_pass`).
        inside: as in `Masks`; None where all is known.
    """

    encoder: Callable[[Pass], Any]
    inside: Tensor | None


class EditSession:
    """A picture with its recordings, and a pipeline of diffusers that edits it.

    Recordings are made once, under the base prompt and one noise, at a few of the steps, and
    interpolated between them; they serve every mask, prompt and strength. Everything outside of an
    edit stays as it is, byte for byte. After the weights of the networks have changed (another
    LoRA, another weight of it), call `record` again.

    Args:
        pipe: of Stable Diffusion XL: for inpainting, image to image or text to image, also those
            with a ControlNet; with 4 or 9 channels. Its networks are made sparse in place.
        image: the picture, of any size.
        prompt: what it shows; None if `call` has embeddings.
        negative_prompt: of recordings and edits.
        num_inference_steps, guidance_scale: of every edit, as in the pipeline's call.
        generator: for the session's noise; its state is read, and left as it is. By default a new
            one, seeded by torch's.
        recipe: masks and recorded steps: preset `fast`; `FAST.refreshed(k)` records every k-th.
        recording_memory, recording_folder: where recordings are kept: see
            `sgm.inference.choose_store.make_store`.
        call: further arguments of every call of the pipeline: `control_image`, `prompt_2`,
            `ip_adapter_image`, `original_size`, ...

    Raises:
        NotSparseError: a network that no rule makes sparse, or a VAE in tiles.
        TypeError: a pipeline that cannot be used, or an argument in `call` that is the session's.
        UserError: there is no room for the recordings.
    """

    def __init__(
        self,
        pipe: Any,
        image: Picture,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.5,
        generator: torch.Generator | None = None,
        recipe: Recipe = FAST,
        recording_memory: RecordingMemory = RecordingMemory.AUTO,
        recording_folder: Path | None = None,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        self.pipe = inpainting_pipeline(pipe)
        self.unet, self.encoder, self.decoder = sparse_networks(self.pipe)
        self.picture, self._size = _padded(to_tensor(image))
        self.prompt, self.negative_prompt = prompt, negative_prompt
        self.num_inference_steps, self.guidance_scale = num_inference_steps, guidance_scale
        self.recipe, self._place = recipe, (recording_memory, recording_folder)
        self.call = _checked(call)
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self._seeded = generator.device, generator.get_state()
        self._store: Store | None = None
        self.record()

    @property
    def image(self) -> Image.Image:
        """The picture that edits start from."""
        return self._finished((self.picture + 1) / 2)

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes, wherever its weights lie meanwhile."""
        return self.pipe._execution_device

    @property
    def store(self) -> Store:
        """Where the recordings are."""
        assert self._store is not None  # from the first recorded step on
        return self._store

    @torch.no_grad()
    def record(self) -> None:
        """Make all recordings, with the networks as they are now."""
        self._store = None
        with self.encoder.recording() as encoder:
            self.z = self._encode(self.picture)
        self.noise = self._draw_noise()

        def record(one: Pass) -> Any:
            if one.number not in self.made:
                return one.zeros()
            with self.unet.recording() as recording:
                out = one.run()
            if self._store is None:
                self._store = self._make_store(recording.size_in_bytes())
            self.store.put(_name(one.number), recording)
            return out

        with self.decoder.recording() as decoder:
            self._unedited_call(record, lambda one: one.run())
        self.store.put(ENCODER, encoder)
        self.store.put(DECODER, decoder)
        self._layers = set(self.unet.layers)

    @torch.no_grad()
    def inpaint(
        self,
        prompt: str | None,
        mask_image: Mask,
        strength: float = 1.0,
        call: Mapping[str, Any] | None = None,
    ) -> Image.Image:
        """Repaint the masked part of the picture.

        Args:
            prompt: what the picture is to show; None if `call` has embeddings.
            mask_image: white where to repaint; of the picture's size, or resized to it. An empty
                one returns the picture.
            strength: share of the schedule that is run; below 1 what is there shines through.
            call: further arguments of this call of the pipeline.

        Returns:
            The edited picture. Outside of the mask no byte differs.

        Raises:
            SparseStateError: adapters of the UNet came or went since the recording.
        """
        mask = imageio.pad_to_multiple(to_mask(mask_image, self._size)).bool()
        if not mask.any():
            return self.image
        masks = Masks(
            inpainting_pyramid(mask)[self._latent_size],
            self.recipe.inpainting(mask),
            StepMasks(self.recipe.inpainting(mask)),
            self.recipe.inpainting_decoder(mask),
        )
        edit = Inpainting(self.picture, mask)
        start = None if strength == 1 else self.z
        return self._edit(edit, masks, mask, start, self.picture, strength, prompt, call)

    @torch.no_grad()
    def img2img(
        self,
        prompt: str | None,
        image: Picture,
        strength: float = 0.6,
        call: Mapping[str, Any] | None = None,
    ) -> Image.Image:
        """Turn what was drawn on the picture into something in the manner of the model.

        Args:
            prompt: as in `inpaint`.
            image: the picture with the drawing, of its size. An equal one is returned.
            strength: share of the schedule that is run, above 0 to 1.
            call: further arguments of this call of the pipeline.

        Returns:
            The edited picture. Away from the drawing no byte differs.

        Raises:
            SparseStateError: adapters of the UNet came or went since the recording.
            ValueError: the picture has another size, or the strength makes no step.
        """
        drawn, size = _padded(to_tensor(image))
        if size != self._size:
            raise ValueError(
                f"The drawing has {size[1]}x{size[0]} pixels, expected {self._size[1]}x"
                f"{self._size[0]} as the picture; draw on the picture, or resize."
            )
        difference = difference_mask(self.picture, drawn)
        if not difference.any():
            return self.image
        masks = self.recipe.sdedit_masks(difference)
        steps = self.recipe.sdedit_steps(difference, masks)
        chosen = Masks(
            steps.first[self._latent_size],
            masks,
            steps,
            self.recipe.sdedit_decoder_masks(difference),
        )
        self.encoder.use(self.store.get(ENCODER))
        with self.encoder.sparse(masks):
            start = self._encode(drawn)
        edit, region = SDEdit(self.picture, drawn, strength), self.recipe.sdedit_region(difference)
        return self._edit(edit, chosen, region, start, drawn, strength, prompt, call)

    @torch.no_grad()
    def accept(self, image: Image.Image) -> None:
        """Make an edited picture the one that further edits start from. The recordings are brought
        up to date by sparse passes, where it differs.

        Raises:
            ValueError: it has another size.
        """
        if image.size != (self._size[1], self._size[0]):
            raise ValueError(f"The picture has {image.size}, expected {self.image.size}.")
        before, after = imageio.to_bytes(self.image), imageio.to_bytes(image.convert("RGB"))
        changed = imageio.pad_to_multiple((before != after).any(dim=0))
        if not changed.any():
            return
        picture = torch.where(changed, _padded(to_tensor(image))[0], self.picture)
        masks = self.recipe.inpainting(changed)
        encoder, decoder = self.store.get(ENCODER), self.store.get(DECODER)
        self.encoder.use(encoder)
        with self.encoder.sparse(masks, update=True):
            z = self._encode(picture)
        self.picture = picture
        self.z = torch.where(masks[self._latent_size].to(z.device), z, self.z)

        def update(one: Pass) -> Any:
            if one.number not in self.made:
                return one.zeros()
            self.unet.use(self.store.get(_name(one.number)))
            with self.unet.sparse(masks, update=True):
                out = one.run()
            self.store.put(_name(one.number), self.unet.record)
            return out

        self.decoder.use(decoder)
        with self.decoder.sparse(masks, update=True):
            self._unedited_call(update, lambda one: one.run())
        self.store.put(ENCODER, self.encoder.record)
        self.store.put(DECODER, self.decoder.record)

    # --- calls of the pipeline ---------------------------------------------------------------

    def _edit(
        self,
        edit: Edit,
        masks: Masks,
        region: Tensor,
        start: Tensor | None,
        image: Tensor,
        strength: float,
        prompt: str | None,
        call: Mapping[str, Any] | None,
    ) -> Image.Image:
        """The picture of a sparse call."""
        self._check_layers()
        levels = self._levels(strength)
        offset, count = len(self._levels(1.0)) - len(levels), len(levels)
        change = masks.unet.change(count)
        self.encoder.use(self.store.get(ENCODER))
        self.decoder.use(self.store.get(DECODER))

        def encode(one: Pass) -> Any:
            with self.encoder.sparse(masks.encoder):
                return one.run()

        with ExitStack() as stack:
            names = [_name(step) for step in self.made]
            kept = stack.enter_context(Prefetch(self.store, names, self.device))
            source = Interpolated(
                lambda step: kept.get(_name(step)),
                self.made,
                self.recipe.recorded.order,
                self.unet.cut,
                offset + change if change else 0,
            )
            stack.enter_context(
                self.unet.replaying(
                    lambda i: source.at(offset + i, masks.unet.at(i, count)),
                    lambda i: masks.unet.at(i, count),
                )
            )
            stack.enter_context(self.decoder.sparse(masks.decoder))
            given = {**self._prompts(prompt), **_checked(call)}
            found = self._call(image, region, start, masks.inside, strength, encode, given)
        return self._finished(edit.finish(found, self.recipe))

    def _unedited_call(
        self, unet: Callable[[Pass], Any], encoder: Callable[[Pass], Any]
    ) -> None:
        """A call under the base prompt in which every step starts from the unedited picture."""
        levels = self._levels(1.0)
        self.made = self.recipe.recorded.steps(len(levels))
        nothing = torch.zeros(self.picture.shape[1:], dtype=torch.bool)
        inside = torch.zeros(self._latent_size, dtype=torch.bool)
        with self.unet.each_pass(unet):
            self._call(
                self.picture, nothing, None, inside, 1.0, encoder, self._prompts(self.prompt)
            )

    def _call(
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
            encoder: stands for each pass of the encoder, for 9 channels.
            given: further arguments.

        Returns:
            The picture [3, H, W] in [0, 1], float32 on the CPU.
        """
        scheduler, nine = self.pipe.scheduler, self.pipe.unet.config.in_channels == 9
        levels, inside = self._levels(strength), inside.to(self.device)
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
                generator=self._generator(),
                latents=x / scale,
                output_type="pt",
                callback_on_step_end=put_back,
                **given,
            )
        return out.images[0].float().cpu()

    def _prompts(self, prompt: str | None) -> dict[str, Any]:
        """Arguments of every call, with a prompt."""
        return {"prompt": prompt, "negative_prompt": self.negative_prompt, **self.call}

    def _levels(self, strength: float) -> Tensor:
        """Time steps of a call [n], from the first; the scheduler is set to it.

        Raises:
            ValueError: there are none.
        """
        self.pipe.scheduler.set_timesteps(self.num_inference_steps, device=self.device)
        levels, _ = self.pipe.get_timesteps(self.num_inference_steps, strength, self.device)
        if not len(levels):
            raise ValueError(f"Strength {strength} is too small for a single step.")
        return levels

    # --- latents and pictures ----------------------------------------------------------------

    @property
    def _latent_size(self) -> tuple[int, int]:
        scale = self.pipe.vae_scale_factor
        return self.picture.shape[1] // scale, self.picture.shape[2] // scale

    def _generator(self) -> torch.Generator:
        """A generator in the state that the session began with."""
        device, state = self._seeded
        generator = torch.Generator(device)
        generator.set_state(state)
        return generator

    def _encode(self, picture: Tensor) -> Tensor:
        """Scaled latents [1, 4, h, w] of a picture [3, H, W] in [-1, 1]; of equal pictures equal
        ones, since the posterior's draw is always the same."""
        ready = self.pipe.image_processor.preprocess((picture[None] + 1) / 2)
        ready = ready.to(self.device, self.pipe.unet.dtype)
        return self.pipe._encode_vae_image(image=ready, generator=self._generator())

    def _draw_noise(self) -> Tensor:
        """The session's noise [1, 4, h, w]; the draw after that of the posterior."""
        generator, shape = self._generator(), self.z.shape
        for _ in range(2):
            noise = randn_tensor(shape, generator, self.device, self.z.dtype)
        return noise

    def _finished(self, picture: Tensor) -> Image.Image:
        """What the person gets of a picture [3, H, W] in [0, 1]."""
        return imageio.to_picture(imageio.crop_back(picture, self._size))

    # --- recordings --------------------------------------------------------------------------

    def _make_store(self, step: int) -> Store:
        """A place for recordings of so many bytes a step."""
        memory, folder = self._place
        return make_store(step * len(self.made), self.device, memory, folder)

    def _check_layers(self) -> None:
        """SparseStateError if adapters came or went since the recording."""
        self.unet.bind()
        if set(self.unet.layers) != self._layers:
            raise SparseStateError(
                "Adapters of the UNet came or went since the picture was recorded; call record."
            )


def inpainting_pipeline(pipe: Any) -> Any:
    """A pipeline that edits a mask, with the networks of the given one; itself if it does.

    Raises:
        TypeError: there is none.
    """
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
    """UNet, encoder and decoder of a pipeline, made sparse for where it computes.

    Raises:
        NotSparseError: one cannot be, or the autoencoder runs in tiles.
    """
    if getattr(pipe.vae, "use_tiling", False):
        raise NotSparseError("The autoencoder runs in tiles; call pipe.vae.disable_tiling first.")
    for part in (ENCODER, DECODER):
        if not hasattr(pipe.vae, part):
            raise NotSparseError(f"There are no rules for a {type(pipe.vae).__name__}.")
    ops = select_ops("auto", pipe._execution_device)
    found = [sparsify(n, ops=ops) for n in (pipe.unet, pipe.vae.encoder, pipe.vae.decoder)]
    for handle in found:
        handle.network.to(memory_format=ops.memory_format)
    unet, encoder, decoder = found
    return unet, encoder, decoder


def _padded(picture: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """A picture as the networks get it, and its (height, width) before."""
    return imageio.pad_to_multiple(picture), (picture.shape[1], picture.shape[2])


def _checked(call: Mapping[str, Any] | None) -> dict[str, Any]:
    """Further arguments of a call; TypeError for one that the session gives."""
    for name in call or {}:
        if name in OWN:
            raise TypeError(f"{name} is given by the session; take it out of `call`.")
    return dict(call or {})


def _name(step: int) -> str:
    """Store key of the recording of a step."""
    return f"unet-{step:04d}"


__all__ = ["FAST", "EditSession", "Recording", "inpainting_pipeline"]
