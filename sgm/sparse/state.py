"""The one owner of what a sparse network remembers: mode, masks, active sets and recording.

A network makes one `SparseState`; every sparse block gets a `Site`, its named place in it. Used
outside of `recording` and `sparse`, the network is simply dense.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor, nn

from sgm.sparse.active import ActiveSet, Geometry, block_active_set
from sgm.sparse.masks import MaskPyramid, Resolution
from sgm.sparse.norm import Affine
from sgm.sparse.ops import SparseOps, select_ops

Recorded = Tensor | Affine


class SparseStateError(RuntimeError):
    """A sparse pass without the recording or the masks it needs; one sentence."""


class Mode(Enum):
    """What a forward pass does."""

    DENSE = "dense"  # compute everything, remember nothing
    RECORD = "record"  # compute everything, remember what a sparse pass will read
    SPARSE = "sparse"  # compute the active sets, take the rest from the recording


class SparseState:
    """Mode, masks, active sets and the recording of one network.

    Args:
        ops: who runs the sparse operators; by default the best that runs here.
    """

    def __init__(self, ops: SparseOps | None = None) -> None:
        self.ops = ops or select_ops()
        self.mode = Mode.DENSE
        self._records: dict[tuple[str, str], Recorded] = {}
        self._masks: MaskPyramid | None = None
        self._active: dict[tuple[Geometry, Resolution], ActiveSet] = {}

    @contextmanager
    def _in_mode(self, mode: Mode) -> Iterator[None]:
        if self.mode is not Mode.DENSE:
            raise SparseStateError(f"This network is already in a {self.mode.value} scope.")
        self.mode = mode
        try:
            yield
        finally:
            self.mode = Mode.DENSE

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Scope in which forward passes are dense and replace the recording."""
        with self._in_mode(Mode.RECORD):
            yield

    @contextmanager
    def sparse(self, masks: MaskPyramid) -> Iterator[None]:
        """Scope in which forward passes compute only where `masks` say.

        Active sets are kept while the same pyramid object comes back.

        Raises:
            SparseStateError: nothing has been recorded.
        """
        if not self._records:
            raise SparseStateError(
                "There is no recording to compute from; run the unedited input in a "
                "`recording` scope first."
            )
        if masks is not self._masks:
            self._masks, self._active = masks, {}
        with self._in_mode(Mode.SPARSE):
            yield

    @property
    def masks(self) -> MaskPyramid | None:
        """The masks of the current or last sparse scope."""
        return self._masks

    def clear(self) -> None:
        """Forget recording and masks, and free their memory."""
        self._records, self._masks, self._active = {}, None, {}

    def recorded_bytes(self) -> int:
        """Size of the recording."""
        total = 0
        for value in self._records.values():
            parts = (value.scale, value.shift) if isinstance(value, Affine) else (value,)
            total += sum(part.numel() * part.element_size() for part in parts)
        return total

    def put(self, site: str, **values: Recorded) -> None:
        """Record values of a block."""
        for key, value in values.items():
            self._records[site, key] = value

    def get(self, site: str, key: str, x: Tensor) -> Recorded:
        """A recorded value of a block, for an input x of the sparse pass.

        Raises:
            SparseStateError: it was not recorded, or for another batch, device or dtype.
        """
        try:
            value = self._records[site, key]
        except KeyError:
            raise SparseStateError(
                f"Nothing is recorded for {site}.{key}; record with the same network first."
            ) from None
        tensor = value.scale if isinstance(value, Affine) else value
        same_type = isinstance(value, Affine) or tensor.dtype == x.dtype
        if tensor.shape[0] != x.shape[0] or tensor.device != x.device or not same_type:
            raise SparseStateError(
                f"The recording of {site} is for a batch of {tensor.shape[0]} in {tensor.dtype} "
                f"on {tensor.device}, but the sparse pass has {x.shape[0]} in {x.dtype} on "
                f"{x.device}; record again with this input's batch, dtype and device."
            )
        return value

    def active(self, geometry: Geometry, size: Resolution, device: torch.device) -> ActiveSet:
        """The active set of a convolution at an input resolution; built once per mask.

        Raises:
            SparseStateError: the masks lack this resolution.
        """
        key = (geometry, size)
        if key not in self._active:
            assert self._masks is not None  # a sparse scope set them
            if size not in self._masks:
                known = ", ".join(f"{h}x{w}" for h, w in self._masks)
                raise SparseStateError(
                    f"The masks have no level {size[0]}x{size[1]}; they were made for {known}."
                )
            mask = self._masks[size]
            if device.type == "meta":  # shapes without data, for counting operations
                self._active[key] = block_active_set(mask, geometry).to(device)
            else:
                self._active[key] = block_active_set(mask.to(device), geometry)
        return self._active[key]


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

    def put(self, **values: Recorded) -> None:
        """See `SparseState.put`."""
        self.state.put(self.name, **values)

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

    def active(self, geometry: Geometry, x: Tensor) -> ActiveSet:
        """The active set of a convolution whose input is the map x [B, C, H, W]."""
        return self.state.active(geometry, (x.shape[2], x.shape[3]), x.device)


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

    @cached_property
    def state(self) -> SparseState:
        """Made on first use, which gives every sparse block its named place in it."""
        assert isinstance(self, nn.Module)
        state = SparseState()
        for name, module in self.named_modules():
            if isinstance(module, SparseModule):
                module.site = Site(state, name)
        return state
