"""The latent autoencoder: encoder, decoder and the two 1x1 quantisation convolutions."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from sgm.modules.diffusionmodules.model import Decoder, Encoder


@dataclass(frozen=True)
class AutoencoderParams:
    """The published `ddconfig`. `resolution`, `dropout` and `attn_type` only mattered in training
    or chose between equal attentions; they are accepted and have no effect."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    in_channels: int
    out_ch: int
    z_channels: int
    double_z: bool = True
    attn_resolutions: tuple[int, ...] = ()
    norm_groups: int = 32
    resolution: int = 256
    dropout: float = 0.0
    attn_type: str = "vanilla"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "AutoencoderParams":
        """Strict: an unknown or missing key is a ValueError that names it."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"ddconfig has unknown keys {unknown}; known are {sorted(known)}")
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"ddconfig is incomplete: {error}") from error


class DiagonalGaussian:
    """Posterior of the encoder: mean and log-variance, the latter clamped to [-30, 20].

    Args:
        moments: [B, 2 * z_channels, h, w].
    """

    def __init__(self, moments: Tensor) -> None:
        self.mean, logvar = moments.float().chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """mean + deviation * noise, float32.

        Args:
            noise: standard normal, shape of the mean; by default one draw from the global CPU
                generator, on any device, so that seeds are portable.
        """
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
        shared = {
            "ch": p.ch,
            "ch_mult": p.ch_mult,
            "num_res_blocks": p.num_res_blocks,
            "z_channels": p.z_channels,
            "attn_resolutions": p.attn_resolutions,
            "norm_groups": p.norm_groups,
        }
        self.encoder = Encoder(in_channels=p.in_channels, double_z=p.double_z, **shared)
        self.decoder = Decoder(out_ch=p.out_ch, **shared)
        moments = p.z_channels * (2 if p.double_z else 1)
        self.quant_conv = nn.Conv2d(moments, embed_dim * (2 if p.double_z else 1), 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, p.z_channels, 1)

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.quant_conv(self.encoder(x)))

    def encode(self, x: Tensor) -> Tensor:
        """A sample of the posterior; see `DiagonalGaussian.sample` for its one random draw."""
        return self.posterior(x).sample()

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))
