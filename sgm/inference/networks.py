"""The networks of a run behind three verbs: encode, denoise, decode, each dense or sparse."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from sgm import runtime
from sgm.errors import UserError
from sgm.inference.noise import Noise
from sgm.models.autoencoder import DiagonalGaussian
from sgm.models.diffusion import DiffusionEngine
from sgm.modules.diffusionmodules.sampling import Conditioning, Denoise, guidance_batch, guided
from sgm.modules.encoders.prompts import WeightedPrompt, prompt_pair
from sgm.sparse.masks import MaskPyramid
from sgm.sparse.network import is_sparse
from sgm.sparse.ops import select_ops
from sgm.sparse.recording import Recording
from sgm.sparse.sparsify import Table, handle_of, sparsify
from sgm.specs import MASKED_CHANNELS
from sgm.words import Backend, Preset

# What the published runs tell the network, whatever the picture.
ORIGINAL_SIZE = (1024, 1024)
AESTHETIC_SCORE = 5.0  # the refiner's; published: on both branches


def recording(
    network: torch.nn.Module,
    masks: MaskPyramid | None = None,
    dtype: torch.dtype | None = None,
    largest: int | None = None,
) -> AbstractContextManager[Recording]:
    """Scope in which a sparse network runs in full and records.

    Args:
        masks: bool by resolution, for which it records; None for any.
        dtype: int8 or bfloat16, in which rows and tokens are kept; None for the network's.
        largest: pixels of the largest maps that are kept; None for no limit.
    """
    return handle_of(network).recording(masks, dtype, largest)


def use_kept(
    network: torch.nn.Module, kept: Recording, masks: MaskPyramid, run: Callable[[], object]
) -> None:
    """Take a kept recording into use for sparse passes with some masks (bool by resolution). What
    it has left out is computed anew by `run`, a pass of the input that was recorded."""
    handle = handle_of(network)
    handle.use(kept)
    handle.fill(masks, run)


def sparse(network: torch.nn.Module, masks: MaskPyramid | None) -> AbstractContextManager[None]:
    """Scope in which a network computes where the masks say; without masks, everywhere."""
    return nullcontext() if masks is None else handle_of(network).sparse(masks)


def table_of_preset(preset: Preset) -> Table:
    """The layers that a preset makes sparse."""
    # Imported here: dense runs need no sparse layers.
    from sgm.sparse.rules.published import PUBLISHED
    from sgm.sparse.rules.sgm import FAST

    return FAST if preset is Preset.FAST else PUBLISHED


def backend_name(asked: str, device: torch.device) -> str:
    """Name of the backend that runs the sparse operators where `asked` is wanted: of `auto`, the
    best one of the device."""
    return select_ops(asked, device).name


class NonFiniteError(UserError):
    """The autoencoder returned values that are no numbers, as half precision can: SDXL's own
    activations pass the largest float16."""


class Networks:
    """An engine on its device. Pictures are [3, H, W] in [-1, 1], latents [1, C, h, w] float32.

    Args:
        engine: dense networks.
        table: how they get sparse passes; None to leave them dense.
    """

    def __init__(self, engine: DiffusionEngine, table: Table | None = None) -> None:
        self.engine = engine
        self.unet = engine.model.diffusion_model
        self.encoder = engine.first_stage_model.encoder
        self.decoder = engine.first_stage_model.decoder
        self.layout = torch.channels_last
        networks = (self.unet, self.encoder, self.decoder)
        self._sparse = [sparsify(net, table, graphs=False) for net in networks] if table else []
        self._grey: dict[tuple[int, ...], DiagonalGaussian] = {}  # of grey pictures, by shape

    @property
    def device(self) -> torch.device:
        return next(self.engine.parameters()).device

    @property
    def is_refiner(self) -> bool:
        """Whether the conditioner reads an aesthetic score, which only a refiner's does."""
        return "aesthetic_score" in self.engine.conditioner.input_keys

    @property
    def reads_mask(self) -> bool:
        """Whether the UNet is for inpainting, and reads mask and masked picture beside the
        latents."""
        return self.unet.input_blocks[0][0].in_channels == MASKED_CHANNELS

    def set_backend(self, name: str, graphs: bool | None = False) -> None:
        """Choose who runs the sparse operators on this device, and lay weights and maps out as it
        likes them; see `select_ops`. `graphs`: whether sparse passes of the UNet run as CUDA
        graphs; None for the device's own way."""
        for handle in self._sparse:
            handle.ops = select_ops(name, self.device)
            self.layout = handle.ops.memory_format
        self.engine.to(memory_format=self.layout)
        if self._sparse and runtime.wants_graphs(graphs, self.device, Backend(name)):
            handle_of(self.unet).use_graphs()

    def forget(self) -> None:
        """Free all recordings; at full size they are gigabytes."""
        for handle in self._sparse:
            handle.clear()

    def encode(self, picture: Tensor, noise: Noise, name: str) -> Tensor:
        """Scaled latents [1, C, h, w] of a picture: one sample of the posterior, for which
        `posterior/<name>` is drawn. NonFiniteError if the autoencoder overflows."""
        return self._sample(self.posterior(picture), noise, name)

    def _sample(self, posterior: DiagonalGaussian, noise: Noise, name: str) -> Tensor:
        _check_finite(posterior.mean)
        draw = noise(f"posterior/{name}", posterior.mean.shape)
        return self.engine.scale_factor * posterior.sample(draw)

    def posterior(self, picture: Tensor) -> DiagonalGaussian:
        """The distribution that `encode` draws latents from [1, C, h, w], unscaled."""
        first_stage = self.engine.first_stage_model
        dtype = first_stage.quant_conv.weight.dtype
        x = picture[None].to(self.device, dtype, memory_format=self.layout)
        return first_stage.posterior(x)

    def masked(self, picture: Tensor, mask: Tensor, noise: Noise) -> Tensor:
        """What an inpainting network reads beside its latents, [1, 1 + C, h, w]: the mask (bool
        [H, W], True where to repaint), 1 where any pixel of a latent is repainted, since all of it
        is sampled; and the latents of the picture with grey there. One draw called `masked`.

        Where all is masked, as in every SDEdit, the grey picture is encoded once for each size."""
        shape = tuple(picture.shape)
        if not mask.all():
            posterior = self.posterior(picture * ~mask)
        elif shape in self._grey:
            posterior = self._grey[shape]
        else:
            posterior = self._grey[shape] = self.posterior(torch.zeros_like(picture))
        z = self._sample(posterior, noise, "masked")
        size = mask.shape[0] // z.shape[2]
        return torch.cat([F.max_pool2d(mask[None, None].float(), size).to(z), z], dim=1)

    def decode(self, z: Tensor) -> Tensor:
        """Picture [3, H, W] in [0, 1], float32, of scaled latents. NonFiniteError if the
        autoencoder overflows."""
        dtype = self.engine.first_stage_model.post_quant_conv.weight.dtype
        x = self.engine.decode_first_stage(z.to(dtype).to(memory_format=self.layout))
        _check_finite(x)
        return ((x[0].float() + 1) / 2).clamp(0, 1)

    def condition(
        self, prompt: str, negative_prompt: str, size: Sequence[int], weighted: bool = False
    ) -> tuple[Conditioning, Conditioning]:
        """Conditional and unconditional conditioning for a picture of `size` (height, width), each
        with `crossattn` [1, 77 n, C], the text of n chunks, and `vector` [1, D]. With `weighted`,
        prompts may weigh words, and be of any length.

        An empty negative prompt means zeroed text, as published for base and turbo; a given one
        is used (published: ignored). A refiner always reads the negative prompt (published), and
        knows an aesthetic score instead of the target size.
        """

        def batch(text: str | WeightedPrompt) -> dict[str, Tensor | list[str | WeightedPrompt]]:
            sizes = {
                "original_size_as_tuple": ORIGINAL_SIZE,
                "crop_coords_top_left": (0, 0),
                "target_size_as_tuple": tuple(size),
                "aesthetic_score": (AESTHETIC_SCORE,),
            }
            tensors = {k: torch.tensor([v], device=self.device) for k, v in sizes.items()}
            return {"txt": [text], **tensors}

        zeroed = [] if negative_prompt or self.is_refiner else ["txt"]
        texts = prompt_pair(prompt, negative_prompt) if weighted else (prompt, negative_prompt)
        conditioner = self.engine.conditioner
        return conditioner(batch(texts[0])), conditioner(batch(texts[1]), zeroed)

    def denoiser(self, c: Conditioning, uc: Conditioning, scale: float) -> Denoise:
        """The guided denoised estimate as the solvers call it. Until the next one is made, sparse
        passes of the UNet attend to the texts of this one, which are projected here, once."""
        dtype, cond = next(self.unet.parameters()).dtype, guidance_batch(c, uc, scale)
        for key, x in cond.items():
            layout = self.layout if x.ndim == 4 else torch.preserve_format
            cond[key] = x.to(dtype, memory_format=layout)
        if is_sparse(self.unet):
            handle_of(self.unet).set_text(cond["crossattn"])
        denoise = guided(self.engine.denoiser, self.engine.model, cond, scale)

        def laid_out(x: Tensor, sigma: Tensor) -> Tensor:
            return denoise(x.contiguous(memory_format=self.layout), sigma)

        return laid_out


def _check_finite(x: Tensor) -> None:
    """NonFiniteError unless every value is a number; without data there is nothing to check."""
    if not x.is_meta and not x.isfinite().all():
        raise NonFiniteError(
            f"The autoencoder overflowed in {x.dtype}; check the weights or use --precision fp32."
        )
