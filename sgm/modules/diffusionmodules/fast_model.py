"""Encoder and decoder of preset `fast`: same wiring, same keys, layers on active pixels alone."""

import torch.nn.functional as F
from torch import Tensor

from sgm.modules.diffusionmodules.model import (
    AttnBlock,
    Decoder,
    Downsample,
    Encoder,
    ResnetBlock,
    Upsample,
)
from sgm.modules.fast_layers import (
    FastConvNorm,
    FastEndPaddedConv2d,
    FastEntryConv2d,
    FastExitConv2d,
    FastGroupNorm,
    FastNormedConv2d,
    FastUpsampledConv2d,
    replaced,
    rows_as_map,
)
from sgm.sparse.modules import as_map, as_rows
from sgm.sparse.network import SparseModule, SparseNetwork


class FastResnetBlock(ResnetBlock):
    """A residual block on active pixels."""

    norm_cls = FastConvNorm
    conv_cls = FastNormedConv2d


class FastAttnBlock(SparseModule, AttnBlock):
    """Self-attention with queries at the active pixels; keys and values elsewhere are recorded."""

    norm_cls = FastGroupNorm

    def _record(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (as_rows(layer(h)) for layer in (self.q, self.k, self.v))  # [B, H*W, C]
        self.site.put(key=k, value=v)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(as_map(attended, (x.shape[2], x.shape[3])))

    def _sparse(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (as_rows(layer(h)) for layer in (self.q, self.k, self.v))  # [B, n, C]
        attended = F.scaled_dot_product_attention(q, *replaced(self, k, v))
        return x + self.proj_out(rows_as_map(attended))


class FastDownsample(Downsample):
    """A halving from active pixels to active pixels."""

    conv_cls = FastEndPaddedConv2d


class FastUpsample(Upsample):
    """A doubling from active pixels to active pixels."""

    conv_cls = FastUpsampledConv2d


class FastEncoder(SparseNetwork, Encoder):
    """`Encoder` on active pixels; `state` owns its recording and its mode."""

    resnet_cls = FastResnetBlock
    attn_cls = FastAttnBlock
    downsample_cls = FastDownsample
    norm_cls = FastConvNorm
    entry_cls = FastEntryConv2d
    exit_cls = FastExitConv2d


class FastDecoder(SparseNetwork, Decoder):
    """`Decoder` on active pixels; `state` owns its recording and its mode."""

    resnet_cls = FastResnetBlock
    attn_cls = FastAttnBlock
    upsample_cls = FastUpsample
    norm_cls = FastConvNorm
    entry_cls = FastEntryConv2d
    exit_cls = FastExitConv2d
