"""Encoder and decoder of the latent autoencoder (Rombach et al., 2022), published keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

EPSILON = 1e-6  # of the autoencoder's group norms


@dataclass(frozen=True)
class AutoencoderParams:
    """The published `ddconfig`. `resolution`, `dropout` and `attn_type` only mattered in training
    or chose between equal attentions; they are accepted and have no effect.

    Attributes:
        ch, ch_mult: level i is `ch * ch_mult[i]` wide; each level after the first halves the sides.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        in_channels, out_ch, z_channels: of the picture, of the decoded one, and of latents.
        double_z: whether the encoder gives mean and log-variance, or the mean only.
        attn_resolutions: must be empty (attention in the middle only).
        norm_groups: groups of every group norm (32 as published).
    """

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

    def __post_init__(self) -> None:
        if self.attn_resolutions:
            raise ValueError(
                f"attn_resolutions is {list(self.attn_resolutions)}; this autoencoder attends in "
                "its middle only, expected []"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "AutoencoderParams":
        """Strict: an unknown or missing key is a ValueError that names it."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"ddconfig cannot be used: {error}") from error


class ResnetBlock(nn.Module):
    """Residual block of two 3x3 convolutions; a 1x1 shortcut where the width changes."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=EPSILON)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1)

    def shortcut(self) -> nn.Module | None:
        """The 1x1 convolution of the residual path, or None where it is the identity."""
        return getattr(self, "nin_shortcut", None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut = self.shortcut()
        return h + (x if shortcut is None else shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels of a map, residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(f(h), "b c h w -> b 1 (h w) c") for f in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)  # [B, 1, H*W, C]
        return x + self.proj_out(rearrange(out, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """3x3 convolution of stride 2, padded by one at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class _Coder(nn.Module):
    """What encoder and decoder share: their middle."""

    def _middle(self, channels: int, groups: int) -> nn.Module:
        mid = nn.Module()
        mid.block_1 = ResnetBlock(channels, channels, groups)
        mid.attn_1 = AttnBlock(channels, groups)
        mid.block_2 = ResnetBlock(channels, channels, groups)
        return mid

    def _run_middle(self, h: Tensor) -> Tensor:
        return self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))


class Encoder(_Coder):
    """Picture [B, in_channels, H, W] -> moments [B, 2 * z_channels, H/f, W/f]; f is
    2 ** (levels - 1)."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        p, channels = params, params.ch
        self.conv_in = nn.Conv2d(p.in_channels, channels, 3, padding=1)
        self.down = nn.ModuleList()
        for index, mult in enumerate(p.ch_mult):
            level = nn.Module()
            level.block = nn.ModuleList()
            for _ in range(p.num_res_blocks):
                level.block.append(ResnetBlock(channels, p.ch * mult, p.norm_groups))
                channels = p.ch * mult
            if index < len(p.ch_mult) - 1:
                level.downsample = Downsample(channels)
            self.down.append(level)
        self.mid = self._middle(channels, p.norm_groups)
        self.norm_out = nn.GroupNorm(p.norm_groups, channels, eps=EPSILON)
        self.conv_out = nn.Conv2d(channels, p.z_channels * (2 if p.double_z else 1), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)  # [B, ch, H, W]
        for level in self.down:
            for block in level.block:
                h = block(h)  # [B, ch * mult, H / 2**i, W / 2**i]
            if hasattr(level, "downsample"):
                h = level.downsample(h)
        h = self._run_middle(h)  # [B, C, H/f, W/f]
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(_Coder):
    """Latents [B, z_channels, h, w] -> picture [B, out_ch, h * f, w * f], with f of the encoder."""

    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        p, channels = params, params.ch * params.ch_mult[-1]
        self.conv_in = nn.Conv2d(p.z_channels, channels, 3, padding=1)
        self.mid = self._middle(channels, p.norm_groups)
        levels = []
        for index, mult in reversed(list(enumerate(p.ch_mult))):
            level = nn.Module()
            level.block = nn.ModuleList()
            for _ in range(p.num_res_blocks + 1):
                level.block.append(ResnetBlock(channels, p.ch * mult, p.norm_groups))
                channels = p.ch * mult
            if index > 0:
                level.upsample = Upsample(channels)
            levels.insert(0, level)  # published keys number the levels from the picture down
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(p.norm_groups, channels, eps=EPSILON)
        self.conv_out = nn.Conv2d(channels, p.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self._run_middle(self.conv_in(z))  # [B, C, h, w]
        for level in reversed(self.up):
            for block in level.block:
                h = block(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))
