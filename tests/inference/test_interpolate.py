"""Recordings of all steps from those of a few: which are made, and the polynomial through them."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from sgm.inference.interpolate import (
    Curve,
    Interpolated,
    combine,
    count_of,
    lagrange,
    nearest,
    spread,
)
from sgm.inference.presets import FAST
from sgm.sparse.masks import MaskPyramid
from sgm.sparse.norm import Moments
from sgm.sparse.recording import Recording, narrow, room_for
from sgm.specs import RecordingSettings
from tests.pretend_cuda import PretendCuda

STEPS = (1, 2, 3, 4, 7, 39, 40, 50)
SMALL: MaskPyramid = {(1, 1): torch.ones(1, 1, dtype=torch.bool)}
LARGE: MaskPyramid = {(1, 2): torch.ones(1, 2, dtype=torch.bool)}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("count", [2, 3, 5, 8, 100])
def test_recorded_steps_are_spread_evenly_from_the_first_to_the_last(
    steps: int, count: int
) -> None:
    made = spread(steps, count)
    assert made[0] == 0 and made[-1] == steps - 1 and len(made) == min(count, steps)
    gaps = [after - before for before, after in pairwise(made)]
    assert not gaps or max(gaps) - min(gaps) <= 1 <= min(gaps)


@pytest.mark.parametrize(
    ("steps", "count", "power", "made"),
    [
        (50, 8, 1.0, [0, 7, 14, 21, 28, 35, 42, 49]),
        (39, 8, 1.5, [0, 2, 6, 11, 16, 23, 30, 38]),
        (50, 6, 1.15, [0, 8, 17, 27, 38, 49]),
        (39, 6, 2.0, [0, 2, 6, 14, 24, 38]),
        (9, 6, 2.0, [0, 1, 2, 3, 5, 8]),  # not 0 twice
        (4, 6, 2.0, [0, 1, 2, 3]),
        (3, 8, 1.5, [0, 1, 2]),
        (1, 8, 1.5, [0]),
    ],
)
def test_a_power_makes_the_first_steps_denser(
    steps: int, count: int, power: float, made: list[int]
) -> None:
    assert spread(steps, count, power) == made


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("every", [1, 2, 3, 4, 100])
def test_no_two_recordings_are_further_apart_than_asked(steps: int, every: int) -> None:
    made = spread(steps, count_of(steps, every))
    assert all(after - before <= every for before, after in pairwise(made))
    assert len(made) - 1 == -(-(steps - 1) // every)  # as few as can be
    # Preset fast has its first steps denser, which is not to make the last ones sparser than asked.
    recipe = FAST.with_recordings(RecordingSettings(every=every))
    assert recipe.recorded.steps(steps) == recipe.sdedit_recorded.steps(steps) == made


@pytest.mark.parametrize(
    ("step", "order", "points"),
    [
        (4, 1, [3, 9]),
        (4, 2, [2, 3, 9]),
        (8, 2, [3, 9, 11]),
        (6, 2, [2, 3, 9]),
        (4, 3, [0, 2, 3, 9]),
        (1, 3, [0, 2, 3, 9]),  # at the end there is one on one side alone
        (9, 3, [9]),
        (4, 9, [0, 2, 3, 9, 11]),  # no more than there are
    ],
)
def test_a_polynomial_goes_through_the_two_around_and_then_the_nearest(
    step: int, order: int, points: list[int]
) -> None:
    assert nearest([0, 2, 3, 9, 11], step, order) == points


def recording(step: float, of: Callable[[float], float] = lambda t: t) -> Recording:
    """One whose values are a function of the step, but for the size."""
    made, value = Recording(), of(step)
    made.values["a", "rows"] = torch.tensor([value, 2 * value], dtype=torch.float64)
    parts = (torch.tensor([x], dtype=torch.float64) for x in (value, 1 - value))
    made.values["a", "moments"] = Moments(*parts)
    made.values["a", "size"] = (2, 3)
    return made


def whole(recording: Recording, masks: MaskPyramid) -> Recording:
    """In place of a cut."""
    return recording


POLYNOMIALS: dict[int, Callable[[float], float]] = {
    1: lambda t: 3 - 2 * t,
    2: lambda t: 1 + t - t**2 / 7,
    3: lambda t: 2 - t / 3 + t**2 / 5 - t**3 / 40,
}


@pytest.mark.parametrize("order", POLYNOMIALS)
def test_a_polynomial_of_the_order_is_met_at_every_step(order: int) -> None:
    asked: list[int] = []
    of = POLYNOMIALS[order]

    def make(step: int) -> Recording:
        asked.append(step)
        return recording(step, of)

    made = spread(17, 5, 1.5)
    between = Interpolated(Curve(make, made, order, whole))
    for step in range(17):
        found, expected = between.at(step, SMALL).values, recording(step, of).values
        assert found.keys() == expected.keys() and found["a", "size"] == (2, 3)
        torch.testing.assert_close(found["a", "rows"], expected["a", "rows"])
        torch.testing.assert_close(found["a", "moments"].mean, expected["a", "moments"].mean)
        torch.testing.assert_close(found["a", "moments"].square, expected["a", "moments"].square)
    assert asked == made  # each once, in order


@pytest.mark.parametrize("order", POLYNOMIALS)
def test_a_polynomial_of_more_than_the_order_is_not(order: int) -> None:
    made = [0, 3, 6, 9]
    curve = Curve(lambda s: recording(s, lambda t: t ** (order + 1)), made, order, whole)
    assert abs(Interpolated(curve).at(1, SMALL).values["a", "rows"][0].item() - 1) > 0.5


def test_curves_are_added() -> None:
    """What another prompt changes is known at fewer steps."""
    base = Curve(lambda s: recording(s, POLYNOMIALS[2]), [0, 3, 6, 9], 2, whole)
    change = Curve(lambda s: recording(s, lambda t: t), [0, 9], 2, whole)
    both = Interpolated(base, change)
    for step in range(10):
        found = both.at(step, SMALL).values["a", "rows"][0].item()
        assert found == pytest.approx(POLYNOMIALS[2](step) + step)


def test_weights_are_those_of_lagrange() -> None:
    assert lagrange([0, 2, 4], 1) == pytest.approx([3 / 8, 6 / 8, -1 / 8])
    assert lagrange([0, 4], 1) == pytest.approx([3 / 4, 1 / 4])


class Watched:
    """Makes recordings, and knows which of them are still in memory."""

    def __init__(self) -> None:
        self.alive: set[int] = set()

    def __call__(self, step: int) -> Recording:
        made, alive = recording(step), self.alive
        alive.add(step)

        class Kept(Recording):
            def __del__(self) -> None:
                alive.discard(step)

        made.__class__ = Kept
        return made


@pytest.mark.parametrize("order", [1, 2, 3])
def test_in_memory_are_those_that_are_still_needed(order: int) -> None:
    made, make = spread(50, 8), Watched()
    between = Interpolated(Curve(make, made, order, whole))
    for step in range(50):
        between.at(step, SMALL)
        needed = {m for s in range(step, 50) for m in nearest(made, s, order)}
        reached = {m for s in range(step + 1) for m in nearest(made, s, order)}
        assert make.alive == needed & reached
        assert len(make.alive) <= order + 2


def test_masks_that_change_are_cut_anew_from_whole_recordings() -> None:
    """Of steps 0 to 4 the masks are others than from step 5 on."""
    cut: list[tuple[float, MaskPyramid]] = []

    def cutting(given: Recording, masks: MaskPyramid) -> Recording:
        assert given.masks is None  # what was cut once is not cut again
        found = Recording(masks)
        for key, value in given.values.items():
            found.values[key] = value
        cut.append((given.values["a", "rows"][0].item(), masks))
        return found

    between = Interpolated(Curve(recording, [0, 3, 6, 9], 2, cutting, change=5))
    for step in range(10):
        masks = LARGE if step < 5 else SMALL
        found = between.at(step, masks)
        assert found.masks is masks
        torch.testing.assert_close(found.values["a", "rows"], recording(step).values["a", "rows"])
    large, small = ([value for value, masks in cut if masks is m] for m in (LARGE, SMALL))
    assert large == [0, 3, 6] and small == [3, 6, 9]


def test_a_sum_takes_the_memory_of_the_last_one_and_leaves_its_terms() -> None:
    a, b = recording(1), recording(4)
    first = combine([a, b], [0.75, 0.25], room_for(a))
    second = combine([a, b], [0.5, 0.5], first)
    rows = second.values["a", "rows"]
    assert rows.data_ptr() == first.values["a", "rows"].data_ptr()
    assert rows.tolist() == [2.5, 5]
    assert a.values["a", "rows"].tolist() == [1, 2] and b.values["a", "rows"].tolist() == [4, 8]


def test_a_sum_takes_a_few_launches_whatever_the_dtypes() -> None:
    with PretendCuda() as card:
        one = Recording()
        for number in range(20):
            ones = torch.ones(2, 3, device="cuda")
            one.values[str(number), "rows"] = torch.ones(2, 5, 3, device="cuda").bfloat16()
            one.values[str(number), "moments"] = Moments(ones, ones.clone())
        room = room_for(one)
        card.reset()
        combine([one, one, one], [0.5, 0.25, 0.25], room)
        assert card.launches == 2 * (1 + 3)  # zero, and three terms, in both dtypes


def test_a_step_outside_of_what_is_recorded_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Step 6 is not between .*\[2, 5\]"):
        nearest([2, 5], 6, 1)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_quantised_recordings_are_summed_widened(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 50, 3, generator=generator) * 5 for _ in range(3)]
    recordings = []
    for rows in maps:
        made = Recording()
        made.values["a", "rows"] = rows
        made.values["a", "moments"] = Moments(torch.ones(2, 3), torch.zeros(2, 3))
        recordings.append(narrow(made, dtype))
    weights = [0.5, 0.75, -0.25]
    found = combine(recordings, weights, room_for(recordings[0])).values
    rows = found["a", "rows"]
    assert isinstance(rows, torch.Tensor) and rows.dtype is torch.float32
    exact = sum(weight * one for weight, one in zip(weights, maps, strict=True))
    # Of the largest value: half a step of 254 in int8, half of 2^-8 in bfloat16; times the weights.
    bound = 1.5 * 20 / (254 if dtype is torch.int8 else 512)
    assert 0 < (rows - exact).abs().max() < bound
    assert found["a", "moments"].mean.eq(1).all()
