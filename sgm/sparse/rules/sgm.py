"""The networks of this package on active pixels (preset `fast`)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.modules.attention import (
    BasicTransformerBlock,
    CrossAttention,
    SpatialTransformer,
)
from sgm.modules.diffusionmodules import model
from sgm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel
from sgm.modules.diffusionmodules.sige_openaimodel import SIGEUNetModel
from sgm.sparse import layers
from sgm.sparse.layers import as_map, as_rows, rows_as_map
from sgm.sparse.network import SparseModule
from sgm.sparse.pixels import DOUBLED, DOWN, DOWN_END
from sgm.sparse.rules.published import LINEAR, PUBLISHED, ROOTS, SparseUNetModel
from sgm.sparse.sparsify import Rule, Table


class SparseDownsample(layers.ShortMap, Downsample):
    """A halving of the UNet."""

    geometry, conv_name = DOWN, "op"


class SparseEndPaddedDownsample(layers.ShortMap, model.Downsample):
    """A halving of the encoder."""

    geometry = DOWN_END


class SparseUpsample(layers.ShortMap, model.Upsample):
    """A doubling."""

    geometry = DOUBLED


class SparseUNet(SparseUNetModel):
    """The UNet; sparse passes make the time embeddings of all residual blocks by one product."""

    def embedding(self, timesteps: Tensor, y: Tensor) -> Tensor | dict[nn.Module, Tensor]:
        """That of all residual blocks, [B, 4 * C]; in sparse passes projected by each, [B, C]."""
        emb, state = super().embedding(timesteps, y), self.site.state
        blocks = [layer for layer in state.layers.values() if isinstance(layer, SparseResBlock)]
        linears = [block.emb_layers[1] for block in blocks]
        if state.records:
            layers.lay_side_by_side(linears)
        if not state.is_sparse_pass:
            return emb
        emb, whole = F.silu(emb), layers.side_by_side(linears)
        if whole is None:
            return {block: layer(emb) for block, layer in zip(blocks, linears, strict=True)}
        parts = F.linear(emb, *whole).split([layer.out_features for layer in linears], dim=1)
        return dict(zip(blocks, parts, strict=True))


class SparseResBlock(SparseModule, ResBlock):
    """A residual block of the UNet: its activations belong to its norms, its sums to its
    convolutions."""

    def forward(self, x: Tensor, emb: Tensor | dict[nn.Module, Tensor]) -> Tensor:
        """x [B, C, H, W] or, in sparse passes, [B, C, n, 1], with emb as `SparseUNet` makes it."""
        if isinstance(emb, Tensor):
            return self._dense(x, emb)
        first, second = self.in_layers[2], self.out_layers[3]
        if not all(isinstance(conv, layers.ShortConv2d) for conv in (first, second)):  # adapters
            h = self.in_layers(x) + emb[self][:, :, None, None]
            return self.skip_connection(x) + self.out_layers(h)
        h = self.in_layers[0].normed(as_rows(x), silu=True)
        h = first.product(h, embedding=emb[self])
        h = self.out_layers[0].normed(h, silu=True)
        return rows_as_map(second.product(h, residual=as_rows(self.skip_connection(x))))


class SparseTransformerBlock(SparseModule, BasicTransformerBlock):
    """A transformer block on the active pixels; a sum is made together with the norm behind it."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, N, dim], context [B, M, context_dim] -> [B, N, dim]."""
        if not self.site.state.is_sparse_pass:
            return self._dense(x, context)
        x, added = self.unsummed(x, None, context)
        return x + added

    def unsummed(self, x: Tensor, added: Tensor | None, context: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the block's result, of the terms of its input (or that alone)."""
        ops = self.site.ops
        x, h = (x, self.norm1(x)) if added is None else ops.layer_norm(x, added, self.norm1)
        x, h = ops.layer_norm(x, self.attn1(h), self.norm2)
        x, h = ops.layer_norm(x, self.attn2(h, context), self.norm3)
        return x, self.ff(h)


class SparseSpatialTransformer(SparseModule, SpatialTransformer):
    """Transformer blocks on the active pixels."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, C, H, W] or, in sparse passes, [B, C, n, 1]."""
        if not self.site.state.is_sparse_pass:
            return self._dense(x, context)
        h, added = self._projected(self.proj_in, self.norm.normed(as_rows(x))), None
        for block in self.transformer_blocks:
            h, added = block.unsummed(h, added, context)
        h = h if added is None else h + added
        return x + rows_as_map(self._projected(self.proj_out, h))

    def _projected(self, layer: nn.Module, rows: Tensor) -> Tensor:
        """Rows [B, n, C] through a linear layer or a 1x1 convolution."""
        return layer(rows) if self.use_linear else as_rows(layer(rows_as_map(rows)))


class SparseSelfAttention(SparseModule, CrossAttention):
    """Self-attention with queries at the active pixels; keys and values elsewhere are recorded.

    The same result as computing all keys and values anew, since the others have not changed.
    """

    def _record(self, x: Tensor) -> Tensor:
        layers.lay_side_by_side((self.to_q, self.to_k, self.to_v))
        return self._sparse(x)

    def _sparse(self, x: Tensor) -> Tensor:
        whole = layers.side_by_side((self.to_q, self.to_k, self.to_v))
        if whole is None:
            q, kv = self.to_q(x), torch.cat([self.to_k(x), self.to_v(x)], dim=-1)
        else:
            width = self.to_q.out_features
            q, kv = F.linear(x, *whole).split([width, 2 * width], dim=-1)
        k, v = layers.update_kv_cache(self, kv).chunk(2, dim=-1)
        return self.to_out(self.site.ops.attention(q, k, v, self.heads))


class SparseTextAttention(layers.TextAttention, CrossAttention):
    """Cross-attention from the active pixels to the text."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, N, query_dim], context [B, M, context_dim] -> [B, N, query_dim]."""
        if not self.site.state.is_sparse_pass:
            return self._dense(x, context)
        k, v = self.text_keys(context)
        return self.to_out(self.site.ops.attention(self.to_q(x), k, v, self.heads))


class SparseAttnBlock(SparseModule, model.AttnBlock):
    """The autoencoder's attention: queries at the active pixels."""

    def _record(self, x: Tensor) -> Tensor:
        return x + self.proj_out(as_map(self._attended(x), (x.shape[2], x.shape[3])))

    def _sparse(self, x: Tensor) -> Tensor:
        return x + self.proj_out(rows_as_map(self._attended(x)))

    def _attended(self, x: Tensor) -> Tensor:
        """The rows [B, N, C] of the attention of a map's pixels, or of its active ones."""
        h = self.norm(x)
        q, k, v = (as_rows(layer(h)) for layer in (self.q, self.k, self.v))
        k, v = layers.update_kv_cache(self, torch.cat([k, v], dim=-1)).chunk(2, dim=-1)
        return self.site.ops.attention(q, k, v, heads=1)


FAST = Table(
    roots=ROOTS | {UNetModel: SparseUNet},
    rules=(
        # The UNet.
        Rule(ResBlock, "", SparseResBlock),
        Rule(ResBlock, "emb_layers.1", layers.FewRowsLinear),
        *(Rule(ResBlock, name, layers.SparseConvNorm) for name in ("in_layers.0", "out_layers.0")),
        *(Rule(ResBlock, name, layers.ShortConv2d) for name in ("in_layers.2", "out_layers.3")),
        Rule(
            ResBlock,
            "skip_connection",
            layers.SparseConv1x1,
            lambda name, owner: not isinstance(owner.skip_connection, nn.Identity),
        ),
        Rule(SpatialTransformer, "", SparseSpatialTransformer),
        Rule(SpatialTransformer, "norm", layers.SparseGroupNorm),
        *(
            Rule(SpatialTransformer, name, layers.SparseConv1x1, lambda name, t: not t.use_linear)
            for name in ("proj_in", "proj_out")
        ),
        Rule(BasicTransformerBlock, "", SparseTransformerBlock),
        *(
            Rule(SpatialTransformer, name, layers.FewRowsLinear, lambda name, t: t.use_linear)
            for name in ("proj_in", "proj_out")
        ),
        Rule(BasicTransformerBlock, "attn1", SparseSelfAttention),
        Rule(BasicTransformerBlock, "attn2", SparseTextAttention),
        *LINEAR,
        Rule(Downsample, "", SparseDownsample),
        Rule(Downsample, "op", layers.DownConv2d),
        Rule(UNetModel, "input_blocks.0.0", layers.EntryConv2d),
        Rule(UNetModel, "out.0", layers.SparseConvNorm),
        Rule(UNetModel, "out.2", layers.ExitConv2d),
        # The autoencoder; UNet and decoder share the doubling.
        *(Rule(model.ResnetBlock, name, layers.SparseConvNorm) for name in ("norm1", "norm2")),
        *(Rule(model.ResnetBlock, name, layers.ShortConv2d) for name in ("conv1", "conv2")),
        Rule(model.AttnBlock, "", SparseAttnBlock),
        Rule(model.AttnBlock, "norm", layers.SparseGroupNorm),
        Rule(model.Downsample, "", SparseEndPaddedDownsample),
        Rule(model.Downsample, "conv", layers.EndPaddedDownConv2d),
        Rule(model.Upsample, "", SparseUpsample),
        Rule(model.Upsample, "conv", layers.DoubledConv2d),
        *(
            rule
            for coder in (model.Encoder, model.Decoder)
            for rule in (
                Rule(coder, "conv_in", layers.EntryConv2d),
                Rule(coder, "norm_out", layers.SparseConvNorm),
                Rule(coder, "conv_out", layers.ExitConv2d),
            )
        ),
    ),
)


def table_for(network: nn.Module) -> Table:
    """The table of a network: the published blocks where its YAML names them."""
    return PUBLISHED if isinstance(network, SIGEUNetModel) else FAST
