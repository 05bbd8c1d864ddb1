"""Transformer blocks of the UNet: self-attention, cross-attention, gated feed-forward.

Layout follows SDXL (Podell et al., 2023, section 2.1) and its published checkpoint keys.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Multi-head scaled dot-product attention (Vaswani et al., 2017): from q [B, N, heads * d] and
    k, v [B, M, heads * d] of one dtype to [B, N, heads * d]. In a causal one a token sees only
    itself and those before it."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # [B, heads, N, d]
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


# Outputs that a CPU computes at once: a matrix product with few rows and a wide output is slow
# there, and a piece stays in the cache for what follows.
CPU_PIECE = 640


class GEGLU(nn.Module):
    """Linear layer whose output is gated by the GELU of its second half (Shazeer, 2020)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            value, gate = self.proj(x).chunk(2, dim=-1)
            return value * F.gelu(gate)
        (value, gate), (value_bias, gate_bias) = self.proj.weight.chunk(2), self.proj.bias.chunk(2)
        parts = (t.split(CPU_PIECE) for t in (value, value_bias, gate, gate_bias))
        pieces = [
            F.linear(x, v, v_bias) * F.gelu(F.linear(x, g, g_bias))
            for v, v_bias, g, g_bias in zip(*parts, strict=True)
        ]
        return torch.cat(pieces, dim=-1)


class FeedForward(nn.Module):
    """Gated feed-forward of width 4 x dim on tokens [B, N, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # The identity keeps the published key numbering (net.0, net.2): dropout stood there.
        self.net = nn.Sequential(GEGLU(dim, dim * 4), nn.Identity(), nn.Linear(dim * 4, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class CrossAttention(nn.Module):
    """Attention from tokens to a context; without a context, to the tokens themselves."""

    def __init__(self, query_dim: int, context_dim: int | None, heads: int, dim_head: int) -> None:
        super().__init__()
        inner = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [B, N, query_dim], context [B, M, context_dim] -> [B, N, query_dim]."""
        context = x if context is None else context
        out = attend(self.to_q(x), self.to_k(context), self.to_v(context), self.heads)
        return self.to_out(out)


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each pre-normed and residual."""

    def __init__(self, dim: int, heads: int, dim_head: int, context_dim: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, None, heads, dim_head)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, N, dim], context [B, M, context_dim] -> [B, N, dim]."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks on the pixels of a map, between two 1x1 convolutions."""

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        depth: int,
        context_dim: int,
        use_linear: bool,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)
        self.use_linear = use_linear
        if use_linear:
            self.proj_in: nn.Module = nn.Linear(channels, inner)
            self.proj_out: nn.Module = nn.Linear(inner, channels)
        else:
            self.proj_in = nn.Conv2d(channels, inner, 1)
            self.proj_out = nn.Conv2d(inner, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads, dim_head, context_dim) for _ in range(depth)
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        height = x.shape[2]
        h = self.norm(x)  # [B, C, H, W]
        if not self.use_linear:
            h = self.proj_in(h)  # [B, D, H, W]
        h = rearrange(h, "b c h w -> b (h w) c")  # [B, H*W, D]
        if self.use_linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)  # [B, H*W, D]
        if self.use_linear:
            h = self.proj_out(h)
        h = rearrange(h, "b (h w) c -> b c h w", h=height)  # [B, D, H, W]
        if not self.use_linear:
            h = self.proj_out(h)  # [B, C, H, W]
        return x + h
