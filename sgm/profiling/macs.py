"""Multiply-accumulates of one forward pass, by the rules of the published figures.

Matrix products and convolutions are counted by PyTorch's own `FlopCounterMode`: in whatever way
they are spelled, they arrive at the few operators that it knows. The published figures were made
with torchprofile, which counts one more for every element that an affine norm, an elementwise
product or a mean returns. Its release of then (0.0.4) did not know fused attention; later ones
count it. So both readings are given: `Macs.total` is the published one, `Macs.with_attention` all.

Only shapes are looked at. A network on the meta device is counted without memory for weights or
activations, and with the same result. (torchprofile cannot do that: it traces, and a traced
convolution fails on the meta device. The tests compare with it on the CPU.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

# Functions of PyTorch that count one for every number returned; norms only if they have a weight.
# `addcmul` is a scale and a shift in one.
ELEMENTWISE = frozenset({"mul", "rmul", "imul", "multiply", "addcmul", "mean"})
NORMS = frozenset({"group_norm", "layer_norm"})
ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Attributes:
        products: convolutions, linear layers and matrix products, fused attention excluded.
        elementwise: affine norms, elementwise products and means. Depends on how formulas are
            spelled, and is below 1 % in the networks here.
        attention: both products of fused attention.
    """

    products: int
    elementwise: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """The published convention: fused attention is not counted."""
        return self.products + self.elementwise

    @property
    def with_attention(self) -> int:
        """Everything, fused attention included."""
        return self.total + self.attention


class _Functions(TorchFunctionMode):
    """While active, watches the functions that `FlopCounterMode` does not tell apart; that counts
    at the same time. A function that is written with others is seen as a whole, and they are not.
    """

    def __init__(self, flops: FlopCounterMode) -> None:
        super().__init__()
        self.flops = flops
        self.elementwise = self.attention = 0
        # What `flops` counted inside of fused attention; depends on the kernel that ran.
        self.flops_of_attention = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        before = self.flops.get_total_flops()
        result = func(*args, **kwargs)
        # `Tensor.mul_`, `Tensor.__mul__` and `torch.mul` are one to us.
        name = getattr(func, "__name__", "").strip("_")
        if name == ATTENTION:
            q, k, v = args[:3]  # [..., N, d], [..., M, d], [..., M, e]
            self.attention += math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
            self.flops_of_attention += self.flops.get_total_flops() - before
        elif name in ELEMENTWISE and result.is_floating_point():  # else they are positions
            self.elementwise += result.numel()
        elif name in NORMS:  # f(x, groups or shape, weight, bias)
            weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
            self.elementwise += 0 if weight is None else result.numel()
        return result


def count_macs(module: nn.Module | Callable[..., Any], *args: Any) -> Macs:
    """Count the multiply-accumulates of `module(*args)`, a network or any function, which is run
    once; tensors of the meta device do. Kernels outside of PyTorch cannot be seen, so the sparse
    operators must be those of the `torch` backend; the counts are the same for all."""
    flops = FlopCounterMode(display=False)
    functions = _Functions(flops)
    with torch.no_grad(), flops, functions:
        module(*args)
    products = (flops.get_total_flops() - functions.flops_of_attention) // 2
    return Macs(products, functions.elementwise, functions.attention)
