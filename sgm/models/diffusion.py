"""The engine: network, denoiser, conditioner and autoencoder under the published key names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgm.config import instantiate_from_config


class OpenAIWrapper(nn.Module):
    """Hands the parts of a conditioning to a UNet under the names its forward uses. Checkpoints
    store the UNet as `model.diffusion_model.*`."""

    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The network's prediction [B, C, h, w].

        Args:
            x: scaled latents [B, C, h, w].
            t: timesteps [B], int64.
            cond: `crossattn` [B, tokens, features] and `vector` [B, features]; and `concat`
                [B, n, h, w], further input channels, for a network that has them.
        """
        if "concat" in cond:
            x = torch.cat([x, cond["concat"].to(x)], dim=1)
        return self.diffusion_model(x, timesteps=t, context=cond["crossattn"], y=cond["vector"])


class DiffusionEngine(nn.Module):
    """Checkpoint keys: `model.diffusion_model.*`, `conditioner.*`, `first_stage_model.*`.

    Args:
        network_config, denoiser_config, conditioner_config, first_stage_config:
            `{target, params}` mappings, see `sgm.config.instantiate_from_config`.
        scale_factor: latents are multiplied by it after encoding.
    """

    TRAINING_ONLY = frozenset({"disable_first_stage_autocast"})

    def __init__(
        self,
        *,
        network_config: Mapping[str, Any],
        denoiser_config: Mapping[str, Any],
        conditioner_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        scale_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = OpenAIWrapper(instantiate_from_config(network_config))
        self.denoiser = instantiate_from_config(denoiser_config)
        self.conditioner = instantiate_from_config(conditioner_config)
        self.first_stage_model = instantiate_from_config(first_stage_config)
        self.scale_factor = scale_factor

    def decode_first_stage(self, z: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] -> picture [B, 3, H, W], about [-1, 1], not clamped."""
        return self.first_stage_model.decode(z / self.scale_factor)
