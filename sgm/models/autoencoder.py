"""The latent autoencoder: encoder, decoder and the two 1x1 quantisation convolutions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgm.modules.diffusionmodules.model import AutoencoderParams, Decoder, Encoder


class DiagonalGaussian:
    """Posterior of the encoder: mean and log-variance, the latter clamped to [-30, 20].

    Args:
        moments: [B, 2 * z_channels, h, w].
    """

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.float().chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """mean + deviation * noise, float32; by default the noise is one draw from the global CPU
        generator, on any device, so that seeds are portable."""
        noise = torch.randn(self.mean.shape) if noise is None else noise
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)

    def mode(self) -> Tensor:
        return self.mean


class AutoencoderKL(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] <-> unscaled latents [B, z_channels, H/f, W/f]."""

    TRAINING_ONLY = frozenset({"monitor", "lossconfig"})

    def __init__(self, *, embed_dim: int, ddconfig: Mapping[str, Any]) -> None:
        super().__init__()
        p = AutoencoderParams.from_mapping(ddconfig)
        self.encoder, self.decoder = Encoder(p), Decoder(p)
        moments = p.z_channels * (2 if p.double_z else 1)
        self.quant_conv = nn.Conv2d(moments, embed_dim * (2 if p.double_z else 1), 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, p.z_channels, 1)

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))
