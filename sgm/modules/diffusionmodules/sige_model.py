"""The sparse blocks of the published encoder and decoder: same wiring, same keys.

Published behaviour: the first convolution and the output head stay dense.
"""

import torch.nn.functional as F
from torch import Tensor

from sgm.modules.diffusionmodules.model import (
    AttnBlock,
    Downsample,
    ResnetBlock,
    Upsample,
)
from sgm.modules.sige_attention import attend_unfused
from sgm.sparse.active import CONV1X1, CONV3X3, VAE_DOWN
from sgm.sparse.backends.base import Prologue
from sgm.sparse.modules import (
    Residual,
    as_map,
    as_rows,
    record_conv,
    record_residual,
    scatter_map,
    sparse_conv,
    sparse_residual,
    upsampled,
)
from sgm.sparse.network import SparseModule
from sgm.sparse.norm import group_norm_affine


class SIGEResnetBlock(SparseModule, ResnetBlock):
    """A residual block that can run at the active pixels only."""

    def _parts(self) -> Residual:
        return Residual(self.norm1, self.conv1, self.norm2, self.conv2, self.shortcut())

    def _record(self, x: Tensor) -> Tensor:
        return record_residual(self.site, self._parts(), x)

    def _sparse(self, x: Tensor) -> Tensor:
        return sparse_residual(self.site, self._parts(), x)


class SIGEAttnBlock(SparseModule, AttnBlock):
    """Self-attention with queries at the active pixels; keys and values elsewhere are recorded."""

    def _record(self, x: Tensor) -> Tensor:
        norm = group_norm_affine(x, self.norm)
        h = norm(x).to(x.dtype)
        q, k, v = (as_rows(layer(h)) for layer in (self.q, self.k, self.v))  # [B, H*W, C]
        attended = F.scaled_dot_product_attention(q, k, v)
        out = x + self.proj_out(as_map(attended, (x.shape[2], x.shape[3])))
        self.site.put(norm=norm, key=k, value=v, out=out)
        return out

    def _sparse(self, x: Tensor) -> Tensor:
        site, ops = self.site, self.site.ops
        active = site.active(CONV1X1, x)
        h = ops.gather(as_rows(x), active, Prologue(site.affine("norm", x)))  # [B, n, C]
        q, k, v = (
            F.linear(h, layer.weight[:, :, 0, 0], layer.bias) for layer in (self.q, self.k, self.v)
        )
        known_k, known_v = site.tensor("key", x), site.tensor("value", x)
        k = ops.scatter(known_k, active, k, in_place=site.mask_specific)  # [B, H*W, C]
        v = ops.scatter(known_v, active, v, in_place=site.mask_specific)
        rows = attend_unfused(q, k, v, heads=1)
        rows = F.linear(rows, self.proj_out.weight[:, :, 0, 0], self.proj_out.bias)
        return scatter_map(site, site.tensor("out", x), active, rows, x)


class SIGEDownsample(SparseModule, Downsample):
    """A stride-2 convolution that can run at the active pixels only."""

    def _record(self, x: Tensor) -> Tensor:
        return record_conv(self.site, self._dense(x))

    def _sparse(self, x: Tensor) -> Tensor:
        return sparse_conv(self.site, x, self.conv, VAE_DOWN)


class SIGEUpsample(SparseModule, Upsample):
    """A doubling whose convolution can run at the active pixels only."""

    def _record(self, x: Tensor) -> Tensor:
        return record_conv(self.site, self._dense(x))

    def _sparse(self, x: Tensor) -> Tensor:
        return sparse_conv(self.site, upsampled(x), self.conv, CONV3X3)
