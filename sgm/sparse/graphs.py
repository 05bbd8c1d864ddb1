"""A sparse step as one CUDA graph: recorded once, then launched as a whole.

A sparse step is hundreds of small kernels, and launching them one by one takes longer than running
them. A graph needs the same shapes and addresses every time; `StaticMemory` keeps them.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[], Tensor]
# Runs a step and keeps it: the tensor of its result, and what computes that anew in place.
Capture = Callable[[Step], tuple[Tensor, Callable[[], None]]]
# By position or by name.
Inputs = Mapping[int | str, Tensor]


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


def _call(forward: Callable[..., Tensor], inputs: Inputs) -> Tensor:
    named = {name: x for name, x in inputs.items() if isinstance(name, str)}
    return forward(*(x for name, x in inputs.items() if isinstance(name, int)), **named)


@dataclass(frozen=True, eq=False)
class _Captured:
    """A step with the memory of its inputs and of its result."""

    inputs: dict[int | str, Tensor]
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
        inputs: Inputs,
        version: Callable[[], int],
        constant: Collection[int],
    ) -> Tensor:
        """`forward` of the inputs, by the graph of the last such call where there is one.

        The first call of a kind runs as it is, which builds the active sets and tunes kernels; the
        second captures; from the third on the graph runs.

        Args:
            inputs: tensors; they are copied to where the graph reads them.
            version: of the memory that the step reads besides; when it changes, all graphs go.
            constant: ids of inputs of which the step reads nothing but what was made of them
                before, in memory of that version; these are not copied.
        """
        if version() != self._version:
            self._seen, self._steps = set(), {}
        kind = tuple(
            (name, "constant" if id(x) in constant else (x.shape, x.dtype, x.device, x.stride()))
            for name, x in inputs.items()
        )
        known = self._steps.get(kind)
        if known is None and kind not in self._seen:
            out = _call(forward, inputs)
            if version() != self._version:  # the first pass has built what it needs
                self._seen, self._version = set(), version()
            self._seen.add(kind)
            return out
        if known is None:
            known = self._steps[kind] = self._keep(forward, inputs, constant)
            return known.out.clone()
        for name, x in inputs.items():
            if id(x) not in constant:
                known.inputs[name].copy_(x)
        known.replay()
        return known.out.clone()

    def _keep(
        self, forward: Callable[..., Tensor], inputs: Inputs, constant: Collection[int]
    ) -> _Captured:
        own = {name: x if id(x) in constant else x.clone() for name, x in inputs.items()}
        on_cuda = next(iter(own.values())).is_cuda
        capture = self.capture or (capture_graph if on_cuda else repeat)
        out, replay = capture(lambda: _call(forward, own))
        self.captures += 1
        return _Captured(own, out, replay)
