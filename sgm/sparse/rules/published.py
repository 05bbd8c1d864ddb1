"""The blocks of the published engine (preset `published`): same wiring and keys as the dense ones.

As published, the first convolution, the residual blocks of the UNet's middle, and the output heads
stay dense. Whole maps [B, C, H, W] are handed on between blocks, and the operators see them as rows
[B, H * W, C]. Each block has two passes: `_record` computes everything and leaves in the site what
`_sparse` will read.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sgm.modules.attention import GEGLU, BasicTransformerBlock, SpatialTransformer, attend
from sgm.modules.diffusionmodules import model
from sgm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel
from sgm.modules.diffusionmodules.sige_openaimodel import SIGEUNetModel
from sgm.sparse.active import CONV1X1, CONV3X3, UNET_DOWN, VAE_DOWN, ActiveSet, Geometry
from sgm.sparse.backends.torch_ref import PLAIN, Prologue
from sgm.sparse.layers import FewRowsLinear, as_map, as_rows
from sgm.sparse.matmul import linear
from sgm.sparse.network import Site, SparseModule, SparseRoot
from sgm.sparse.norm import Affine, moments_of
from sgm.sparse.sparsify import Rule, Table


def scatter_map(site: Site, active: ActiveSet, rows: Tensor, residual: Tensor) -> Tensor:
    """The recorded map `out` with rows [B, n, C] + the map `residual` at the active outputs."""
    base, in_place = as_rows(site.tensor("out", residual)), site.mask_specific
    rows = site.ops.scatter(base, active, rows, as_rows(residual), in_place=in_place)
    return as_map(rows, active.out_size)


def conv_map(
    site: Site,
    base: str,
    x: Tensor,
    active: ActiveSet,
    conv: nn.Conv2d,
    prologue: Prologue = PLAIN,
    residual: Tensor | None = None,
) -> Tensor:
    """The recorded map called `base` with `conv` of the map x (+ the map `residual`) at the active
    outputs."""
    rows = site.ops.conv_scatter(
        as_rows(x),
        active,
        conv.weight,
        conv.bias,
        prologue,
        as_rows(site.tensor(base, x)),
        None if residual is None else as_rows(residual),
        in_place=site.mask_specific,
    )
    return as_map(rows, active.out_size)


# Of a residual block: both norms, each with the convolution behind it, and the 1x1 convolution of
# the shortcut; None where that is the identity.
Parts = tuple[nn.GroupNorm, nn.Conv2d, nn.GroupNorm, nn.Conv2d, nn.Module | None]


class SIGEResidual(SparseModule):
    """Mix-in of a residual block of two 3x3 convolutions."""

    def parts(self) -> Parts:
        """The layers of the block."""
        raise NotImplementedError

    def _recorded(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """The recording pass; emb [B, C_out] is added between the convolutions.

        The embedding is folded into the second norm's shift (norm(h + e) = s * h + (s * e + t)), so
        that a sparse pass needs no embedding (published behaviour).
        """
        norm1, conv1, norm2, conv2, shortcut = self.parts()
        first = moments_of(x).affine(norm1)
        hidden = conv1(F.silu(first(x)).to(x.dtype))
        if emb is None:
            second = moments_of(hidden).affine(norm2)
        else:
            outer = moments_of(hidden + emb[:, :, None, None]).affine(norm2)
            second = Affine(outer.scale, outer.scale * emb + outer.shift)
        out = conv2(F.silu(second(hidden)).to(x.dtype))
        if shortcut is None:
            out = out + x
        else:
            skipped = shortcut(x)
            out = out + skipped
            self.site.put(shortcut=skipped)
        self.site.put(first=first, second=second, hidden=hidden, out=out)
        return out

    def _sparse(self, x: Tensor) -> Tensor:
        """Where a 3x3 block is active and the 1x1 block of the shortcut is not, the recorded
        shortcut stands (published behaviour)."""
        site, (_, conv1, _, conv2, shortcut) = self.site, self.parts()
        active = site.active(CONV3X3, x)
        first = Prologue(site.get("first", x, Affine), silu=True)
        hidden = conv_map(site, "hidden", x, active, conv1, first)
        skipped = x
        if shortcut is not None:
            skipped = conv_map(site, "shortcut", x, site.active(CONV1X1, x), shortcut)
        second = Prologue(site.get("second", x, Affine), silu=True)
        return conv_map(site, "out", hidden, active, conv2, second, skipped)


class SIGEResBlock(SIGEResidual, ResBlock):
    """A residual block of the UNet."""

    def parts(self) -> Parts:
        before, after, shortcut = self.in_layers, self.out_layers, self.skip_connection
        same = isinstance(shortcut, nn.Identity)
        return before[0], before[2], after[0], after[3], None if same else shortcut

    def _record(self, x: Tensor, emb: Tensor) -> Tensor:
        return self._recorded(x, self.emb_layers(emb))


class SIGEResnetBlock(SIGEResidual, model.ResnetBlock):
    """A residual block of the autoencoder."""

    def parts(self) -> Parts:
        return self.norm1, self.conv1, self.norm2, self.conv2, self.shortcut()

    def _record(self, x: Tensor) -> Tensor:
        return self._recorded(x)


class SIGEResample(SparseModule):
    """Mix-in of a block that is a lone convolution, perhaps behind a resampling.

    Attributes:
        geometry: of the convolution.
        conv_name: which attribute of the block it is.
    """

    geometry: Geometry
    conv_name = "conv"

    def _record(self, x: Tensor) -> Tensor:
        out = self._dense(x)
        self.site.put(out=out)
        return out

    def _sparse(self, x: Tensor) -> Tensor:
        active, conv = self.site.active(self.geometry, x), getattr(self, self.conv_name)
        return conv_map(self.site, "out", x, active, conv)


class SIGEDownsample(SIGEResample, Downsample):
    """A halving of the UNet."""

    geometry, conv_name = UNET_DOWN, "op"


class SIGEEndPaddedDownsample(SIGEResample, model.Downsample):
    """A halving of the encoder."""

    geometry = VAE_DOWN


class SIGEUpsample(SIGEResample, model.Upsample):
    """A doubling; the map is doubled whole, as published."""

    geometry = CONV3X3

    def _sparse(self, x: Tensor) -> Tensor:
        return super()._sparse(F.interpolate(x, scale_factor=2, mode="nearest"))


def attend_unfused(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """`attend` as two batched matrix products, which is how the published engine attends to
    recorded keys and values, and how its MACs are counted."""
    q, k, v = (rearrange(t, "b n (h d) -> (b h) n d", h=heads) for t in (q, k, v))
    weights = torch.bmm(q * q.shape[2] ** -0.5, k.transpose(1, 2)).softmax(dim=-1)
    return rearrange(torch.bmm(weights, v), "(b h) n d -> b n (h d)", h=heads)


class SIGEBasicTransformerBlock(SparseModule, BasicTransformerBlock):
    """A transformer block whose text keys and values are recorded."""

    def _record(self, x: Tensor, context: Tensor) -> Tensor:
        self.site.put(key=self.attn2.to_k(context), value=self.attn2.to_v(context))
        return self._dense(x, context)

    def forward_active(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Sparse pass. Keys and values of the self-attention are made of all tokens (published).

        Args:
            x: active tokens [B, n, dim].
            tokens: all tokens [B, H * W, dim], the active ones up to date.

        Returns:
            [B, n, dim].
        """
        attn1, attn2, heads = self.attn1, self.attn2, self.attn1.heads
        everything = self.norm1(tokens)
        k, v = attn1.to_k(everything), attn1.to_v(everything)
        x = x + attn1.to_out(attend(attn1.to_q(self.norm1(x)), k, v, heads))
        k, v = self.site.tensor("key", x), self.site.tensor("value", x)
        q = attn2.to_q(self.norm2(x))
        x = x + attn2.to_out(attend_unfused(q, k, v, attn2.heads))
        return x + self.ff(self.norm3(x))


