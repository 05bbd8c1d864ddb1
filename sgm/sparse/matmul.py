"""Matrix products of few rows, in the form that a CPU is fastest at."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows up to which a CPU multiplies from the right. With the few rows of an edit as the left matrix
# MKL reaches about half of its speed, with the many rows of the weights most of it.
FEW_ROWS = 128
# Outputs of a gated layer that a CPU computes at once: a product with few rows and a wide output
# is slow there, and a piece stays in the cache for what follows.
CPU_PIECE = 640


def has_few_rows(x: Tensor) -> bool:
    """Whether products of x [..., C] are faster as `columns`."""
    fits = x.device.type == "cpu" and x.dtype is torch.float32
    return fits and x.shape[:-1].numel() <= FEW_ROWS


def columns(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear` with transposed operands and a transposed result.

    Args:
        x: [C, M], the transpose of M rows.
        weight: [N, C].
        bias: [N].

    Returns:
        [N, M].
    """
    return torch.mm(weight, x) if bias is None else torch.addmm(bias[:, None], weight, x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`, but for rounding.

    Args:
        x: [..., C].
        weight: [N, C].
        bias: [N].

    Returns:
        [..., N], contiguous.
    """
    if not has_few_rows(x):
        return F.linear(x, weight, bias)
    out = columns(x.reshape(-1, x.shape[-1]).t(), weight, bias)
    return out.t().reshape(*x.shape[:-1], len(weight)).contiguous()


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear`, whose first half is gated by the GELU of its second half (Shazeer, 2020).

    Args:
        x: [..., C].
        weight: [2 * N, C].
        bias: [2 * N].

    Returns:
        [..., N].
    """
    if has_few_rows(x):
        out = _gated_pieces(x.reshape(-1, x.shape[-1]).t(), weight, bias, columns, dim=0)
        return out.t().reshape(*x.shape[:-1], len(out))
    if x.device.type == "cpu":
        return _gated_pieces(x, weight, bias, F.linear, dim=-1)
    value, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


def _gated_pieces(
    x: Tensor, weight: Tensor, bias: Tensor, product: Callable[..., Tensor], dim: int
) -> Tensor:
    """A gated product, a piece of its outputs at a time; these are the dimension `dim` of what
    `product` makes."""
    (value, gate), (value_bias, gate_bias) = weight.chunk(2), bias.chunk(2)
    parts = (t.split(CPU_PIECE) for t in (value, value_bias, gate, gate_bias))
    pieces = [
        product(x, v, v_bias) * F.gelu(product(x, g, g_bias))
        for v, v_bias, g, g_bias in zip(*parts, strict=True)
    ]
    return torch.cat(pieces, dim)
