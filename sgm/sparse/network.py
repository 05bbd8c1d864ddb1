"""Layers with a sparse pass, and their named places in the state of their network."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sgm.sparse.active import ActiveSet
from sgm.sparse.backends.torch_ref import TorchOps
from sgm.sparse.mask_sets import AnyGeometry, SparseStateError
from sgm.sparse.masks import Resolution
from sgm.sparse.recording import (
    ROWS,
    Part,
    Quantised,
    Recorded,
    narrowed,
    quantise,
    tensors_of,
    widened,
)
from sgm.sparse.state import Mode, SparseState

Kind = TypeVar("Kind")


class Site:
    """A layer's named place in the state of its network."""

    def __init__(self, state: SparseState, name: str) -> None:
        self.state = state
        self.name = name

    @property
    def mode(self) -> Mode:
        return self.state.mode

    @property
    def ops(self) -> TorchOps:
        return self.state.ops

    @property
    def mask_specific(self) -> bool:
        """Whether the recording serves one mask only. Its maps are then never read where a pass
        writes, so that they can be written into: no copy is needed."""
        return self.state.record.mask_specific

    def put(self, **values: Recorded) -> None:
        """Record values of this layer under their names; of a recording for one mask only what
        that mask reads, and as small as it was asked for."""
        state, record, name = self.state, self.state.record, self.name
        if state.records and record.mask_specific and name in state.layers:
            values = state.layers[name].cut(values)
        if state.records:
            if ROWS in values and not record.keeps(values):
                del values[ROWS]
            values = {key: narrowed(value, record.dtype) for key, value in values.items()}
        static = state.static_of(record)
        for key, value in values.items():
            # What is quantised is never read by a graph: `use` widens it.
            if static is not None and not isinstance(value, Quantised):
                value = static.hold(("record", name, key), value)
            record.values[name, key] = value

    def update(self, active: ActiveSet, **rows: Tensor) -> None:
        """Put rows [B, n, C] at the active outputs of recorded maps, if the scope asks for it; what
        the recording has left out stays out."""
        if self.state.updates:
            for key, value in rows.items():
                if (self.name, key) not in self.state.filled:
                    known = self.tensor(key, value)
                    self.put(**{key: self.ops.scatter(known, active, value, in_place=True)})

    def fill(self, active: ActiveSet, rows: Tensor) -> None:
        """Keep rows [B, n, C] at the active outputs of a map that the recording has left out, if
        the scope asks for it."""
        state, place = self.state, (self.name, ROWS)
        if state.fills and place not in state.record.values:
            (pixels, positions), dtype = active.written, state.record.dtype
            found = rows if positions is None else rows.index_select(1, positions)
            small = found if dtype is None else quantise(found, dtype)
            state.filled[place] = Part(small, pixels, math.prod(active.out_size))

    def get(self, key: str, x: Tensor, kind: type[Kind]) -> Kind:
        """A recorded value of this layer, widened.

        Args:
            key: its name.
            x: the input of the sparse pass, whose batch, device and dtype it must have.
            kind: its class.

        Raises:
            SparseStateError: it was not recorded, or for another batch, device or dtype.
        """
        place, state = (self.name, key), self.state
        found = state.record.values.get(place, state.filled.get(place))
        if found is None:
            raise SparseStateError(
                f"Nothing is recorded for {self.name}.{key}; record with the same network first."
            )
        value = widened(found)
        assert isinstance(value, kind)
        for tensor in tensors_of(value):  # a size has none
            same_type = not isinstance(value, Tensor) or tensor.dtype == x.dtype
            if tensor.shape[0] != x.shape[0] or tensor.device != x.device or not same_type:
                raise SparseStateError(
                    f"The recording of {self.name} is for a batch of {tensor.shape[0]} in "
                    f"{tensor.dtype} on {tensor.device}, but the sparse pass has {x.shape[0]} in "
                    f"{x.dtype} on {x.device}; record again with this input's batch, dtype and "
                    "device."
                )
        return value

    def tensor(self, key: str, x: Tensor) -> Tensor:
        """A recorded tensor; arguments and errors as those of `get`."""
        return self.get(key, x, Tensor)

    def size(self, x: Tensor) -> Resolution:
        """The recorded (height, width) of this layer's whole input map."""
        return self.get("size", x, tuple)

    def active(self, geometry: AnyGeometry, x: Tensor) -> ActiveSet:
        """The active set of a convolution whose input is the map x [B, C, H, W]."""
        return self.state.active(geometry, (x.shape[2], x.shape[3]), x.device)


_DENSE = Site(SparseState(), "")  # of a layer that no network has bound: its mode stays dense


class SparseModule:
    """Mix-in of a layer that has a sparse pass; dense until `sparsify` binds it.

    Attributes:
        geometries: of the active sets that `_sparse` and `cut` ask for at the recorded `size`, so
            that `SparseState.prepare` can make them beforehand.
    """

    site: Site = _DENSE
    geometries: Sequence[AnyGeometry] = ()

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Any:
        """The pass that the network's mode asks for. A sparse one gets x alone: what else a dense
        pass takes (embedding, context) has been recorded."""
        match self.site.mode:
            case Mode.RECORD:
                return self._record(x, *rest, **named)
            case Mode.SPARSE:
                return self._sparse(x)
            case _:
                return self._dense(x, *rest, **named)

    def _dense(self, x: Tensor, *rest: Any, **named: Any) -> Any:
        """The pass of the library's class, from which this one derives."""
        return super().forward(x, *rest, **named)

    def _record(self, x: Tensor, *rest: Any, **named: Any) -> Any:
        """A full pass that records what `_sparse` reads, whatever the masks."""
        return self._dense(x, *rest, **named)

    def _sparse(self, x: Tensor) -> Tensor:
        """A pass over the active pixels."""
        raise NotImplementedError

    def cut(self, values: dict[str, Recorded]) -> dict[str, Recorded]:
        """What sparse passes with the present masks read of the recorded values; all, by
        default."""
        return values


class SparseRoot:
    """Mix-in of a whole network: every pass goes through its state, which may run it as a graph,
    record it, or replay a recording."""

    site: Site = _DENSE

    def forward(self, *args: Any, **named: Any) -> Any:
        """A pass of the network, in the way that its state says."""
        return self.site.state.run(self.run_pass, args, named)

    def run_pass(self, *args: Any, **named: Any) -> Any:
        """A pass in the mode of the state; it returns a tensor where it may run as a graph."""
        return super().forward(*args, **named)

    def zeros(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        """Zeros in place of the result of a pass with these arguments that is not run; by default
        in the shape of the first argument."""
        return torch.zeros_like(args[0])

    def text_of(self, args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor | None:
        """The text [B, T, C] among the arguments of a pass, as its cross-attentions get it; None
        if they get none, or get it changed."""
        return None


def is_sparse(network: nn.Module) -> bool:
    """Whether a network was made sparse."""
    return isinstance(network, SparseRoot) and network.site is not _DENSE
