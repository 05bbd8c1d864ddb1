"""The UNets and autoencoders of diffusers on active pixels.

In dense mode every layer runs diffusers' own forward. What a sparse pass cannot do is refused by
name (`obstacle`), when the network is made sparse and again at every recording.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock, FeedForward, GatedSelfAttentionDense
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets import unet_2d_condition
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from sgm.sparse import layers
from sgm.sparse.backends.torch_ref import PLAIN
from sgm.sparse.layers import as_map, as_rows, rows_as_map
from sgm.sparse.mask_sets import SparseStateError
from sgm.sparse.network import SparseModule, SparseRoot
from sgm.sparse.pixels import DOUBLED, DOWN, DOWN_END, PIXELS, PixelGeometry
from sgm.sparse.sparsify import Rule, Table

# Processors that all compute plain attention, in different amounts of memory.
PLAIN_PROCESSORS = (AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)
# Arguments of a UNet that are added to its maps: by ControlNets and T2I adapters.
RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


class UNet2DConditionModel(SparseRoot, unet_2d_condition.UNet2DConditionModel):
    """The UNet with sparse passes; under its own name, which is written where it is saved."""

    __module__ = unet_2d_condition.__name__

    def forward(
        self, *args: Any, return_dict: bool = True, **named: Any
    ) -> UNet2DConditionOutput | tuple[Tensor]:
        """As that of diffusers; `return_dict` by its name."""
        out = super().forward(*args, **named)
        return UNet2DConditionOutput(sample=out) if return_dict else (out,)

    def run_pass(self, *args: Any, **named: Any) -> Tensor:
        if self.site.state.is_sparse_pass:
            if "ip_adapter_masks" in (named.get("cross_attention_kwargs") or {}):
                raise SparseStateError(
                    "ip_adapter_masks are for whole maps, and no sparse pass can have them."
                )
            named = {k: self._rows(v) if k in RESIDUALS else v for k, v in named.items()}
        return super().run_pass(*args, return_dict=False, **named)[0]

    def _rows(self, given: Any) -> Any:
        """Whole maps [B, C, H, W], alone or in a list, as those of their active pixels."""
        if isinstance(given, Tensor):
            active = self.site.active(PIXELS, given)
            return rows_as_map(self.site.ops.gather(as_rows(given), active, PLAIN))
        return given if given is None else type(given)(map(self._rows, given))

    def zeros(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        x = args[0] if args else named["sample"]
        return x.new_zeros(len(x), self.config.out_channels, *x.shape[2:])

    def text_of(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
        """None where the network changes it first, or the weights for the time of a pass."""
        if self.encoder_hid_proj is not None or named.get("cross_attention_kwargs"):
            return None
        return args[2] if len(args) > 2 else named["encoder_hidden_states"]


class _Coder(SparseRoot):
    """Half of an autoencoder, of which every pass is of the whole picture."""

    def run_pass(self, *args: Any, **named: Any) -> Tensor:
        """As that of diffusers.

        Raises:
            SparseStateError: a recording gets a second pass.
        """
        if self.site.state.records and self.site.state.record.values:
            raise SparseStateError(
                "The autoencoder came in more than one pass, as tiles or slices; call "
                "disable_tiling and disable_slicing on it."
            )
        return super().run_pass(*args, **named)


class SparseEncoder(_Coder, Encoder):
    """The encoder with sparse passes."""

    def zeros(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        sample = args[0] if args else named["sample"]
        scale = 2 ** sum(len(block.downsamplers or ()) for block in self.down_blocks)
        size = (sample.shape[2] // scale, sample.shape[3] // scale)
        return sample.new_zeros(len(sample), self.conv_out.out_channels, *size)


class SparseDecoder(_Coder, Decoder):
    """The decoder with sparse passes."""


class SparseDownsample2D(layers.ShortMap, Downsample2D):
    """A halving: of a UNet padded on every side, of an encoder at the end."""

    @property
    def geometry(self) -> PixelGeometry:
        return DOWN if self.padding else DOWN_END


class SparseUpsample2D(layers.ShortMap, Upsample2D):
    """A doubling."""

    geometry = DOUBLED


class SparseTransformer2DModel(SparseModule, Transformer2DModel):
    """A transformer whose maps stay channels-last: diffusers makes them contiguous, and each
    layer behind would have to copy its rows."""

    def forward(self, *args: Any, **named: Any) -> Any:
        """As that of diffusers."""
        return self._dense(*args, **named)

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        if not self.site.state.is_sparse_pass:
            return super()._get_output_for_continuous_inputs(
                hidden_states, residual, batch_size, height, width, inner_dim
            )
        if self.use_linear_projection:
            return as_map(self.proj_out(hidden_states), (height, width)) + residual
        return self.proj_out(as_map(hidden_states, (height, width))) + residual


class SparseSelfAttention(SparseModule, Attention):
    """Self-attention with queries at the active pixels; keys and values elsewhere are recorded.

    Of tokens [B, N, C] in a UNet; in an autoencoder of a map, with a norm before it and a sum with
    the map behind it.
    """

    def _record(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        context, mask = named.get("encoder_hidden_states"), named.get("attention_mask")
        if rest or context is not None or mask is not None:
            raise SparseStateError(
                f"{self.site.name} is a self-attention, and came with a context or a mask; no "
                "sparse pass can have them."
            )
        return self._sparse(x)

    def _sparse(self, x: Tensor) -> Tensor:
        h = x if self.group_norm is None else self.group_norm(x)
        h = as_rows(h) if x.ndim == 4 else h
        kv = torch.cat([self.to_k(h), self.to_v(h)], dim=-1)
        k, v = layers.update_kv_cache(self, kv).chunk(2, dim=-1)
        out = self.to_out[0](self.site.ops.attention(self.to_q(h), k, v, self.heads))
        out = as_map(out, (x.shape[2], x.shape[3])) if x.ndim == 4 else out
        return (out + x if self.residual_connection else out) / self.rescale_output_factor


class SparseTextAttention(layers.TextAttention, Attention):
    """Cross-attention from the active pixels to the text. One with a processor of its own (an
    IP-Adapter's) has that in sparse passes too, since each pixel attends for itself."""

    def forward(
        self, x: Tensor, encoder_hidden_states: Tensor | None = None, *rest: Any, **named: Any
    ) -> Tensor:
        """x [B, N, query_dim], encoder_hidden_states [B, T, C] -> [B, N, query_dim]."""
        masked = named.get("attention_mask") is not None
        if rest or masked or not (self.site.state.is_sparse_pass and is_plain(self)):
            return self._dense(x, encoder_hidden_states, *rest, **named)
        k, v = self.text_keys(encoder_hidden_states)
        return self.to_out[0](self.site.ops.attention(self.to_q(x), k, v, self.heads))


# The factors of FreeU, which it sets on the upward blocks.
FREEU = ("s1", "s2", "b1", "b2")


def is_plain(layer: Attention) -> bool:
    """Whether an attention is softmax(q k) v, without norms or products of its own."""
    more = (layer.norm_q, layer.norm_k, layer.norm_cross, layer.spatial_norm)
    plain = type(layer.processor) in PLAIN_PROCESSORS and not layer.fused_projections
    same_heads = layer.inner_kv_dim == layer.inner_dim and layer.added_kv_proj_dim is None
    return plain and same_heads and not any(more)


def resamples(layer: nn.Module) -> bool:
    """Whether a halving or a doubling is one with a 3x3 convolution and nothing else."""
    if layer.norm is not None or not layer.use_conv:
        return False
    return isinstance(layer, Downsample2D) or (layer.interpolate and not layer.use_conv_transpose)


def obstacle(name: str, layer: nn.Module) -> str | None:
    """Why a layer cannot run on active pixels; None if it can."""
    match layer:
        case Attention() if not layer.is_cross_attention and not is_plain(layer):
            return (
                f"attends to itself by {type(layer.processor).__name__}, which no sparse pass "
                "knows; call set_default_attn_processor and unfuse_qkv_projections first"
            )
        case ResnetBlock2D() if layer.up or layer.down:
            return "resamples inside of a residual block"
        case Downsample2D() | Upsample2D() if not resamples(layer):
            return "resamples otherwise than by a 3x3 convolution"
        case Transformer2DModel() if not layer.is_input_continuous:
            return "cuts its map into patches"
        case BasicTransformerBlock() if layer.pos_embed is not None:
            return "numbers its tokens"
        case BasicTransformerBlock() if layer._chunk_size is not None:
            return "runs in chunks; call disable_forward_chunking first"
        case GatedSelfAttentionDense():
            return "is the self-attention of GLIGEN, which joins boxes to the pixels"
        case unet_2d_condition.UNet2DConditionModel() if layer.conv_norm_out is None:
            return "has no norm before its last convolution"
    if getattr(layer, "resnets", None) and all(getattr(layer, k, None) for k in FREEU):
        return "has FreeU, which filters whole maps; call disable_freeu first"
    return None


DIFFUSERS = Table(
    roots={
        unet_2d_condition.UNet2DConditionModel: UNet2DConditionModel,
        Encoder: SparseEncoder,
        Decoder: SparseDecoder,
    },
    rules=(
        *(Rule(ResnetBlock2D, name, layers.SparseConvNorm) for name in ("norm1", "norm2")),
        *(Rule(ResnetBlock2D, name, layers.ShortConv2d) for name in ("conv1", "conv2")),
        Rule(Transformer2DModel, "", SparseTransformer2DModel),
        Rule(Transformer2DModel, "norm", layers.SparseGroupNorm),
        *(
            Rule(
                Transformer2DModel,
                name,
                layers.FewRowsLinear,
                lambda name, t: t.use_linear_projection,
                required=False,
            )
            for name in ("proj_in", "proj_out")
        ),
        *(
            Rule(owner, name, layers.FewRowsLinear, required=False)  # not if it has been quantised
            for owner, names in {
                Attention: ("to_q", "to_k", "to_v", "to_out.0"),
                FeedForward: ("net.0.proj", "net.2"),
            }.items()
            for name in names
        ),
        Rule(Attention, "", SparseSelfAttention, lambda name, a: not a.is_cross_attention),
        Rule(Attention, "", SparseTextAttention, lambda name, a: a.is_cross_attention),
        Rule(Attention, "group_norm", layers.SparseGroupNorm),
        Rule(Downsample2D, "", SparseDownsample2D),
        Rule(Downsample2D, "conv", layers.DownConv2d, lambda name, d: bool(d.padding)),
        Rule(Downsample2D, "conv", layers.EndPaddedDownConv2d, lambda name, d: not d.padding),
        Rule(Upsample2D, "", SparseUpsample2D),
        Rule(Upsample2D, "conv", layers.DoubledConv2d),
        *(
            rule
            for root in (unet_2d_condition.UNet2DConditionModel, Encoder, Decoder)
            for rule in (
                Rule(root, "conv_in", layers.EntryConv2d),
                Rule(root, "conv_norm_out", layers.SparseConvNorm),
                Rule(root, "conv_out", layers.ExitConv2d),
            )
        ),
    ),
    obstacle=obstacle,
)


def table_for(network: nn.Module) -> Table:
    """The table of diffusers' networks."""
    return DIFFUSERS
