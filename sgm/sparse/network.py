"""Networks with sparse blocks: a network makes one `SparseState`, and every sparse block gets a
`Site`, its named place in it."""

from collections.abc import Callable
from functools import cached_property

from torch import Tensor, nn

from sgm.sparse.active import ActiveSet
from sgm.sparse.masks import Resolution
from sgm.sparse.norm import Affine, Moments
from sgm.sparse.ops import SparseOps
from sgm.sparse.recording import Recorded
from sgm.sparse.state import AnyGeometry, Mode, SparseState


class Site:
    """A block's named place in the state of its network."""

    def __init__(self, state: SparseState, name: str) -> None:
        self.state = state
        self.name = name

    @property
    def mode(self) -> Mode:
        return self.state.mode

    @property
    def ops(self) -> SparseOps:
        return self.state.ops

    @property
    def own_masks(self) -> bool:
        """Whether the recording is for the masks of the pass alone. Its maps are then never read
        where a pass writes, so that they can be written into: no copy is needed."""
        return self.state.record.masks is not None

    def put(self, **values: Recorded) -> None:
        """See `SparseState.put`."""
        self.state.put(self.name, **values)

    def update(self, active: ActiveSet, **rows: Tensor) -> None:
        """Put rows [B, n, C] at the active outputs of recorded maps, if the scope asks for it."""
        if self.state.updates:
            for key, value in rows.items():
                known = self.tensor(key, value)
                self.put(**{key: self.ops.scatter(known, active, value, in_place=True)})

    def tensor(self, key: str, x: Tensor) -> Tensor:
        """A recorded tensor; see `SparseState.get`."""
        value = self.state.get(self.name, key, x)
        assert isinstance(value, Tensor)
        return value

    def affine(self, key: str, x: Tensor) -> Affine:
        """A recorded norm; see `SparseState.get`."""
        value = self.state.get(self.name, key, x)
        assert isinstance(value, Affine)
        return value

    def moments(self, key: str, x: Tensor) -> Moments:
        """Recorded moments; see `SparseState.get`."""
        value = self.state.get(self.name, key, x)
        assert isinstance(value, Moments)
        return value

    def size(self, x: Tensor) -> Resolution:
        """The recorded (height, width) of this block's whole input map."""
        value = self.state.get(self.name, "size", x)
        assert isinstance(value, tuple)
        return value

    def active(self, geometry: AnyGeometry, x: Tensor) -> ActiveSet:
        """The active set of a convolution whose input is the map x [B, C, H, W]."""
        return self.state.active(geometry, (x.shape[2], x.shape[3]), x.device)

    def once(self, source: Tensor, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """See `SparseState.once`."""
        return self.state.once(self.name, source, make)


_DENSE = Site(SparseState(), "")  # where a block stands that no network has bound yet


class SparseModule:
    """Mix-in of a block that has a sparse pass; dense until a `SparseNetwork` binds it."""

    site: Site = _DENSE

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        """The pass that the network's mode asks for. A sparse one gets the map x alone: what else
        a dense pass takes (embedding, context) has been recorded."""
        match self.site.mode:
            case Mode.RECORD:
                return self._record(x, *rest)
            case Mode.SPARSE:
                return self._sparse(x)
            case _:
                return self._dense(x, *rest)

    def _dense(self, x: Tensor, *rest: Tensor) -> Tensor:
        """The pass of the dense class that stands behind this one."""
        return super().forward(x, *rest)

    def _record(self, x: Tensor, *rest: Tensor) -> Tensor:
        """A full pass that records what `_sparse` reads."""
        raise NotImplementedError

    def _sparse(self, x: Tensor) -> Tensor:
        """A pass over the active pixels."""
        raise NotImplementedError


class SparseNetwork:
    """Mix-in of a network with sparse blocks; its `state` owns their recording and mode."""

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """The pass of the network behind this one, as a graph where its state has one."""
        forward = super().forward
        out = self.state.run(forward, {**dict(enumerate(inputs)), **named})
        return forward(*inputs, **named) if out is None else out

    @cached_property
    def state(self) -> SparseState:
        """Made on first use, which gives every sparse block its named place in it."""
        assert isinstance(self, nn.Module)
        state = SparseState()
        for name, module in self.named_modules():
            if isinstance(module, SparseModule):
                module.site = Site(state, name)
        return state
