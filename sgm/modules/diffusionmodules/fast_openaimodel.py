"""The UNet of preset `fast`: same wiring, same keys, layers that run on active pixels alone."""

from sgm.modules.attention import BasicTransformerBlock, SpatialTransformer
from sgm.modules.diffusionmodules.model import Upsample
from sgm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel
from sgm.modules.fast_layers import (
    FastConv2d,
    FastConvNorm,
    FastEntryConv2d,
    FastExitConv2d,
    FastGroupNorm,
    FastNormedConv2d,
    FastSelfAttention,
    FastTextAttention,
    FastUpsampledConv2d,
)
from sgm.sparse.network import SparseNetwork


class FastResBlock(ResBlock):
    """A residual block on active pixels."""

    norm_cls = FastConvNorm
    conv_cls = FastNormedConv2d


class FastTransformerBlock(BasicTransformerBlock):
    """A transformer block on active tokens."""

    self_attention_cls = FastSelfAttention
    text_attention_cls = FastTextAttention


class FastSpatialTransformer(SpatialTransformer):
    """A spatial transformer on active pixels."""

    block_cls = FastTransformerBlock
    norm_cls = FastGroupNorm


class FastDownsample(Downsample):
    """A halving from active pixels to active pixels."""

    conv_cls = FastConv2d


class FastUpsample(Upsample):
    """A doubling from active pixels to active pixels."""

    conv_cls = FastUpsampledConv2d


class FastUNetModel(SparseNetwork, UNetModel):
    """`UNetModel` on active pixels; `state` owns its recording and its mode."""

    resblock_cls = FastResBlock
    middle_resblock_cls = FastResBlock
    transformer_cls = FastSpatialTransformer
    downsample_cls = FastDownsample
    upsample_cls = FastUpsample
    norm_cls = FastConvNorm
    entry_cls = FastEntryConv2d
    exit_cls = FastExitConv2d
