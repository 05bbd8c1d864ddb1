"""The networks of this package on active pixels (preset `fast`)."""

import torch.nn.functional as F
from torch import Tensor, nn

from sgm.modules.attention import (
    BasicTransformerBlock,
    CrossAttention,
    SpatialTransformer,
    attend,
)
from sgm.modules.diffusionmodules import model
from sgm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel
from sgm.modules.diffusionmodules.sige_openaimodel import SIGEUNetModel
from sgm.sparse.layers import (
    DOUBLED,
    DOWN,
    DOWN_END,
    DoubledConv2d,
    DownConv2d,
    EndPaddedDownConv2d,
    EntryConv2d,
    ExitConv2d,
    FewRowsLinear,
    ShortConv2d,
    ShortMap,
    SparseConvNorm,
    SparseGroupNorm,
    TextAttention,
    rows_as_map,
    update_kv_cache,
)
from sgm.sparse.modules import as_map, as_rows
from sgm.sparse.network import SparseModule
from sgm.sparse.pixels import PixelGeometry
from sgm.sparse.rules.published import LINEAR, PUBLISHED, ROOTS
from sgm.sparse.sparsify import Rule, Table


class SparseDownsample(ShortMap, Downsample):
    """A halving of the UNet."""

    def short_conv(self) -> nn.Module:
        return self.op

    def geometry(self) -> PixelGeometry:
        return DOWN


class SparseEndPaddedDownsample(ShortMap, model.Downsample):
    """A halving of the encoder."""

    def short_conv(self) -> nn.Module:
        return self.conv

    def geometry(self) -> PixelGeometry:
        return DOWN_END


class SparseUpsample(ShortMap, model.Upsample):
    """A doubling."""

    def short_conv(self) -> nn.Module:
        return self.conv

    def geometry(self) -> PixelGeometry:
        return DOUBLED


class SparseSelfAttention(SparseModule, CrossAttention):
    """Self-attention with queries at the active pixels; keys and values elsewhere are recorded.

    The same result as computing all keys and values anew, since the others have not changed.
    """

    def _record(self, x: Tensor) -> Tensor:
        k, v = update_kv_cache(self, self.to_k(x), self.to_v(x))
        return self.to_out(attend(self.to_q(x), k, v, self.heads))

    _sparse = _record


class SparseTextAttention(TextAttention, CrossAttention):
    """Cross-attention from the active pixels to the text."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, N, query_dim], context [B, M, context_dim] -> [B, N, query_dim]."""
        if not self.site.state.is_sparse_pass:
            return self._dense(x, context)
        k, v = self.text_keys(context)
        return self.to_out(attend(self.to_q(x), k, v, self.heads))

    def project_text(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k(context), self.to_v(context)


class SparseAttnBlock(SparseModule, model.AttnBlock):
    """The autoencoder's attention: queries at the active pixels."""

    def _record(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (as_rows(layer(h)) for layer in (self.q, self.k, self.v))  # [B, H*W, C]
        attended = F.scaled_dot_product_attention(q, *update_kv_cache(self, k, v))
        return x + self.proj_out(as_map(attended, (x.shape[2], x.shape[3])))

    def _sparse(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (as_rows(layer(h)) for layer in (self.q, self.k, self.v))  # [B, n, C]
        attended = F.scaled_dot_product_attention(q, *update_kv_cache(self, k, v))
        return x + self.proj_out(rows_as_map(attended))


FAST = Table(
    roots=ROOTS,
    rules=(
        # The UNet.
        *(Rule(ResBlock, name, SparseConvNorm) for name in ("in_layers.0", "out_layers.0")),
        *(Rule(ResBlock, name, ShortConv2d) for name in ("in_layers.2", "out_layers.3")),
        Rule(SpatialTransformer, "norm", SparseGroupNorm),
        *(
            Rule(SpatialTransformer, name, FewRowsLinear, lambda name, owner: owner.use_linear)
            for name in ("proj_in", "proj_out")
        ),
        Rule(BasicTransformerBlock, "attn1", SparseSelfAttention),
        Rule(BasicTransformerBlock, "attn2", SparseTextAttention),
        *LINEAR,
        Rule(Downsample, "", SparseDownsample),
        Rule(Downsample, "op", DownConv2d),
        Rule(UNetModel, "input_blocks.0.0", EntryConv2d),
        Rule(UNetModel, "out.0", SparseConvNorm),
        Rule(UNetModel, "out.2", ExitConv2d),
        # The autoencoder; UNet and decoder share the doubling.
        *(Rule(model.ResnetBlock, name, SparseConvNorm) for name in ("norm1", "norm2")),
        *(Rule(model.ResnetBlock, name, ShortConv2d) for name in ("conv1", "conv2")),
        Rule(model.AttnBlock, "", SparseAttnBlock),
        Rule(model.AttnBlock, "norm", SparseGroupNorm),
        Rule(model.Downsample, "", SparseEndPaddedDownsample),
        Rule(model.Downsample, "conv", EndPaddedDownConv2d),
        Rule(model.Upsample, "", SparseUpsample),
        Rule(model.Upsample, "conv", DoubledConv2d),
        *(
            rule
            for coder in (model.Encoder, model.Decoder)
            for rule in (
                Rule(coder, "conv_in", EntryConv2d),
                Rule(coder, "norm_out", SparseConvNorm),
                Rule(coder, "conv_out", ExitConv2d),
            )
        ),
    ),
)


def table_for(network: nn.Module) -> Table:
    """The table of a network: the published blocks where its YAML names them."""
    return PUBLISHED if isinstance(network, SIGEUNetModel) else FAST
