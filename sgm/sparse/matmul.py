"""Matrix products of few rows, in the form that a CPU is fastest at."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows up to which a CPU multiplies from the right. With the few rows of an edit as the left matrix
# MKL reaches about half of its speed, with the many rows of the weights most of it.
FEW_ROWS = 128


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
