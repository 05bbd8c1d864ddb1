"""Steps of a training as CUDA graphs, one for each shape of batch.

A step of a small network is thousands of small kernels, and starting them one by one takes longer
than running them. A graph starts them all at once. Its kernels and addresses are those of the
capture, so that batches are copied to where it reads them; what a step keeps (weights, gradients,
moments, the learning rate) is changed in place.
"""

import gc
import logging
from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

logger = logging.getLogger(__name__)

B = TypeVar("B")
Replay = Callable[[], None]
WARM = 3  # steps of each shape before its capture, in which libraries set up what they need


class CudaCapture:
    """Runs steps beside the stream in use, and captures them."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def warm(self, step: Callable[[], Tensor]) -> Tensor:
        """The loss of a step that runs as it is, on the stream of the captures."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            loss = step()
        current.wait_stream(self.stream)
        return loss

    def keep(self, step: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        """A step's loss and what computes it; nothing is computed before the first replay."""
        gc.collect()  # a tape of gradients that is still there would tie them to another stream
        before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                loss = step()
        except RuntimeError:
            torch.cuda.set_stream(before)
            renew_random_numbers(before.device)
            raise
        return loss, graph.replay


def renew_random_numbers(device: torch.device) -> None:
    """Give a device's generator a new state: that of a capture which failed waits for its end."""
    fresh = torch.Generator(device).manual_seed(torch.initial_seed() + 1)
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(fresh.graphsafe_get_state())


class Graphs(Generic[B]):
    """A training step on batches, by graphs; a failed capture leaves it to run as it is.

    Args:
        step: from a batch, any container of tensors that `pytree` knows, to a loss without
            gradient. It must not wait for the device, and changes nothing that it keeps but in
            place.
        capture: how steps are kept.
    """

    def __init__(self, step: Callable[[B], Tensor], capture: CudaCapture) -> None:
        self.step, self.capture = step, capture
        self.seen: Counter[object] = Counter()
        self.known: dict[object, tuple[list[Tensor], Tensor, Replay]] = {}
        self.failed = False

    def __call__(self, batch: B) -> Tensor:
        """The loss of a step, which the next one of the same shape overwrites."""
        leaves, layout = pytree.tree_flatten(batch)
        kind = tuple((x.shape, x.stride(), x.dtype) for x in leaves)
        if kind not in self.known and not self.failed and self.seen[kind] >= WARM:
            self.keep(kind, leaves, layout)
        if kind not in self.known:
            self.seen[kind] += 1
            return self.step(batch) if self.failed else self.capture.warm(lambda: self.step(batch))
        inputs, loss, replay = self.known[kind]
        for kept, x in zip(inputs, leaves, strict=True):
            kept.copy_(x)
        replay()
        return loss

    def keep(self, kind: object, leaves: list[Tensor], layout: pytree.TreeSpec) -> None:
        """Capture the step for batches of a shape."""
        inputs = [x.clone() for x in leaves]
        batch = pytree.tree_unflatten(inputs, layout)
        try:
            self.known[kind] = (inputs, *self.capture.keep(lambda: self.step(batch)))
        except RuntimeError as error:
            self.failed = True
            told = str(error).partition("\n")[0]
            logger.info("no CUDA graph of a step (%s): steps run kernel by kernel", told)
