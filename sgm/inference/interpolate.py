"""Recordings of all steps of a run, of which a few are made and the others interpolated.

Along the noise levels a recording is a smooth curve, while picture and noise stay the same. So the
recording of a step that has no full pass of its own is taken from the polynomial through the
nearest steps that have one.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sgm.sparse.masks import MaskPyramid
from sgm.sparse.recording import Quantised, Recording, by_dtype, room_for, tensors_of


def spread(steps: int, count: int, power: float = 1.0) -> list[int]:
    """Which of so many steps get a recording of their own: `count` of them (at least 2), or all of
    fewer steps, the first and the last included. With a `power` above 1 they are denser at the
    first steps, at high noise."""
    parts, made = min(count, steps) - 1, [0]
    for part in range(1, parts + 1):
        near = math.floor((steps - 1) * (part / parts) ** power + 0.5)
        made.append(max(made[-1] + 1, near))
    return made


def count_of(steps: int, every: int) -> int:
    """How many recordings it takes so that none are more than `every` steps apart."""
    return max(2, -(-(steps - 1) // every) + 1)


def nearest(made: Sequence[int], step: int, order: int) -> list[int]:
    """The recorded steps that a polynomial of an order goes through: the two around a step (else
    ValueError), and then the nearest."""
    before = max((m for m in made if m <= step), default=None)
    after = min((m for m in made if m >= step), default=None)
    if before is None or after is None:
        raise ValueError(f"Step {step} is not between two of the recorded ones, {list(made)}.")
    if before == after:
        return [step]
    rest = sorted((m for m in made if m not in (before, after)), key=lambda m: abs(m - step))
    return sorted([before, after, *rest[: order - 1]])


def lagrange(points: Sequence[int], at: int) -> list[float]:
    """Weights of values at some points in the value of their polynomial at another."""
    weights = []
    for i, point in enumerate(points):
        weight = 1.0
        for j, other in enumerate(points):
            if i != j:
                weight *= (at - other) / (point - other)
        weights.append(weight)
    return weights


def combine(
    recordings: Sequence[Recording], weights: Sequence[float], into: Recording
) -> Recording:
    """The weighted sum of recordings of one network and for the same masks, in the dtype of the
    network. It is written into `into`, which is returned."""
    sums = [part for value in into.values.values() for part in tensors_of(value)]
    for (totals,) in by_dtype(sums):
        torch._foreach_zero_(totals)
    for recording, weight in zip(recordings, weights, strict=True):
        terms = list(zip(sums, _terms(recording, into), strict=True))
        plain = [(total, term) for total, term in terms if isinstance(term, Tensor)]
        for totals, parts in by_dtype(*zip(*plain, strict=True)):
            torch._foreach_add_(totals, parts, alpha=weight)
        for total, term in terms:
            if isinstance(term, Quantised):
                term.add_to(total, weight)
    return into


def _terms(recording: Recording, order: Recording) -> list[Tensor | Quantised]:
    """What is summed: tensors, but a quantised map as a whole; in the order of another recording,
    as a file has an order of its own."""
    found: list[Tensor | Quantised] = []
    for key in order.values:
        value = recording.values[key]
        found += [value] if isinstance(value, Quantised) else tensors_of(value)
    return found


class Curve:
    """Recordings at some steps of a run, and polynomials through the nearest of them. Only those
    that later steps need stay in memory.

    Args:
        make: the recording of a step, for the masks of all passes or for any; it is asked for once
            a step, in rising order.
        made: the steps that it is asked for.
        order: of the polynomials, at least 1.
        cut: from a recording for any masks to what passes with some masks read of it.
        change: the first step with the later masks, where they change once; 0 where they do not.
    """

    def __init__(
        self,
        make: Callable[[int], Recording],
        made: Sequence[int],
        order: int,
        cut: Callable[[Recording, MaskPyramid], Recording],
        change: int = 0,
    ) -> None:
        self._make, self._order, self._cut, self._change = make, order, cut, change
        self._made, self._to_come = list(made), list(made)
        # The last step whose polynomial goes through each of them.
        self._last = {m: s for s in range(made[0], made[-1] + 1) for m in nearest(made, s, order)}
        self._whole: dict[int, Recording] = {}
        self._fitting: dict[int, Recording] = {}
        self._masks: MaskPyramid | None = None

    def terms(self, step: int, masks: MaskPyramid) -> list[tuple[Recording, float]]:
        """Recordings for sparse passes with some masks, and what each weighs at a step. Steps are
        asked for in rising order."""
        if masks is not self._masks:
            self._masks, self._fitting = masks, {}
        points = self._reach(step)
        for m in points:
            if m not in self._fitting:
                whole = self._whole[m]
                self._fitting[m] = whole if whole.mask_specific else self._cut(whole, masks)
        if step >= self._change:
            self._whole = {m: r for m, r in self._whole.items() if m not in self._fitting}
        return list(zip((self._fitting[m] for m in points), lagrange(points, step), strict=True))

    def begin(self, step: int) -> Recording:
        """Make what the first step that will be asked for needs; one of these recordings."""
        return self._whole[self._reach(step)[0]]

    def _reach(self, step: int) -> list[int]:
        """The points of a step's polynomial; all that are still to be used have been made."""
        points = nearest(self._made, step, self._order)
        for kept in (self._whole, self._fitting):  # drop what no step from this one on needs
            for m in [m for m in kept if self._last[m] < step]:
                del kept[m]
        while self._to_come and self._to_come[0] <= points[-1]:
            made = self._to_come.pop(0)
            if self._last[made] >= step:
                self._whole[made] = self._make(made)
        return points


class Interpolated:
    """The recording of any step: the sum of some curves, in memory that is used again.

    Args:
        curves: the recordings, and what is added to them, over the same steps.
        room: makes the memory for the sum, given one of the recordings.
    """

    def __init__(self, *curves: Curve, room: Callable[[Recording], Recording] = room_for) -> None:
        self._curves, self._room = curves, room
        self._masks: MaskPyramid | None = None
        self._sum: Recording | None = None

    def at(self, step: int, masks: MaskPyramid) -> Recording:
        """The recording of a step for sparse passes with some masks, which may write into it; valid
        until the next is asked for. Steps are asked for in rising order."""
        if masks is not self._masks:
            self._masks, self._sum = masks, None
        # A copy also where a step has a recording of its own: that one is still needed, or the
        # store's.
        terms = [term for curve in self._curves for term in curve.terms(step, masks)]
        recordings, weights = zip(*terms, strict=True)
        if self._sum is None:
            self._sum = self._room(recordings[0])
        return combine(recordings, weights, self._sum)
