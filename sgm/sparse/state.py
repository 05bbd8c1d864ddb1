"""The one owner of what a sparse network remembers: mode, masks, active sets and recording.

Used outside of `recording` and `sparse`, the network is simply dense.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Protocol

import torch
from torch import Tensor

from sgm.sparse.active import ActiveSet
from sgm.sparse.backends.torch_ref import TorchOps
from sgm.sparse.fill import masks_to_fill
from sgm.sparse.graphs import Capture, MaskMemory, StepGraphs
from sgm.sparse.mask_sets import AnyGeometry, MaskSets, SetKey, SparseStateError
from sgm.sparse.masks import MaskPyramid, Resolution
from sgm.sparse.ops import select_ops
from sgm.sparse.recording import (
    Part,
    Recorded,
    Recording,
    each_tensor,
    room_for,
    size_of,
    tensors_of,
    widened,
)
from sgm.sparse.static import StaticMemory

# Sizes of masks whose memory and graphs are kept.
MEMORIES = 2


class Layer(Protocol):
    """What a state needs of the layers of its network; `SparseModule` has it.

    Attributes:
        geometries: of the active sets that the layer asks for.
    """

    geometries: Sequence[AnyGeometry]

    def cut(self, values: dict[str, Recorded]) -> dict[str, Recorded]:
        """What sparse passes with the present masks read of the layer's recorded values."""
        ...


class Mode(Enum):
    """What a forward pass does."""

    DENSE = "dense"  # compute everything, remember nothing
    RECORD = "record"  # compute everything, remember what a sparse pass will read
    SPARSE = "sparse"  # compute the active sets, take the rest from the recording


