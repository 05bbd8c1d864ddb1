"""Small random networks of diffusers, and how they are called. Imports diffusers when asked."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sgm.sparse.masks import downsample_mask
from tests.conftest import rule_weights

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 1, 2],
    "attention_head_dim": [2, 4, 4],
    "cross_attention_dim": 32,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
    "norm_num_groups": 8,
    "sample_size": 16,
}
CODER = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (8, 16, 16, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 4,
    "force_upcast": False,
}


def randomised(network: nn.Module, seed: int) -> Any:
    """The network with weights by the golden rule, laid out as the engine likes them."""
    shapes = {name: list(t.shape) for name, t in network.state_dict().items()}
    network.load_state_dict(rule_weights(shapes, seed), strict=False)
    return network.eval().to(memory_format=torch.channels_last)


def tiny_unet(seed: int = 0, **changes: Any) -> Any:
    """A UNet of the shape of SDXL's."""
    from diffusers import UNet2DConditionModel

    return randomised(UNet2DConditionModel(**{**UNET, **changes}), seed)


def tiny_vae(seed: int = 3) -> Any:
    """An autoencoder of the shape of SDXL's: a latent pixel for 8x8."""
    from diffusers import AutoencoderKL

    return randomised(AutoencoderKL(**CODER), seed)


def tiny_text() -> dict[str, Any]:
    """Tokenizers that read letters, and text encoders of 16 channels each."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    letters = [chr(number) for number in range(33, 127)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    end = len(words) - 1
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    torch.manual_seed(7)
    found: dict[str, Any] = {}
    for suffix, made in (("", CLIPTextModel), ("_2", CLIPTextModelWithProjection)):
        found["tokenizer" + suffix] = CLIPTokenizer(
            vocab=vocabulary, merges=[], model_max_length=77
        )
        found["text_encoder" + suffix] = made(config).eval()
    return found


def tiny_pipeline(
    name: str = "StableDiffusionXLInpaintPipeline",
    scheduler: str = "EulerDiscreteScheduler",
    unet: Any = None,
    **parts: Any,
) -> Any:
    """A pipeline of diffusers, by the names of its class and of its scheduler's."""
    import diffusers

    pipe = getattr(diffusers, name)(
        vae=tiny_vae(),
        unet=tiny_unet() if unet is None else unet,
        scheduler=getattr(diffusers, scheduler)(**SCHEDULE),
        **tiny_text(),
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


class Called(nn.Module):
    """A UNet as a function of tensors, as the oracle calls it: of x [2, C, h, w] alone, with a
    time step, text and vector that it holds."""

    def __init__(self, unet: nn.Module, **named: Any) -> None:
        super().__init__()
        self.unet, self.named = unet, {**conditions(), **named}
        self.timestep = torch.tensor(300)

    def forward(self, x: Tensor) -> Tensor:
        """The noise [2, 4, h, w]."""
        named = {k: copy.copy(v) for k, v in self.named.items()}  # some lists are used up
        return self.unet(x, self.timestep, return_dict=False, **named)[0]


def conditions(batch: int = 2) -> dict[str, Any]:
    """The text and the sizes that a UNet is told."""
    draw = torch.Generator().manual_seed(99)
    return {
        "encoder_hidden_states": torch.randn(batch, 7, 32, generator=draw),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(batch, 16, generator=draw),
            "time_ids": torch.randint(0, 64, (batch, 6), generator=draw).float(),
        },
    }


def latents(seed: int, size: tuple[int, int], channels: int = 4, batch: int = 2) -> Tensor:
    """[batch, channels, h, w] for a picture of `size` pixels."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, size[0] // 8, size[1] // 8, generator=draw)


def rectangle(size: tuple[int, int]) -> Tensor:
    """A mask, bool [H, W], somewhat off the middle."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] * 3 // 4] = True
    return mask


def masks_of(mask: Tensor) -> dict[tuple[int, int], Tensor]:
    """A pyramid whose levels are grown in one place only."""
    return downsample_mask(mask, (0, 0, 0, 0, 2, 1))


def lora(unet: Any, targets: list[str], name: str = "one", seed: int = 5, **config: Any) -> None:
    """Add an adapter with random factors that changes the result visibly."""
    from peft import LoraConfig

    unet.add_adapter(
        LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False, **config),
        name,
    )
    draw = torch.Generator().manual_seed(seed)
    for key, value in sorted(unet.named_parameters()):
        if f".{name}." in key:
            scale = 0.3 / value[0].numel() ** 0.5
            value.data.copy_(torch.randn(value.shape, generator=draw) * scale)
    unet.eval()
