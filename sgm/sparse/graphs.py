"""A sparse step as one CUDA graph: recorded once, then launched as a whole.

A sparse step is hundreds of small kernels, and launching them one by one takes longer than running
them. A graph needs the same shapes and addresses every time; `StaticMemory` keeps them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Step = Callable[[], Tensor]
# Runs a step and keeps it: the tensor of its result, and what computes that anew in place.
Capture = Callable[[Step], tuple[Tensor, Callable[[], None]]]


def capture_graph(step: Step) -> tuple[Tensor, Callable[[], None]]:
    """Capture a step on CUDA; one pass beforehand on a stream of its own, where libraries set up
    what they must not allocate during a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    graph.replay()
    return out, graph.replay


def repeat(step: Step) -> tuple[Tensor, Callable[[], None]]:
    """What stands in for a graph on devices without: the step is run anew every time."""
    out = step().clone()

    def run() -> None:
        out.copy_(step())

    return out, run


@dataclass(frozen=True, eq=False)
class _Captured:
    """A step with the memory of its tensors, in the order of its arguments, and of its result."""

    inputs: list[Tensor]
    out: Tensor
    replay: Callable[[], None]


class StepGraphs:
    """Steps of one network, captured when they come a second time.

    Args:
        capture: how a step is kept; by default as a CUDA graph on CUDA and by `repeat` elsewhere.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = capture
        self.captures = 0
        self._seen: set[object] = set()
        self._steps: dict[object, _Captured] = {}
        self._version = -1

    def run(
        self,
        forward: Callable[..., Tensor],
        args: tuple[Any, ...],
        named: Mapping[str, Any],
        version: Callable[[], int],
    ) -> Tensor:
        """`forward` of the arguments, by the graph of the last such call where there is one.

        The first call of a kind runs as it is, which builds the active sets and tunes kernels; the
        second captures; from the third on the graph runs.

        Args:
            args, named: of `forward`; the tensors among them, also inside of lists and
                dictionaries, are copied to where the graph reads them.
            version: of the memory that the step reads besides; when it changes, all graphs go.
        """
        if version() != self._version:
            self._seen, self._steps = set(), {}
        leaves, layout = pytree.tree_flatten((args, dict(named)))
        kind = (str(layout), *map(_kind, leaves))
        known = self._steps.get(kind)
        if known is None and kind not in self._seen:
            out = forward(*args, **named)
            if version() != self._version:  # the first pass has built what it needs
                self._seen, self._version = set(), version()
            self._seen.add(kind)
            return out
        if known is None:
            known = self._steps[kind] = self._keep(forward, leaves, layout)
            return known.out.clone()
        given = (leaf for leaf in leaves if isinstance(leaf, Tensor))
        for kept, x in zip(known.inputs, given, strict=True):
            kept.copy_(x)
        known.replay()
        return known.out.clone()

    def _keep(
        self, forward: Callable[..., Tensor], leaves: list[Any], layout: pytree.TreeSpec
    ) -> _Captured:
        own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, named = pytree.tree_unflatten(own, layout)
        inputs = [leaf for leaf in own if isinstance(leaf, Tensor)]
        capture = self.capture or (capture_graph if inputs[0].is_cuda else repeat)
        out, replay = capture(lambda: forward(*args, **named))
        self.captures += 1
        return _Captured(inputs, out, replay)


def _kind(leaf: Any) -> object:
    """What must be the same for a graph to serve again: layout of a tensor, value of the rest."""
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    return leaf.shape, leaf.dtype, leaf.device, leaf.stride()