class SparseState:
    """Mode, masks, active sets and the recording of one network; its layers read and write them
    through their `Site`s.

    Args:
        ops: who runs the sparse operators; by default the best that runs on a CPU.
    """

    def __init__(self, ops: TorchOps | None = None) -> None:
        self.ops = ops or select_ops()
        self.mode = Mode.DENSE
        self.updates = self.fills = False
        self.record = Recording()
        self.filled: dict[tuple[str, str], Part] = {}  # of what the recording has left out
        self.layers: dict[str, Layer] = {}
        self.text: dict[str, tuple[Tensor, Tensor]] = {}
        self.masks: MaskPyramid | None = None  # of the current or last sparse scope
        self._active: dict[SetKey, ActiveSet] = {}  # those that are in use
        self._sets: list[MaskSets] = []
        self.static: StaticMemory | None = None
        self.graphs: StepGraphs | None = None
        self._memories: dict[object, MaskMemory] = {}
        self._memory = MaskMemory()

    def use_graphs(self, capture: Capture | None = None) -> None:
        """Run sparse passes as CUDA graphs from now on (elsewhere: on the same static memory).

        There is then one recording: a new one is written over it. Active sets are padded, and the
        memory of all this stays when `clear` forgets what is in it, as do the graphs: those of the
        last two sizes of masks, since an SDEdit run has wider ones in its first steps. `capture` is
        how a step is kept; by default as a CUDA graph on CUDA, and elsewhere by being run anew.
        """
        self.clear()
        self.static, self.graphs, self._memories = StaticMemory(), StepGraphs(capture), {}

    def run(
        self, forward: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Any:
        """A pass of the network; a sparse one by its graph, where there are graphs. Rows that
        `fill` computed are in other memory each time, so passes that read or make them use no
        graph."""
        ordinary = self.mode is not Mode.SPARSE or self.fills or self.filled
        if self.graphs is None or self.static is None or ordinary:
            return forward(*args, **named)
        both, kinds = (self.static, self._memory.static), self._memory.kinds
        version, prepare = (lambda: sum(s.version for s in both)), self.ops.prepare
        return self.graphs.run(forward, args, named, version, kinds, prepare)

    @contextmanager
    def _in_mode(self, mode: Mode) -> Iterator[None]:
        if self.mode is not Mode.DENSE:
            raise SparseStateError(f"This network is already in a {self.mode.value} scope.")
        self.mode = mode
        try:
            yield
        finally:
            self.mode = Mode.DENSE

    def _sets_of(self, masks: MaskPyramid) -> MaskSets:
        """The active sets of some masks. They are kept for the last masks that were used, and found
        again by the pyramid object."""
        found = next((known for known in self._sets if known.masks is masks), None)
        found = found or MaskSets(masks, padded=self.static is not None)
        others = [known for known in self._sets if known is not found]
        self._sets = [*others, found][-MEMORIES:]
        return found

    def _use_masks(self, masks: MaskPyramid) -> None:
        """Take the active sets of some masks into use."""
        if masks is self.masks:
            return
        self.masks, self._active = masks, {}
        if self.static is None:
            return
        size = self._sets_of(masks).size
        self._memory = self._memories.pop(size, None) or MaskMemory()
        self._memories[size] = self._memory  # the last is the one that was used last
        for old in list(self._memories)[:-MEMORIES]:
            del self._memories[old]
        # A graph does not ask for its sets, so those that it reads must be there beforehand.
        for geometry, level in list(self._memory.static.sets):
            known = self._memory.static.sets[geometry, level]
            self.active(geometry, level, known.outputs.device)

    def bind(self) -> None:
        """Give the layers that are there now their places; a state without a network has none."""

    @contextmanager
    def recording(
        self,
        masks: MaskPyramid | None = None,
        dtype: torch.dtype | None = None,
        largest: int | None = None,
    ) -> Iterator[Recording]:
        """Scope in which forward passes are dense and make a new recording, which replaces the
        present one.

        Args:
            masks: make it serve sparse passes with these masks only, and keep no more than they
                read (blocks of preset `published` keep whole maps all the same).
            dtype: int8 or bfloat16, to keep rows and tokens in; None for the network's.
            largest: leave out the rows of maps with more pixels than this, for `fill` to compute
                them anew; None to keep all.

        Raises:
            NotSparseError: a layer that came since the last one cannot be made sparse.
        """
        self.bind()
        if masks is not None:
            self._use_masks(masks)
        with self._in_mode(Mode.RECORD):
            self.record, self.filled = Recording(masks, dtype, largest=largest), {}
            yield self.record

    def kept(self) -> Recording:
        """The present recording, to be kept for later; a copy where there are graphs, since the
        next recording is written over it."""
        return self.record if self.static is None else each_tensor(self.record, Tensor.clone)

    def use(self, recording: Recording) -> None:
        """Take a kept recording into use. Where there are graphs it is copied to where they read
        it, unless it is in the memory of `room` already."""
        static, self.filled = self.static_of(recording), {}
        if static is None or recording is static.room:
            self.record = recording
            return
        named = {("record", *place): widened(value) for place, value in recording.values.items()}
        values = dict(zip(recording.values, static.hold_all(named), strict=True))
        self.record = Recording(recording.masks, recording.dtype, values)

    def room(self, recording: Recording) -> Recording:
        """Memory for the widened values of recordings like this one, to be filled and then given to
        `use`. Where there are graphs it is the memory that they read."""
        room, static = room_for(recording), self.static_of(recording)
        if static is not None:
            for place, value in room.values.items():
                room.values[place] = static.room_for(("record", *place), value)
            static.room = room
        return room

    def static_of(self, recording: Recording) -> StaticMemory | None:
        """Where graphs read such a recording; None without graphs. If it is for some masks only,
        these are taken into use."""
        if self.static is None or recording.masks is None:
            return self.static
        self._use_masks(recording.masks)
        return self._memory.static

    def prepare(self, recording: Recording, masks: Iterable[MaskPyramid]) -> None:
        """Make the active sets of passes to come now, because making one waits for the device.

        Args:
            recording: tells the resolution of each layer.
            masks: of the passes, bool by resolution; no more than two.
        """
        values = recording.by_layer()
        device = next(t.device for v in recording.values.values() for t in tensors_of(v))
        for one in masks:
            for name, found in values.items():  # a layer that did not run needs none
                for geometry in self.layers[name].geometries:
                    self._sets_of(one).get((geometry, size_of(found)), device)

    def cut(self, recording: Recording, masks: MaskPyramid) -> Recording:
        """What sparse passes with `masks` read of a recording for any masks: the same as
        `recording(masks)` would have made. What they read whole (keys and values) is neither copied
        nor widened."""
        self._use_masks(masks)
        present, self.record = self.record, recording
        try:
            values = recording.by_layer()
            found = {
                (name, key): value
                for name, layer in self.layers.items()
                for key, value in layer.cut(values.get(name, {})).items()
            }
            return Recording(masks, recording.dtype, found)
        finally:
            self.record = present

    @contextmanager
    def sparse(self, masks: MaskPyramid, update: bool = False) -> Iterator[None]:
        """Scope in which forward passes compute only where `masks` say.

        Args:
            update: write what is computed into the recording, which must be one for any masks, so
                that it becomes that of the changed input (blocks of preset `fast`).

        Raises:
            SparseStateError: nothing has been recorded, or only for other masks.
        """
        with self._in_mode(Mode.SPARSE):
            if not self.record.values:
                raise SparseStateError(
                    "There is no recording to compute from; run the unedited input in a "
                    "`recording` scope first."
                )
            if self.record.masks is not None and self.record.masks is not masks:
                raise SparseStateError(
                    "The recording was made for other masks; record again with these, or with none."
                )
            self._use_masks(masks)
            self.updates = update
            try:
                yield
            finally:
                self.updates = False

    def fill(self, masks: MaskPyramid, run: Callable[[], object]) -> None:
        """Compute the rows that the present recording has left out, as far as sparse passes with
        `masks` read them; they are there until another recording is used.

        Args:
            masks: of the passes to come.
            run: a pass of the input that was recorded, or of one that differs where nothing was
                left out.
        """
        geometries = {name: layer.geometries for name, layer in self.layers.items()}
        wide = masks_to_fill(self.record, geometries, masks)
        if wide is None:
            return
        self.filled, self.fills = {}, True
        try:
            with self.sparse(wide):
                run()
        finally:
            self.fills = False

    def clear(self) -> None:
        """Forget recording, masks and text, and free their memory."""
        self.record, self.masks, self._active, self.text = Recording(), None, {}, {}
        self._sets, self.filled = [], {}

    def active(self, geometry: AnyGeometry, size: Resolution, device: torch.device) -> ActiveSet:
        """The active set of a convolution at an input resolution; built once per mask.

        Raises:
            SparseStateError: the masks lack this resolution.
        """
        key = (geometry, size)
        if key not in self._active:
            assert self.masks is not None  # a scope set them
            active = self._sets_of(self.masks).get(key, device)
            if self.static is not None:
                active = self._memory.static.hold_set(key, active)
            self._active[key] = active
        return self._active[key]

    def active_by_area(self, geometry: AnyGeometry, area: int, device: torch.device) -> ActiveSet:
        """As `active`, for an input known by its number of pixels only; no two levels of a
        pyramid have the same.

        Raises:
            SparseStateError: the masks lack such a level.
        """
        assert self.masks is not None  # a scope set them
        size = next((size for size in self.masks if size[0] * size[1] == area), None)
        if size is None:
            raise SparseStateError(f"The masks have no level of {area} pixels.")
        return self.active(geometry, size, device)

    @property
    def records(self) -> bool:
        """Whether the pass that runs is a recording one."""
        return self.mode is Mode.RECORD

    @property
    def is_sparse_pass(self) -> bool:
        """Whether the pass that runs is a sparse one."""
        return self.mode is Mode.SPARSE
