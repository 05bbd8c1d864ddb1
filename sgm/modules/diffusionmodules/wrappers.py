"""The layer between a denoiser and a UNet."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class OpenAIWrapper(nn.Module):
    """Hands the parts of a conditioning to a UNet under the names its forward uses.

    It exists for its attribute name too: checkpoints store the UNet as `model.diffusion_model.*`.

    Args:
        diffusion_model: the UNet, called as `(x, timesteps=, context=, y=)`.
    """

    def __init__(self, diffusion_model: nn.Module) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The network's prediction.

        Args:
            x: scaled latents, shape [B, C, h, w].
            t: timesteps, shape [B], int64.
            cond: `crossattn` of shape [B, tokens, features] and `vector` of shape [B, features];
                and `concat` [B, n, h, w], further input channels, for a network that has them.

        Returns:
            Shape [B, C, h, w].

        Raises:
            KeyError: `cond` lacks one of the first two.
        """
        if "concat" in cond:
            x = torch.cat([x, cond["concat"].to(x)], dim=1)
        return self.diffusion_model(x, timesteps=t, context=cond["crossattn"], y=cond["vector"])
