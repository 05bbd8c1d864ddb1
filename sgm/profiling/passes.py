"""One forward pass of one network, caught from a real edit so that it can be measured alone.

A run is started like any other and stopped where the network is called: by then it has encoded
pictures, made masks and scaled latents, and the call has the inputs of that run. No network knows
that it is being watched.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sgm.inference.networks import recording, sparse
from sgm.sparse.masks import MaskPyramid
from sgm.sparse.network import is_sparse
from sgm.sparse.ops import select_ops
from sgm.sparse.sparsify import handle_of
from sgm.sparse.state import Mode

# By position or by name.
Inputs = Mapping[int | str, Tensor]

MIDDLE_TIMESTEP = 500  # of 1000


def call(network: nn.Module, inputs: Inputs) -> Tensor:
    """The network on its inputs."""
    named = {name: x for name, x in inputs.items() if isinstance(name, str)}
    return network(*(x for name, x in inputs.items() if isinstance(name, int)), **named)


@dataclass(frozen=True, eq=False)
class Pass:
    """A call of a network: the UNet, the encoder or the decoder."""

    network: nn.Module
    inputs: Inputs
    recorded: Inputs | None = None  # of the full pass that records for it; None in a dense run
    masks: MaskPyramid | None = None  # where the sparse pass computes; None in a dense run

    def on_mask(self, masks: MaskPyramid) -> "Pass":
        """The sparse pass on other masks, recorded on the inputs of this pass."""
        return replace(self, recorded=self.inputs, masks=masks)

    def on_backend(self, name: str, device: torch.device) -> "Pass":
        """The same pass with its sparse operators run by a backend, weights and maps in the memory
        layout that it prefers; a dense pass as it is. The network is changed in place."""
        if not is_sparse(self.network):
            return self
        ops = handle_of(self.network).ops = select_ops(name, device)
        return self.laid_out(ops.memory_format)

    @property
    def backend(self) -> str | None:
        """Name of the backend that runs the sparse operators; None for a dense network."""
        return handle_of(self.network).ops.name if is_sparse(self.network) else None

    def laid_out(self, layout: torch.memory_format) -> "Pass":
        """The same pass with weights (in place) and maps in a memory layout; tensors that have it
        already are not copied."""
        self.network.to(memory_format=layout)
        return self.mapped(lambda x: x.contiguous(memory_format=layout) if x.ndim == 4 else x)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Pass":
        """The same pass with every tensor changed that it or its recording is called with."""
        inputs = {name: change(x) for name, x in self.inputs.items()}
        recorded = self.recorded and {name: change(x) for name, x in self.recorded.items()}
        return replace(self, inputs=inputs, recorded=recorded)

    def run(self) -> Tensor:
        """The pass as the run makes it; a sparse one inside of `with_recording`."""
        with sparse(self.network, self.masks):
            return call(self.network, self.inputs)

    @contextmanager
    def with_recording(self) -> Iterator[None]:
        """Scope in which the recording that a sparse pass reads from is there; it is freed at the
        end. Nothing for a dense pass."""
        if self.recorded is not None:
            with recording(self.network, self.masks):
                call(self.network, self.recorded)
            if "context" in self.inputs:
                handle_of(self.network).set_text(self.inputs["context"])
        try:
            yield
        finally:
            if is_sparse(self.network):
                handle_of(self.network).clear()

    def by(self, network: nn.Module) -> "Pass":
        """The same call of another network, dense; it gets the weights of this one without a copy
        (dense and sparse networks have the same keys), except where a backend wants them in a
        layout that is not that of dense runs."""
        network.load_state_dict(self.network.state_dict(), assign=True)
        return Pass(network, self.inputs).laid_out(torch.channels_last)


class _Caught(Exception):
    """Ends a run at the call that was waited for."""


def catch(network: nn.Module, run: Callable[[], object]) -> Pass:
    """Start `run` and stop it at the first call of `network` that does not record; ValueError if it
    ends without one."""
    caught: dict[str, Any] = {}

    def watch(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs = {**dict(enumerate(args)), **named}
        mode = handle_of(module).mode if is_sparse(module) else Mode.DENSE
        if mode is Mode.RECORD:
            caught["recorded"] = inputs
            return
        if mode is Mode.SPARSE:
            caught["masks"] = handle_of(module).masks
        caught["inputs"] = inputs
        raise _Caught

    hook = network.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        run()
    except _Caught:
        return Pass(network, **caught)
    finally:
        hook.remove()
    raise ValueError(f"This run does not call {type(network).__name__}.")


def with_random_numbers(shapes: Pass, device: torch.device) -> Pass:
    """A pass of the meta device on a real one: its network gets memory and random weights (in
    place), its inputs are random. Costs do not depend on the values."""
    network = shapes.network.to_empty(device=device)
    with torch.no_grad():
        # Values that keep activations near one, so that none overflow or become denormal.
        for parameter in network.parameters():
            if parameter.ndim > 1:
                bound = (3 / parameter[0].numel()) ** 0.5  # uniform, of variance 1 / n
                parameter.uniform_(-bound, bound)
            else:
                parameter.uniform_(0.5, 1.5)
    return _with_random_inputs(shapes, device)


def with_weights(shapes: Pass, weights: Mapping[str, Tensor], device: torch.device) -> Pass:
    """A pass of the meta device on a real one: its network gets these weights (in place, not
    copied), its inputs are random."""
    shapes.network.load_state_dict(weights, assign=True)
    return _with_random_inputs(shapes, device)


def _with_random_inputs(shapes: Pass, device: torch.device) -> Pass:
    """A pass whose inputs and recording, if any, were of the meta device; random inputs."""

    def numbers(x: Tensor) -> Tensor:
        new = torch.empty_like(x, device=device)
        return new.normal_() if x.is_floating_point() else new.fill_(MIDDLE_TIMESTEP)

    if is_sparse(shapes.network):
        handle_of(shapes.network).clear()
    return shapes.mapped(numbers)
