"""The contract of a sparse backend: operators on maps stored as rows.

A map [B, C, H, W] in channels-last memory is, without a copy, a matrix of rows [B, H * W, C].
Everything the engine computes is: read some rows, multiply them, write some rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sgm.sparse.active import ActiveSet
from sgm.sparse.norm import Affine, RecordedRows


@dataclass(frozen=True, eq=False)
class Prologue:
    """What is done to a row as it is read: x * scale + shift, then SiLU.

    Attributes:
        affine: scale and shift [B, C], or None.
        silu: whether the activation follows.
    """

    affine: Affine | None = None
    silu: bool = False


PLAIN = Prologue()


class SparseOps(Protocol):
    """Operators of one backend; dtypes are those of `x` unless said otherwise.

    Attributes:
        name: as it is chosen by.
        memory_format: the layout of weights and maps with which it is fastest. In any layout the
            results are the same.
    """

    name: str
    memory_format: torch.memory_format

    def prepare(self, step: Callable[[], object]) -> None:
        """Have whatever the operators of a step need compiled, side by side. The step may be run
        for it, with results that are of no use."""
        ...

    def gather(self, x: Tensor, active: ActiveSet, prologue: Prologue) -> Tensor:
        """Rows at the active outputs of a map of the same size, through the prologue.

        Args:
            x: [B, P, C] with P = H * W of `active.out_size`.

        Returns:
            [B, n, C]; zeros for outputs outside the map.
        """
        ...

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
        ...

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
        ...

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
        ...

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
        ...

    def layer_norm(self, x: Tensor, added: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
        """`x + added`, and its layer norm; all [..., C]."""
        ...

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Multi-head scaled dot-product attention (Vaswani et al., 2017).

        Args:
            q: [B, n, heads * d]. k, v: [B, m, heads * d].

        Returns:
            [B, n, heads * d].
        """
        ...

    def gated(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A linear layer whose first half is gated by the GELU of its second (Shazeer, 2020).

        Args:
            x: [..., C]. weight: [2 * D, C]. bias: [2 * D].

        Returns:
            [..., D].
        """
        ...
