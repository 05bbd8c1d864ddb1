"""Memory that stays where it is from step to step and from mask to mask.

A CUDA graph repeats the same kernels on the same addresses. So what changes between two steps (the
recording) or between two masks (the lists of pixels) is copied to where it was before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sgm.sparse.active import ActiveSet
from sgm.sparse.norm import Affine, Moments
from sgm.sparse.recording import Recording, by_dtype, with_tensors

Key = tuple[object, ...]
Value = TypeVar("Value")


def _alike(a: object, b: object) -> bool:
    """Whether b can be copied to where a lies: tensors of one shape and kind, or equal values."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device)
    return type(a) is type(b) and a == b


@dataclass(eq=False)
class StaticMemory:
    """Tensors and active sets by name; a value that fits where the last one lay goes there.

    Attributes:
        version: rises whenever something lies in another place than before.
        room: a recording all of whose values lie here; None if there is none.
    """

    version: int = 0
    tensors: dict[Key, Tensor] = field(default_factory=dict)
    sets: dict[Key, ActiveSet] = field(default_factory=dict)
    room: Recording | None = None

    def hold(self, key: Key, value: Value) -> Value:
        """A tensor, or those of an `Affine`, of `Moments` or of a tuple, in memory of this name;
        anything else as it is."""
        return self.hold_all({key: value})[0]

    def hold_all(self, values: Mapping[Key, Value]) -> list[Value]:
        """As `hold`, for many values by their names; they are copied together."""
        copies: list[tuple[Tensor, Tensor]] = []
        held = [self._place(key, value, copies) for key, value in values.items()]
        for olds, news in by_dtype(*zip(*copies, strict=True)):
            torch._foreach_copy_(olds, news)
        return held

    def room_for(self, key: Key, value: Value) -> Value:
        """The memory that `hold` would copy to; what lies in it is undefined."""
        return self._place(key, value, [])

    def _place(self, key: Key, value: Value, copies: list[tuple[Tensor, Tensor]]) -> Value:
        """The memory of a name; what has to be copied there is added to `copies`."""
        if isinstance(value, Affine | Moments):
            return with_tensors(value, lambda n, part: self._place((*key, n), part, copies))
        if isinstance(value, tuple):
            return tuple(self._place((*key, n), part, copies) for n, part in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        kept = self.tensors.get(key)
        if not _alike(kept, value):
            self.version, self.room = self.version + 1, None
            # A copy: the tensor itself may be in use elsewhere, and would change there too.
            kept = self.tensors[key] = value.clone()
        elif kept is not value:
            copies.append((kept, value))
        return kept

    def hold_set(self, key: Key, active: ActiveSet) -> ActiveSet:
        """An active set, with everything derived from it so far, in memory of this name."""
        known = self.sets.get(key)
        if known is not None:
            # Of the fields, and of cached properties that have been asked for.
            olds, news = (
                pytree.tree_leaves([getattr(one, name) for name in vars(known)])
                for one in (known, active)
            )
            if len(olds) == len(news) and all(map(_alike, olds, news)):
                for old, new in zip(olds, news, strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)
                return known
        self.version += 1
        held = self.sets[key] = active.clone()
        return held
