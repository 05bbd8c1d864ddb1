"""The published package `sige` behind our contract: its compiled kernels gather and scatter blocks.

The package (Li et al., 2022; release 0.3.0) works on contiguous maps [B, C, H, W] in float32 and on
square blocks: gather cuts [B * N, C, s, s] out of a map and applies scale, shift and activation, an
ordinary convolution without padding makes smaller blocks of them, and scatter puts these into a
copy of a map. So this backend runs the active sets of preset `published` only, and no half
precision. Rows [B, H * W, C] of such a map are a view of it, from which it is had back without a
copy.

It is here to be compared with: built by `python -m tools.install_sige`, never chosen by "auto".
"""

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.sparse.active import ActiveSet, Geometry
from sgm.sparse.backends.torch_ref import PLAIN, Prologue, TorchOps, add_terms


def _kernels(device: torch.device) -> Any:
    """The compiled module of a device type, which knows only of torch's symbols, loaded here."""
    return importlib.import_module(f"sige.{device.type}")


def _map(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Rows [B, H * W, C] as a contiguous map [B, C, H, W]; no copy if they are a view of one."""
    return rows.transpose(1, 2).unflatten(2, size).contiguous()


def _rows(x: Tensor) -> Tensor:
    """A contiguous map [B, C, H, W] as rows [B, H * W, C], a view."""
    return x.flatten(2).transpose(1, 2)


def _blocks(active: ActiveSet) -> tuple[Geometry, Tensor, Tensor]:
    """The geometry of a set's blocks, and the first input and first output of each, int32 [N, 2].

    Raises:
        ValueError: the set is not one of whole blocks.
    """
    if active.geometry is None:
        raise ValueError(
            "The backend sige computes whole blocks, and this active set has none; use preset "
            "published without graphs, or another backend."
        )
    return active.geometry, *active.corners32


class PublishedOps(TorchOps):
    """See `TorchOps` for the contract of each operator; float32 and sets of whole blocks only.

    Norms and the gated layer, of which the package has none, are the reference's.
    """

    name = "sige"
    memory_format = torch.contiguous_format

    def gather(self, x: Tensor, active: ActiveSet, prologue: Prologue) -> Tensor:
        geometry, _, outputs = _blocks(active)
        blocks = self._cut(x, active.out_size, geometry.out_block, outputs, prologue)
        return self._unblocked(blocks, len(x))

    def conv(
        self,
        x: Tensor,
        active: ActiveSet,
        weight: Tensor,
        bias: Tensor | None,
        prologue: Prologue = PLAIN,
        *,
        embedding: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        rows = self._unblocked(self._conv(x, active, weight, bias, prologue), len(x))
        return add_terms(rows, embedding, residual)

    def scatter(
        self,
        base: Tensor,
        active: ActiveSet,
        rows: Tensor,
        residual: Tensor | None = None,
        *,
        in_place: bool = False,
    ) -> Tensor:
        geometry, corners, _ = _blocks(active)
        batch, _, channels = rows.shape
        side = geometry.out_block
        shape = (batch * len(corners), channels, side, side)
        by_block = rows.reshape(batch * len(corners), side * side, channels)
        blocks = by_block.transpose(1, 2).reshape(shape)
        return self._put(base, active, blocks, residual)

    def conv_scatter(
        self,
        x: Tensor,
        active: ActiveSet,
        weight: Tensor,
        bias: Tensor | None,
        prologue: Prologue,
        base: Tensor,
        residual: Tensor | None = None,
        *,
        in_place: bool = False,
    ) -> Tensor:
        blocks = self._conv(x, active, weight, bias, prologue)
        return self._put(base, active, blocks, residual)

    @staticmethod
    def _cut(
        x: Tensor, size: tuple[int, int], side: int, corners: Tensor, prologue: Prologue
    ) -> Tensor:
        """Blocks [B * N, C, side, side] of the map x [B, H * W, C], through the prologue."""
        scale = shift = None
        if prologue.affine is not None:
            scale = prologue.affine.scale[:, :, None, None].contiguous()
            shift = prologue.affine.shift[:, :, None, None].contiguous()
        activation = "swish" if prologue.silu else "identity"
        gather = _kernels(x.device).gather
        return gather(_map(x, size), side, side, corners, scale, shift, activation, False)

    def _conv(
        self, x: Tensor, active: ActiveSet, weight: Tensor, bias: Tensor | None, prologue: Prologue
    ) -> Tensor:
        """The convolution's output blocks [B * N, C_out, s, s]."""
        geometry, inputs, _ = _blocks(active)
        blocks = self._cut(x, active.in_size, geometry.in_block, inputs, prologue)
        return F.conv2d(blocks, weight, bias, geometry.stride)

    @staticmethod
    def _put(base: Tensor, active: ActiveSet, blocks: Tensor, residual: Tensor | None) -> Tensor:
        """A copy of the map `base` with blocks (+ residual) put in; the package always copies."""
        _, _, outputs = _blocks(active)
        size = active.out_size
        residual = None if residual is None else _map(residual, size)
        scatter = _kernels(base.device).scatter
        # Places are given as outputs, so there is no padding and no stride left to undo.
        made = scatter(blocks.contiguous(), _map(base, size), 0, 0, 1, 1, outputs, residual)
        return _rows(made)

    @staticmethod
    def _unblocked(blocks: Tensor, batch: int) -> Tensor:
        """Blocks [B * N, C, s, s] as rows [B, N * s * s, C]."""
        return blocks.permute(0, 2, 3, 1).reshape(batch, -1, blocks.shape[1])
