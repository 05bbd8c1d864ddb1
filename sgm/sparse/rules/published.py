"""The blocks of the published engine (preset `published`).

As published, the first convolution, the residual blocks of the UNet's middle, and the output heads
stay dense, and whole maps are handed on between blocks.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sgm.modules.attention import GEGLU, BasicTransformerBlock, SpatialTransformer
from sgm.modules.diffusionmodules import model, sige_model, sige_openaimodel
from sgm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel
from sgm.modules.sige_attention import SIGEBasicTransformerBlock, SIGESpatialTransformer
from sgm.sparse.layers import FewRowsLinear
from sgm.sparse.network import SparseModule, SparseRoot
from sgm.sparse.sparsify import Rule, Table


class SparseUNetModel(SparseRoot, UNetModel):
    """The UNet with sparse passes."""

    def text_of(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        return args[2] if len(args) > 2 else named["context"]


class SparseSIGEUNetModel(SparseRoot, sige_openaimodel.SIGEUNetModel):
    """The UNet with sparse passes, under its published name."""


class SparseEncoder(SparseRoot, model.Encoder):
    """The encoder with sparse passes."""


class SparseDecoder(SparseRoot, model.Decoder):
    """The decoder with sparse passes."""


class SparseGEGLU(SparseModule, GEGLU):
    """The gated layer, as one operator."""

    def _sparse(self, x: Tensor) -> Tensor:
        if type(self.proj) is not nn.Linear:  # an adapter
            return self._dense(x)
        return self.site.ops.gated(x, self.proj.weight, self.proj.bias)


def not_in_the_middle(name: str, block: nn.Module) -> bool:
    """Whether a residual block stands outside of the UNet's middle."""
    return not name.startswith("middle_block.")


ROOTS = {
    sige_openaimodel.SIGEUNetModel: SparseSIGEUNetModel,
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
        Rule(ResBlock, "", sige_openaimodel.SIGEResBlock, not_in_the_middle),
        Rule(Downsample, "", sige_openaimodel.SIGEDownsample),
        Rule(SpatialTransformer, "", SIGESpatialTransformer),
        Rule(BasicTransformerBlock, "", SIGEBasicTransformerBlock),
        Rule(model.ResnetBlock, "", sige_model.SIGEResnetBlock),
        Rule(model.AttnBlock, "", sige_model.SIGEAttnBlock),
        Rule(model.Downsample, "", sige_model.SIGEDownsample),
        Rule(model.Upsample, "", sige_model.SIGEUpsample),
    ),
    pixelwise=False,
)
