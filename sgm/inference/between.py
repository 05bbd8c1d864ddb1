"""Recordings of all steps of a loop, of which some are made and the others lie between these.

What is recorded changes smoothly with the noise level, while picture and noise stay the same. So a
step without a full pass of its own takes the mean of the recordings before and after it, weighted
by their distances: much closer to its own recording than the last one made is.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sgm.sparse.recording import Recorded, Recording, tensors_of, with_tensors


def spread(steps: int, every: int) -> list[int]:
    """Which of so many steps get a recording of their own: the first, the last, and so many between
    them, evenly, that no two are more than `every` steps apart."""
    last = steps - 1
    parts = max(1, -(-last // every))
    return sorted({(2 * part * last + parts) // (2 * parts) for part in range(parts + 1)})


def leading(steps: int, every: int, first: float) -> list[int]:
    """Which of so many steps get a recording of their own, where each stands until the next: all of
    the share `first` (0 to 1) from the first, and of the others every `every`-th."""
    dense = int(first * steps)
    return [*range(dense), *range(dense, steps, every)]


class Between:
    """The recording of any step, from those of some.

    Three are in memory at a time: the one before a step, the one after it, and their mean.

    Args:
        make: the recording of a step; all for the same masks, or for any.
        made: the steps that it is asked for, rising; each once as long as steps are asked for in
            their order.
    """

    def __init__(self, make: Callable[[int], Recording], made: Sequence[int]) -> None:
        self._make, self._made = make, made
        self._known: dict[int, Recording] = {}
        self._mean: Recording | None = None

    def at(self, step: int) -> Recording:
        """The recording of a step, valid until the next is asked for.

        Raises:
            ValueError: the step is not between two that are made.
        """
        before = max((made for made in self._made if made <= step), default=None)
        after = min((made for made in self._made if made >= step), default=None)
        if before is None or after is None:
            raise ValueError(f"Step {step} is not between two of the recorded ones, {self._made}.")
        ends = (before, after)
        self._known = {made: self._known[made] for made in ends if made in self._known}
        for made in ends:
            if made not in self._known:
                self._known[made] = self._make(made)
        if before == after:
            return self._known[step]
        share = (step - before) / (after - before)
        self._mean = mean(self._known[before], self._known[after], share, self._mean)
        return self._mean


def mean(a: Recording, b: Recording, share: float, room: Recording | None = None) -> Recording:
    """`a` and `b`, of the same network and masks, with `share` (0 to 1) of the latter.

    Args:
        room: a former result, whose memory is used again; its values are lost.
    """
    found = Recording(a.masks)
    for key, value in a.values.items():
        found.values[key] = _mean(value, b.values[key], share, room and room.values[key])
    return found


def _mean(a: Recorded, b: Recorded, share: float, room: Recorded | None) -> Recorded:
    others = tensors_of(b)
    rooms = (None,) * len(others) if room is None else tensors_of(room)

    def mixed(number: int, part: Tensor) -> Tensor:
        return torch.lerp(part, others[number], share, out=rooms[number])

    return with_tensors(a, mixed)
