"""The operators of a sparse backend on maps stored as rows, in plain PyTorch.

They run on any device and in any dtype. Other backends derive from them, and are tested against
them. A map [B, C, H, W] in channels-last memory is, without a copy, a matrix of rows [B, H * W, C].
Everything the engine computes is: read some rows, multiply them, write some rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.sparse.active import ActiveSet
from sgm.sparse.matmul import gated_linear, linear
from sgm.sparse.norm import Affine, RecordedRows

# Largest matrix of neighbour rows made at once; bounds memory at picture resolution, and keeps
# the matrix near the cache of a CPU core.
PATCH_BYTES = 32 * 2**20


@dataclass(frozen=True, eq=False)
class Prologue:
    """What is done to a row as it is read: x * scale + shift, then SiLU.

    Attributes:
        affine: scale and shift [B, C], or None.
        silu: whether the activation follows.
    """

    affine: Affine | None = None
    silu: bool = False

    def __call__(self, rows: Tensor) -> Tensor:
        """Apply to rows [B, n, C]; arithmetic in float32 where scale and shift are."""
        out = rows
        if self.affine is not None:
            out = torch.addcmul(self.affine.shift[:, None], out, self.affine.scale[:, None])
        if self.silu:
            out = F.silu(out)
        return out.to(rows.dtype)


PLAIN = Prologue()


def add_terms(rows: Tensor, embedding: Tensor | None, residual: Tensor | None) -> Tensor:
    """Rows [B, n, C] of a convolution, with an embedding [B, C] and a residual [B, n, C] added."""
    if embedding is not None:
        rows = rows + embedding[:, None]
    return rows if residual is None else rows + residual


class TorchOps:
    """Operators of one backend; dtypes are those of `x` unless said otherwise.

    Attributes:
        name: as it is chosen by.
        memory_format: the layout of weights and maps with which it is fastest. In any layout the
            results are the same.
    """

    name = "torch"
    memory_format = torch.channels_last

    def prepare(self, step: Callable[[], object]) -> None:
        """Have whatever the operators of a step need compiled, side by side. The step may be run
        for it, with results that are of no use."""

    def gather(self, x: Tensor, active: ActiveSet, prologue: Prologue) -> Tensor:
        """Rows at the active outputs of a map of the same size, through the prologue.

        Args:
            x: [B, P, C] with P = H * W of `active.out_size`.

        Returns:
            [B, n, C]; zeros for outputs outside the map.
        """
        outputs, positions = active.written
        rows = prologue(x.index_select(1, outputs))
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
        """A convolution at the active outputs; positions outside the input count as zero *after*
        the prologue, as they do for a padded dense convolution behind norm and activation.

        Args:
            x: [B, P, C_in] with P = H * W of `active.in_size`.
            weight: [C_out, C_in, k, k], fastest in channels-last memory.
            bias: [C_out] or None.
            embedding: [B, C_out], added to every output of a sample.
            residual: [B, n, C_out], added to the outputs.

        Returns:
            [B, n, C_out].
        """
        out_channels, channels, kernel, _ = weight.shape
        if kernel == 1:
            rows = linear(self.gather(x, active, prologue), weight[:, :, 0, 0], bias)
            return add_terms(rows, embedding, residual)
        support = active.support
        rows = prologue(x if support is None else x.index_select(1, support))  # [B, m, C]
        rows = F.pad(rows, (0, 0, 0, 1))  # row m: the zero that padding reads
        matrix = weight.permute(0, 2, 3, 1).reshape(out_channels, -1)  # [C_out, k * k * C]
        row_bytes = len(x) * kernel * kernel * channels * x.element_size()
        parts = []
        for table in active.table.split(max(1, PATCH_BYTES // row_bytes)):
            patches = rows.index_select(1, table.flatten()).view(len(x), len(table), -1)
            parts.append(linear(patches, matrix, bias))
        rows = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
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
        """`base` with the active outputs replaced by `rows` (+ residual there).

        Args:
            base: [B, P, C] with P = H * W of `active.out_size`.
            rows: [B, n, C]; rows of outputs outside the map are dropped.
            residual: [B, P, C], added at the active outputs only; other memory than `base`.
            in_place: the map may be written into `base` itself, whose values are then lost; else
                `base` stays as it is.

        Returns:
            [B, P, C].
        """
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
        """`conv`, then `scatter` of its rows, as one operator: a backend may add bias and residual
        and write where the rows belong while they are still in registers.

        Args:
            x: as in `conv`; other memory than `base`.
            base, residual, in_place: as in `scatter`, with C = C_out.

        Returns:
            [B, P_out, C_out].
        """
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
        """The group norm of a map of which the active pixels have changed, with the statistics
        of the whole map as it is now; arithmetic in float32.

        Args:
            rows: [B, n, C], the active pixels; those outside the map do not count.
            active: whose outputs these are.
            recorded: of the map before.
            silu: whether the activation follows.

        Returns:
            [B, n + m, C], the active rows and then the recorded ones around them.
        """
        old, around = recorded.rows, recorded.around
        if recorded.whole:
            around = None if around is None else old.index_select(1, around)
            old = self.gather(old, active, PLAIN)
        now = recorded.moments.replaced(old, rows, recorded.pixels, active.inside)
        short = rows if around is None else torch.cat([rows, around], dim=1)
        return Prologue(now.affine(norm), silu)(short)

    def layer_norm(self, x: Tensor, added: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """`x + added`, and its layer norm; all [..., C]."""
        total = x + added
        return total, norm(total)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Multi-head scaled dot-product attention (Vaswani et al., 2017).

        Args:
            q: [B, n, heads * d]. k, v: [B, m, heads * d].

        Returns:
            [B, n, heads * d].
        """
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def gated(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A linear layer whose first half is gated by the GELU of its second (Shazeer, 2020).

        Args:
            x: [..., C]. weight: [2 * D, C]. bias: [2 * D].

        Returns:
            [..., D].
        """
        return gated_linear(x, weight, bias)
