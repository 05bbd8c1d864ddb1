"""Multiply-accumulates of one forward pass, counted from outside by watching PyTorch's functions.

The counting rules are those of torchprofile, with which the published figures were made: products
of matrices and convolutions, one for every element that an affine norm, an elementwise product or
a mean returns, nothing for the rest. The torchprofile of the published figures (0.0.4) did not
know fused attention; later ones count it. So both readings are given: `Macs.total` is the
published convention, `Macs.with_attention` all of it.

Only shapes are looked at. A network on the meta device is counted without memory for weights or
activations, and with the same result.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

logger = logging.getLogger(__name__)

FUSED_ATTENTION = "aten::scaled_dot_product_attention"
# The sparse engine runs convolutions as products of rows, of the same size, so that only the sum
# over these can be compared between engines.
MATRIX_OPERATORS = (
    "aten::_convolution",
    "aten::linear",
    "aten::matmul",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
)
# Functions that return floating-point numbers and multiply nothing by these rules: choosing and
# moving elements, sums, and functions of single elements.
_FREE = """
add radd iadd sub rsub isub neg div truediv rtruediv abs exp cos sin sqrt rsqrt square pow rpow
clamp clamp_min clamp_max max_pool2d maximum minimum sum amax amin where masked_fill
silu gelu sigmoid softmax dropout pad interpolate embedding
to float half bfloat16 type_as contiguous clone detach copy cpu cuda requires_grad
reshape view view_as flatten unflatten permute transpose t T movedim squeeze unsqueeze expand
expand_as repeat chunk split unbind cat stack getitem setitem narrow select
index_select index_copy index_add index_put gather scatter scatter_add take_along_dim
zeros zeros_like ones ones_like empty empty_like empty_strided full full_like new_zeros
new_empty new_ones new_full new_tensor arange linspace tensor as_tensor get set
"""
FREE_FUNCTIONS = frozenset(_FREE.split())


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Attributes:
        by_operator: counts by torchprofile's name of the operator, such as `aten::linear`; none
            of 0.
    """

    by_operator: Mapping[str, int]

    @property
    def total(self) -> int:
        """The published convention: fused attention is not counted."""
        return self.with_attention - self.attention

    @property
    def with_attention(self) -> int:
        """Everything, fused attention included."""
        return sum(self.by_operator.values())

    @property
    def attention(self) -> int:
        """Fused attention alone."""
        return self.by_operator.get(FUSED_ATTENTION, 0)

    @property
    def products(self) -> int:
        """Convolutions, linear layers and matrix products; the rest depends on how formulas are
        spelled and is below 1 % in the networks here."""
        return sum(self.by_operator.get(name, 0) for name in MATRIX_OPERATORS)


Rule = Callable[[Tensor, tuple[Any, ...], Mapping[str, Any]], int]


def _elements(out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """One for each number returned."""
    return out.numel()


def _norm(out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """One for each number returned, if there is a weight: f(x, groups or shape, weight, bias)."""
    weight = kwargs.get("weight", args[2] if len(args) > 2 else None)
    return 0 if weight is None else out.numel()


def _matmul(out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """f(a, b): the last axis of a is summed over."""
    return out.numel() * args[0].shape[-1]


def _added_matmul(out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """f(c, a, b), for c + a @ b."""
    return out.numel() * args[1].shape[-1]


def _convolution(out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """f(x, weight [C_out, C_in / groups, k, k], ...)."""
    return out.numel() * math.prod(args[1].shape[1:])


def _attention(out: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """f(q [..., N, d], k [..., M, d], v [..., M, e], ...): both of its products."""
    q, k, v = args[:3]
    return math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])


# By the plain name of the function: torchprofile's name and the rule. `addcmul` is a scale and a
# shift in one; it counts like `mul`.
RULES: dict[str, tuple[str, Rule]] = {
    "conv2d": ("aten::_convolution", _convolution),
    "linear": ("aten::linear", _matmul),
    "matmul": ("aten::matmul", _matmul),
    "mm": ("aten::matmul", _matmul),
    "bmm": ("aten::bmm", _matmul),
    "addmm": ("aten::addmm", _added_matmul),
    "baddbmm": ("aten::baddbmm", _added_matmul),
    "scaled_dot_product_attention": (FUSED_ATTENTION, _attention),
    "group_norm": ("aten::group_norm", _norm),
    "layer_norm": ("aten::layer_norm", _norm),
    "mul": ("aten::mul", _elements),
    "rmul": ("aten::mul", _elements),
    "imul": ("aten::mul", _elements),
    "multiply": ("aten::mul", _elements),
    "addcmul": ("aten::addcmul", _elements),
    "mean": ("aten::mean", _elements),
}


class _Counting(TorchFunctionMode):
    """While active, adds up what the functions of PyTorch multiply. Nested calls (a function that
    is written with others) count once, as the outermost."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.unknown: set[str] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # `Tensor.mul_`, `Tensor.__mul__` and `torch.mul` are one to us.
        plain = getattr(func, "__name__", str(func)).strip("_")
        results = result if isinstance(result, tuple | list) else (result,)
        floating = any(isinstance(r, Tensor) and r.is_floating_point() for r in results)
        if plain in RULES:
            if floating:  # products of whole numbers are positions
                name, rule = RULES[plain]
                self.counts[name] += rule(result, args, kwargs or {})
        elif floating and plain not in FREE_FUNCTIONS:
            self.unknown.add(plain)
        return result


def count_macs(module: nn.Module | Callable[..., Any], *args: Any) -> Macs:
    """Count the multiply-accumulates of `module(*args)`, which is run once.

    A sparse network is counted in the mode that it is in: inside its `sparse` scope that is a
    sparse pass. Active sets that are built on the way cost nothing. Kernels outside of PyTorch
    cannot be seen, so the sparse operators must be those of the `torch` backend; the counts are
    the same for all.

    Args:
        module: a network, or any function.
        args: its positional arguments; tensors of the meta device do.

    Returns:
        The counts. A function that nobody knows counts 0 and is named in the log.
    """
    counting = _Counting()
    with torch.no_grad(), counting:
        module(*args)
    if counting.unknown:
        names = ", ".join(sorted(counting.unknown))
        logger.warning("Not counted, since unknown: %s.", names)
    return Macs({name: count for name, count in sorted(counting.counts.items()) if count})
