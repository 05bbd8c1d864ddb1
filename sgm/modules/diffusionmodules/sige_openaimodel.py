"""The sparse blocks of the published UNet: same wiring, same keys.

Published behaviour: the first convolution, the residual blocks of the middle and the output head
stay dense.
"""

from torch import Tensor

from sgm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel
from sgm.sparse.active import UNET_DOWN
from sgm.sparse.modules import (
    Residual,
    record_conv,
    record_residual,
    sparse_conv,
    sparse_residual,
)
from sgm.sparse.network import SparseModule


class SIGEResBlock(SparseModule, ResBlock):
    """A residual block that can run at the active pixels only."""

    def _parts(self) -> Residual:
        same = self.in_layers[2].in_channels == self.in_layers[2].out_channels
        return Residual(
            norm1=self.in_layers[0],
            conv1=self.in_layers[2],
            norm2=self.out_layers[0],
            conv2=self.out_layers[3],
            shortcut=None if same else self.skip_connection,
        )

    def _record(self, x: Tensor, emb: Tensor) -> Tensor:
        return record_residual(self.site, self._parts(), x, self.emb_layers(emb))

    def _sparse(self, x: Tensor) -> Tensor:
        return sparse_residual(self.site, self._parts(), x)


class SIGEDownsample(SparseModule, Downsample):
    """A stride-2 convolution that can run at the active pixels only."""

    def _record(self, x: Tensor) -> Tensor:
        return record_conv(self.site, self._dense(x))

    def _sparse(self, x: Tensor) -> Tensor:
        return sparse_conv(self.site, x, self.op, UNET_DOWN)


class SIGEUNetModel(UNetModel):
    """`UNetModel` that `sparsify` gives the published blocks."""