class SIGESpatialTransformer(SparseModule, SpatialTransformer):
    """Transformer blocks with queries at the active pixels."""

    def _record(self, x: Tensor, context: Tensor) -> Tensor:
        if self.use_linear:
            raise ValueError("use_linear_in_transformer must be False in a sparse network.")
        norm = moments_of(x).affine(self.norm)
        tokens = as_rows(self.proj_in(norm(x).to(x.dtype)))  # [B, H*W, D]
        for depth, block in enumerate(self.transformer_blocks):
            self.site.put(**{f"tokens{depth}": tokens})
            tokens = block(tokens, context)
        out = x + self.proj_out(as_map(tokens, (x.shape[2], x.shape[3])))
        self.site.put(norm=norm, out=out)
        return out

    def _sparse(self, x: Tensor) -> Tensor:
        site, proj_in, proj_out = self.site, self.proj_in, self.proj_out
        active, prologue = site.active(CONV1X1, x), Prologue(site.get("norm", x, Affine))
        rows = site.ops.conv(as_rows(x), active, proj_in.weight, proj_in.bias, prologue)
        for depth, block in enumerate(self.transformer_blocks):
            known = site.tensor(f"tokens{depth}", x)
            tokens = site.ops.scatter(known, active, rows, in_place=site.mask_specific)
            rows = block.forward_active(rows, tokens)  # [B, n, D]
        rows = linear(rows, proj_out.weight[:, :, 0, 0], proj_out.bias)  # [B, n, C]
        return scatter_map(site, active, rows, x)


