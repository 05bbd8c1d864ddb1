"""A sparse step as one CUDA graph: recorded once, then launched as a whole.

A sparse step is hundreds of small kernels, and launching them one by one takes longer than running
them. A graph needs the same shapes and addresses every time; `StaticMemory` keeps them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sgm.sparse.static import StaticMemory

# What a step returns is a tensor, or tensors in tuples, dictionaries and the like.
Step = Callable[[], Any]
# Runs a step and keeps it: its result, and what computes that anew in place.
Capture = Callable[[Step], tuple[Any, Callable[[], None]]]


def copied(result: Any) -> Any:
    """A result with copies of its tensors."""
    return pytree.tree_map_only(Tensor, Tensor.clone, result)


def capture_graph(step: Step) -> tuple[Any, Callable[[], None]]:
    """Capture a step on CUDA; one pass beforehand on a stream of its own, where libraries set up
    what they must not allocate during a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may copy meanwhile, as the one does that fetches recordings.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        out = step()
    graph.replay()
    return out, graph.replay


def repeat(step: Step) -> tuple[Any, Callable[[], None]]:
    """What takes the place of a graph on devices that have none: the step is run every time."""
    out = copied(step())

    def run() -> None:
        for old, new in zip(pytree.tree_leaves(out), pytree.tree_leaves(step()), strict=True):
            if isinstance(old, Tensor):
                old.copy_(new)

    return out, run


@dataclass(frozen=True, eq=False)
class _Captured:
    """A step with the memory of its tensors, in the order of its arguments, and of its result."""

    inputs: list[Tensor]
    out: Any
    replay: Callable[[], None]


@dataclass(eq=False)
class Kinds:
    """The kinds of steps that came with one memory, and those that were captured.

    Attributes:
        version: of the memory that they read; -1 before the first step.
        seen: kinds that came once, and are captured when they come again.
        steps: the captured ones, by kind.
    """

    version: int = -1
    seen: set[object] = field(default_factory=set)
    steps: dict[object, _Captured] = field(default_factory=dict)


@dataclass(eq=False)
class MaskMemory:
    """What graphs read of masks of one size, and of recordings for these alone."""

    static: StaticMemory = field(default_factory=StaticMemory)
    kinds: Kinds = field(default_factory=Kinds)


class StepGraphs:
    """Steps of one network, captured when they come a second time.

    Args:
        capture: how a step is kept; by default as a CUDA graph on CUDA and by `repeat` elsewhere.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = capture
        self.captures = 0

    def run(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        named: Mapping[str, Any],
        version: Callable[[], int],
        kinds: Kinds,
        prepare: Callable[[Step], None],
    ) -> Any:
        """`forward` of the arguments, by the graph of the last such call where there is one.

        The first call of a kind runs as it is, which builds the active sets and tunes kernels; the
        second captures; from the third on the graph runs.

        Args:
            args, named: of `forward`; the tensors among them, also inside of lists and
                dictionaries, are copied to where the graph reads them.
            version: of the memory that the step reads besides; when it changes, its graphs go.
            kinds: of steps with that memory; changed.
            prepare: compiles what a step needs, which may run it.
        """
        if version() != kinds.version:
            kinds.seen, kinds.steps = set(), {}
        leaves, layout = pytree.tree_flatten((args, dict(named)))
        kind = (str(layout), *map(_kind, leaves))
        known = kinds.steps.get(kind)
        if known is None and kind not in kinds.seen:
            prepare(lambda: forward(*args, **named))
            out = forward(*args, **named)
            if version() != kinds.version:  # the first pass has built what it needs
                kinds.seen, kinds.version = set(), version()
            kinds.seen.add(kind)
            return out
        if known is None:
            known = kinds.steps[kind] = self._keep(forward, leaves, layout)
            return copied(known.out)
        given = (leaf for leaf in leaves if isinstance(leaf, Tensor))
        for kept, x in zip(known.inputs, given, strict=True):
            kept.copy_(x)
        known.replay()
        return copied(known.out)

    def _keep(
        self, forward: Callable[..., Any], leaves: list[Any], layout: pytree.TreeSpec
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
