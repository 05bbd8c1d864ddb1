"""Multiply-accumulates of one forward pass, counted from outside by tracing it.

The published figures come from a torchprofile that did not know fused attention; 0.1.0 counts it.
So both readings are given: `Macs.total` is the published convention, `Macs.with_attention` all of
it. What torchprofile lacks for our operators is added here and nowhere else.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchprofile.handlers import HANDLER_MAP
from torchprofile.ir import Node
from torchprofile.trace import trace

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
INTEGERS = ("bool", "byte", "char", "short", "int", "long")
# Operators of ours that torchprofile does not know and that multiply nothing: choosing, moving
# and comparing elements, and exponentials.
FREE_OPERATORS = frozenset(
    {
        "aten::__and__",
        "aten::__or__",
        "aten::_unique2",
        "aten::all",
        "aten::any",
        "aten::bitwise_not",
        "aten::clamp_min",
        "aten::empty",
        "aten::exp",
        "aten::expand_as",
        "aten::full",
        "aten::full_like",
        "aten::index_copy",
        "aten::index_put",
        "aten::index_select",
        "aten::item",
        "aten::logical_and",
        "aten::maximum",
        "aten::minimum",
        "aten::new_zeros",
        "aten::nonzero",
        "aten::ones",
        "aten::pad",
        "aten::square",
        "aten::unbind",
        "aten::where",
        "aten::zeros_like",
    }
)


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Attributes:
        by_operator: counts by the tracer's operator name, such as `aten::linear`; none of 0.
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


class _PlainSizes(TorchFunctionMode):
    """While tracing, the sizes of tensors are numbers.

    The tracer hands them out as tensors, which, as part of the key of a dictionary (a mask by its
    resolution), are never found again.
    """

    READERS = (Tensor.shape.__get__, Tensor.size, Tensor.numel)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in self.READERS:
            return result
        if isinstance(result, tuple):
            return torch.Size([int(length) for length in result])
        return int(result)


def _elementwise(node: Node) -> int:
    """One per element of the result; nothing for integers, which are positions."""
    result = node.outputs[0]
    return 0 if result.dtype in INTEGERS else math.prod(result.shape or ())


# Before those of torchprofile. `addcmul` is a scale and a shift in one; it counts like `mul`.
HANDLERS: dict[str, Callable[[Node], int] | None] = {
    **dict.fromkeys(FREE_OPERATORS),
    "aten::addcmul": _elementwise,
    "aten::mul": _elementwise,
    "aten::mul_": _elementwise,
}


def count_macs(module: nn.Module | Callable[..., Any], *args: Any) -> Macs:
    """Count the multiply-accumulates of `module(*args)`, which is run once.

    A sparse network is counted in the mode that it is in: inside its `sparse` scope that is a
    sparse pass. Active sets that are built on the way cost nothing. Kernels outside of PyTorch
    are invisible to the tracer, so the sparse operators must be those of the `torch` backend; the
    counts are the same for all.

    Args:
        module: a network, or any function whose result is or holds a tensor.
        args: its positional arguments.

    Returns:
        The counts. An operator that nobody knows counts 0 and is named in the log.
    """
    with (
        torch.inference_mode(False),  # tensors of inference mode cannot be traced
        torch.no_grad(),
        warnings.catch_warnings(),
        _PlainSizes(),
    ):
        # The tracer warns wherever values steer the program; they are those of this very pass.
        warnings.simplefilter("ignore")
        graph = trace(module, args)
    counts: Counter[str] = Counter()
    unknown = set()
    for node in graph.nodes:
        name = node.operator
        if name in HANDLERS or name in HANDLER_MAP:
            handler = HANDLERS[name] if name in HANDLERS else HANDLER_MAP[name]
            counts[name] += handler(node) if handler is not None else 0
        elif not name.startswith("prim::"):
            unknown.add(name)
    if unknown:
        logger.warning("Not counted, since unknown: %s.", ", ".join(sorted(unknown)))
    return Macs({name: count for name, count in sorted(counts.items()) if count})
