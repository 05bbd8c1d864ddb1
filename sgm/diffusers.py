"""Edits with a pipeline of diffusers that is already there.

    session = EditSession(pipe, image, prompt="a grassland", num_inference_steps=30)
    out = session.inpaint("a horse on a grassland", mask_image)
    session.accept(out)
    out = session.img2img("a horse by a lake", drawn_on, strength=0.6)

The pipeline's own call does the sampling: its scheduler, LoRAs, ControlNet and offloading work as
before. Only the passes of its UNet and of its autoencoder are replaced. A first call records the
picture under one noise at a few steps; in the call of an edit these passes are sparse.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sgm.inference.choose_store import make_store
from sgm.inference.edit import Edit
from sgm.inference.held_pipeline import HeldPipeline, checked
from sgm.inference.inpainting import Inpainting
from sgm.inference.interpolate import Curve, Interpolated
from sgm.inference.prefetch import Prefetch
from sgm.inference.presets import FAST, Recipe, StepMasks
from sgm.inference.sdedit import SDEdit
from sgm.inference.stores import Store
from sgm.io import imageio
from sgm.io.given import Mask, Picture, read, to_levels
from sgm.sparse.mask_sets import SparseStateError
from sgm.sparse.masks import MaskPyramid, inpainting_pyramid
from sgm.sparse.recording import narrow
from sgm.sparse.sparsify import Pass
from sgm.words import RecordingMemory, chosen

ENCODER, DECODER = "encoder", "decoder"


@dataclass(frozen=True, eq=False)
class Masks:
    """What an edit computes.

    Attributes:
        inside: bool [h, w], which latents are sampled.
        encoder, unet, decoder: masks of the networks, bool by resolution.
    """

    inside: Tensor
    encoder: MaskPyramid
    unet: StepMasks
    decoder: MaskPyramid


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
            one, seeded by torch's global generator.
        recipe: how far masks grow, which steps are recorded, and in which precision; by default
            those of preset `fast`, which `FAST.with_recordings` changes.
        recording_memory: where recordings are kept: `device`, `host`, `disk`, or `auto` for the
            first of these that has room.
        recording_folder: an existing folder for the disk; None where the disk is not to be used.
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
        recording_memory: str = "auto",
        recording_folder: str | PathLike[str] | None = None,
        call: Mapping[str, Any] | None = None,
    ) -> None:
        seen, photo = read(image)
        self.picture, self._size = imageio.pad_to_multiple(seen), photo.size
        self.prompt, self.negative_prompt = prompt, negative_prompt
        folder = None if recording_folder is None else Path(recording_folder)
        self.recipe, self._place = recipe, (chosen(RecordingMemory, recording_memory), folder)
        self.call = checked(call)
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        self.held = HeldPipeline(pipe, num_inference_steps, guidance_scale, generator)
        self.unet, self.encoder = self.held.unet, self.held.encoder
        self.decoder = self.held.decoder
        self._store: Store | None = None
        self.record()

    @property
    def image(self) -> Image.Image:
        """The picture that edits start from."""
        return self._finished((self.picture + 1) / 2)

    @property
    def store(self) -> Store:
        """Where the recordings are."""
        assert self._store is not None  # from the first recorded step on
        return self._store

    @torch.no_grad()
    def record(self) -> None:
        """Make all recordings, with the networks as they are now."""
        self._store, dtype = None, self.recipe.recorded.dtype
        with self.encoder.recording(dtype=dtype) as encoder:
            self.held.z = self.held.encode(self.picture)
        self.held.noise = self.held.draw_noise()

        def record(one: Pass) -> Any:
            if one.number not in self.made:
                return one.zeros()
            with self.unet.recording(dtype=dtype) as recording:
                out = one.run()
            if self._store is None:
                size = recording.size_in_bytes() * len(self.made)
                self._store = make_store(size, self.held.device, *self._place)
            self.store.put(_name(one.number), recording)
            return out

        with self.decoder.recording(dtype=dtype) as decoder:
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
        """Repaint the masked part of the picture; outside of the mask no byte differs.

        Args:
            prompt: what the picture is to show; None if `call` has embeddings.
            mask_image: white where to repaint; of the picture's size, or resized to it. An empty
                one returns the picture.
            strength: share of the schedule that is run; below 1 the edit starts from the noised
                picture, and keeps something of it.
            call: further arguments of this call of the pipeline.

        Raises:
            SparseStateError: adapters of the UNet came or went since the recording.
        """
        mask = imageio.pad_to_multiple(to_levels(mask_image, self._size) > 0.5)
        if not mask.any():
            return self.image
        edit = Inpainting(self.picture, mask, self.recipe.blend)
        steps = edit.covered(self.recipe.inpainting(mask))
        masks = Masks(
            edit.covered(inpainting_pyramid(mask))[self.held.latent_size],
            steps,
            StepMasks(steps),
            edit.decoder_masks(self.recipe),
        )
        start = None if strength == 1 else self.held.z
        return self._edit(edit, masks, start, self.picture, strength, prompt, call)

    @torch.no_grad()
    def img2img(
        self,
        prompt: str | None,
        image: Picture,
        strength: float = 0.6,
        call: Mapping[str, Any] | None = None,
    ) -> Image.Image:
        """Turn what was drawn on the picture into something in the manner of the model; away from
        the drawing no byte differs.

        Args:
            image: the picture with the drawing, of its size. An equal one is returned.
            strength: share of the schedule that is run, above 0 to 1.
            prompt, call: as of `inpaint`.

        Raises:
            SparseStateError: adapters of the UNet came or went since the recording.
            ValueError: the picture has another size, or the strength makes no step.
        """
        drawn = imageio.pad_to_multiple(read(image, self._size).seen)
        edit = SDEdit(self.picture, drawn, strength, blend=self.recipe.blend)
        if not edit.marked.any():
            return self.image
        masks = self.recipe.sdedit_masks(edit.marked)
        steps = self.recipe.sdedit_steps(edit.marked, masks)
        chosen = Masks(
            steps.first[self.held.latent_size], masks, steps, edit.decoder_masks(self.recipe)
        )
        self.encoder.use(self.store.get(ENCODER))
        with self.encoder.sparse(masks):
            start = self.held.encode(drawn)
        return self._edit(edit, chosen, start, drawn, strength, prompt, call)

    @torch.no_grad()
    def accept(self, image: Image.Image) -> None:
        """Make an edited picture the one that further edits start from. The recordings are brought
        up to date by sparse passes, where it differs. ValueError if it has another size."""
        present = self.image
        if image.size != present.size:
            raise ValueError(f"The picture has {image.size}, expected {present.size}.")
        now = read(image)
        before, after = imageio.to_bytes(present), imageio.to_bytes(now.photo.image)
        changed = imageio.pad_to_multiple((before != after).any(dim=0))
        if not changed.any():
            return
        picture = torch.where(changed, imageio.pad_to_multiple(now.seen), self.picture)
        masks, dtype = self.recipe.inpainting(changed), self.recipe.recorded.dtype
        encoder, decoder = self.store.get(ENCODER), self.store.get(DECODER)
        self.encoder.use(encoder)
        with self.encoder.sparse(masks, update=True):
            z = self.held.encode(picture)
        self.picture = picture
        self.held.z = torch.where(masks[self.held.latent_size].to(z.device), z, self.held.z)

        def update(one: Pass) -> Any:
            if one.number not in self.made:
                return one.zeros()
            self.unet.use(self.store.get(_name(one.number)))
            with self.unet.sparse(masks, update=True):
                out = one.run()
            self.store.put(_name(one.number), narrow(self.unet.record, dtype))
            return out

        self.decoder.use(decoder)
        with self.decoder.sparse(masks, update=True):
            self._unedited_call(update, lambda one: one.run())
        self.store.put(ENCODER, narrow(self.encoder.record, dtype))
        self.store.put(DECODER, narrow(self.decoder.record, dtype))

    def _edit(
        self,
        edit: Edit,
        masks: Masks,
        start: Tensor | None,
        image: Tensor,
        strength: float,
        prompt: str | None,
        call: Mapping[str, Any] | None,
    ) -> Image.Image:
        """The picture of a sparse call."""
        self.unet.bind()
        if set(self.unet.layers) != self._layers:
            raise SparseStateError(
                "Adapters of the UNet came or went since the picture was recorded; call record."
            )
        region = edit.touched(self.recipe)
        assert region is not None  # an edit of a session is blended
        levels = self.held.levels(strength)
        offset, count = len(self.held.levels(1.0)) - len(levels), len(levels)
        change = masks.unet.change(count)
        self.encoder.use(self.store.get(ENCODER))
        self.decoder.use(self.store.get(DECODER))

        def encode(one: Pass) -> Any:
            with self.encoder.sparse(masks.encoder):
                return one.run()

        names = [_name(step) for step in self.made]
        with Prefetch(self.store, names, self.held.device) as kept:
            order, until = self.recipe.recorded.order, offset + change if change else 0
            get, cut = (lambda step: kept.get(_name(step))), self.unet.cut
            curve = Curve(get, self.made, order, cut, until)
            self.unet.prepare(curve.begin(offset), masks.unet.all)
            source = Interpolated(curve, room=self.unet.room)
            sparse_unet = self.unet.replaying(
                lambda i: source.at(offset + i, masks.unet.at(i, count)),
                lambda i: masks.unet.at(i, count),
            )
            given = {**self._prompts(prompt), **checked(call)}
            with sparse_unet, self.decoder.sparse(masks.decoder):
                found = self.held.run(image, region, start, masks.inside, strength, encode, given)
        return self._finished(edit.finish(found, self.recipe))

    def _unedited_call(self, unet: Callable[[Pass], Any], encoder: Callable[[Pass], Any]) -> None:
        """A call under the base prompt in which every step starts from the unedited picture."""
        levels = self.held.levels(1.0)
        self.made = self.recipe.recorded.steps(len(levels))
        nothing = torch.zeros(self.picture.shape[1:], dtype=torch.bool)
        inside = torch.zeros(self.held.latent_size, dtype=torch.bool)
        with self.unet.each_pass(unet):
            self.held.run(
                self.picture, nothing, None, inside, 1.0, encoder, self._prompts(self.prompt)
            )

    def _prompts(self, prompt: str | None) -> dict[str, Any]:
        """Arguments of every call, with a prompt."""
        return {"prompt": prompt, "negative_prompt": self.negative_prompt, **self.call}

    def _finished(self, picture: Tensor) -> Image.Image:
        """A picture [3, H, W] in [0, 1] as the person gets it."""
        return imageio.to_picture(imageio.crop_back(picture, self._size))


def _name(step: int) -> str:
    """Store key of the recording of a step."""
    return f"unet-{step:04d}"
