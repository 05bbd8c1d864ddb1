"""The plain PyTorch backend: any device, any dtype, and what other backends are tested against."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.sparse.active import ActiveSet
from sgm.sparse.backends.base import PLAIN, Prologue
from sgm.sparse.matmul import gated_linear, linear
from sgm.sparse.norm import RecordedRows

# Largest matrix of neighbour rows made at once; bounds memory at picture resolution, and keeps
# the matrix near the cache of a CPU core.
PATCH_BYTES = 32 * 2**20


def apply(prologue: Prologue, rows: Tensor) -> Tensor:
    """The prologue on rows [B, n, C]; arithmetic in float32 where scale and shift are."""
    out = rows
    if prologue.affine is not None:
        out = torch.addcmul(prologue.affine.shift[:, None], out, prologue.affine.scale[:, None])
    if prologue.silu:
        out = F.silu(out)
    return out.to(rows.dtype)


def ended(rows: Tensor, embedding: Tensor | None, residual: Tensor | None) -> Tensor:
    """Rows [B, n, C] of a convolution, with an embedding [B, C] and a residual [B, n, C] added."""
    if embedding is not None:
        rows = rows + embedding[:, None]
    return rows if residual is None else rows + residual


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention as `SparseOps.attention` has it, by the fastest kernel that torch knows."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class TorchOps:
    """See `SparseOps` for the contract of each operator."""

    name = "torch"
    memory_format = torch.channels_last

    def prepare(self, step: Callable[[], object]) -> None:
        pass  # nothing is compiled

    def gather(self, x: Tensor, active: ActiveSet, prologue: Prologue) -> Tensor:
        outputs, positions = active.written
        rows = apply(prologue, x.index_select(1, outputs))
        if positions is None:
            return rows
        return rows.new_zeros(len(x), active.count, x.shape[2]).index_copy(1, positions, rows)

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
        return ended(self._product(x, active, weight, bias, prologue), embedding, residual)

    def _product(
        self, x: Tensor, active: ActiveSet, weight: Tensor, bias: Tensor | None, prologue: Prologue
    ) -> Tensor:
        """The convolution [B, n, C_out] alone."""
        out_channels, channels, kernel, _ = weight.shape
        if kernel == 1:
            return linear(self.gather(x, active, prologue), weight[:, :, 0, 0], bias)
        support = active.support
        rows = apply(prologue, x if support is None else x.index_select(1, support))  # [B, m, C]
        rows = F.pad(rows, (0, 0, 0, 1))  # row m: the zero that padding reads
        matrix = weight.permute(0, 2, 3, 1).reshape(out_channels, -1)  # [C_out, k * k * C]
        taps = kernel * kernel
        row_bytes = len(x) * taps * channels * x.element_size()
        step = max(1, PATCH_BYTES // row_bytes)
        parts = []
        for table in active.table.split(step):
            patches = rows.index_select(1, table.flatten()).view(len(x), len(table), -1)
            parts.append(linear(patches, matrix, bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def scatter(
        self,
        base: Tensor,
        active: ActiveSet,
        rows: Tensor,
        residual: Tensor | None = None,
        *,
        in_place: bool = False,
    ) -> Tensor:
        outputs, positions = active.written
        if positions is not None:
            rows = rows.index_select(1, positions)
        if residual is not None:
            rows = rows + residual.index_select(1, outputs)
        write = base.index_copy_ if in_place else base.index_copy
        return write(1, outputs, rows)

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
        rows = self.conv(x, active, weight, bias, prologue)
        return self.scatter(base, active, rows, residual, in_place=in_place)

    def group_norm(
        self,
        rows: Tensor,
        active: ActiveSet,
        recorded: RecordedRows,
        norm: nn.GroupNorm,
        *,
        silu: bool = False,
    ) -> Tensor:
        old, around = recorded.rows, recorded.around
        if recorded.whole:
            around = None if around is None else old.index_select(1, around)
            old = self.gather(old, active, PLAIN)
        now = recorded.moments.replaced(old, rows, recorded.pixels, active.inside)
        short = rows if around is None else torch.cat([rows, around], dim=1)
        return apply(Prologue(now.affine(norm), silu), short)

    def layer_norm(self, x: Tensor, added: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        total = x + added
        return total, norm(total)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return attend(q, k, v, heads)

    def gated(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return gated_linear(x, weight, bias)