class SIGEAttnBlock(SparseModule, model.AttnBlock):
    """The autoencoder's attention: queries at the active pixels; keys and values elsewhere are
    recorded."""

    def _record(self, x: Tensor) -> Tensor:
        norm = moments_of(x).affine(self.norm)
        h = norm(x).to(x.dtype)
        q, k, v = (as_rows(layer(h)) for layer in (self.q, self.k, self.v))  # [B, H*W, C]
        attended = F.scaled_dot_product_attention(q, k, v)
        out = x + self.proj_out(as_map(attended, (x.shape[2], x.shape[3])))
        self.site.put(norm=norm, key=k, value=v, out=out)
        return out

    def _sparse(self, x: Tensor) -> Tensor:
        site, ops = self.site, self.site.ops
        active = site.active(CONV1X1, x)
        h = ops.gather(as_rows(x), active, Prologue(site.get("norm", x, Affine)))  # [B, n, C]
        q, k, v = (
            F.linear(h, layer.weight[:, :, 0, 0], layer.bias) for layer in (self.q, self.k, self.v)
        )
        k, v = (  # [B, H*W, C]
            ops.scatter(site.tensor(key, x), active, rows, in_place=site.mask_specific)
            for key, rows in (("key", k), ("value", v))
        )
        rows = attend_unfused(q, k, v, heads=1)
        rows = F.linear(rows, self.proj_out.weight[:, :, 0, 0], self.proj_out.bias)
        return scatter_map(site, active, rows, x)


class SparseGEGLU(SparseModule, GEGLU):
    """The gated layer, as one operator."""

    def _sparse(self, x: Tensor) -> Tensor:
        if type(self.proj) is not nn.Linear:  # an adapter
            return self._dense(x)
        return self.site.ops.gated(x, self.proj.weight, self.proj.bias)


class SparseUNetModel(SparseRoot, UNetModel):
    """The UNet with sparse passes."""

    def text_of(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        return args[2] if len(args) > 2 else named["context"]


class SparseSIGEUNetModel(SparseRoot, SIGEUNetModel):
    """The UNet with sparse passes, under its published name."""


class SparseEncoder(SparseRoot, model.Encoder):
    """The encoder with sparse passes."""


class SparseDecoder(SparseRoot, model.Decoder):
    """The decoder with sparse passes."""


ROOTS = {
    SIGEUNetModel: SparseSIGEUNetModel,
    UNetModel: SparseUNetModel,
    model.Encoder: SparseEncoder,
    model.Decoder: SparseDecoder,
}
# What both presets do with the linear layers of a transformer block.
LINEAR = (
    *(
        Rule(BasicTransformerBlock, f"{attention}.{name}", FewRowsLinear)
        for attention in ("attn1", "attn2")
        for name in ("to_q", "to_k", "to_v", "to_out.0")
    ),
    Rule(BasicTransformerBlock, "ff.net.0", SparseGEGLU),
    Rule(BasicTransformerBlock, "ff.net.2", FewRowsLinear),
)
PUBLISHED = Table(
    roots=ROOTS,
    rules=(
        *LINEAR,
        Rule(ResBlock, "", SIGEResBlock, lambda name, _: not name.startswith("middle_block.")),
        Rule(Downsample, "", SIGEDownsample),
        Rule(SpatialTransformer, "", SIGESpatialTransformer),
        Rule(BasicTransformerBlock, "", SIGEBasicTransformerBlock),
        Rule(model.ResnetBlock, "", SIGEResnetBlock),
        Rule(model.AttnBlock, "", SIGEAttnBlock),
        Rule(model.Downsample, "", SIGEEndPaddedDownsample),
        Rule(model.Upsample, "", SIGEUpsample),
    ),
    pixelwise=False,
)
