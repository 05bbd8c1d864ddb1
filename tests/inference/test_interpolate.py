"""Recordings between recordings."""

from itertools import pairwise

import pytest
import torch
from sgm.inference.between import Between, leading, mean, spread

from sgm.sparse.norm import Moments
from sgm.sparse.recording import Recording

STEPS = (1, 2, 3, 4, 7, 39, 40, 50)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("every", [1, 2, 3, 4, 100])
def test_recorded_steps_are_spread_evenly_from_the_first_to_the_last(
    steps: int, every: int
) -> None:
    made = spread(steps, every)
    assert made[0] == 0 and made[-1] == steps - 1
    gaps = [after - before for before, after in pairwise(made)]
    assert all(1 <= gap <= every for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert len(gaps) == -(-(steps - 1) // every)  # as few as can be


@pytest.mark.parametrize(
    ("steps", "every", "first", "made"),
    [
        (40, 5, 0.15, [0, 1, 2, 3, 4, 5, 6, 11, 16, 21, 26, 31, 36]),
        (8, 3, 0.0, [0, 3, 6]),
        (4, 1, 0.5, [0, 1, 2, 3]),
        (4, 9, 1.0, [0, 1, 2, 3]),
        (1, 5, 0.15, [0]),
    ],
)
def test_the_first_steps_are_all_recorded(
    steps: int, every: int, first: float, made: list[int]
) -> None:
    assert leading(steps, every, first) == made


def recording(step: float) -> Recording:
    """One whose values rise evenly with the step, but for the size."""
    made = Recording()
    made.values["a", "rows"] = torch.tensor([step, 2.0 * step])
    made.values["a", "moments"] = Moments(torch.tensor([1.0 * step]), torch.tensor([1.0 - step]))
    made.values["a", "size"] = (2, 3)
    return made


def test_what_rises_evenly_is_met_at_every_step() -> None:
    asked: list[int] = []

    def make(step: int) -> Recording:
        asked.append(step)
        return recording(step)

    made = spread(10, 4)
    between = Between(make, made)
    for step in range(10):
        found, expected = between.at(step).values, recording(step).values
        assert found.keys() == expected.keys() and found["a", "size"] == (2, 3)
        torch.testing.assert_close(found["a", "rows"], expected["a", "rows"])
        torch.testing.assert_close(found["a", "moments"].mean, expected["a", "moments"].mean)
        torch.testing.assert_close(found["a", "moments"].square, expected["a", "moments"].square)
    assert asked == made  # each once, in order


def test_an_edit_may_start_in_the_middle() -> None:
    between = Between(recording, [0, 4, 8])
    torch.testing.assert_close(between.at(5).values["a", "rows"], torch.tensor([5.0, 10.0]))


def test_a_mean_takes_the_memory_of_the_last_one_and_leaves_its_ends() -> None:
    a, b = recording(0), recording(4)
    first = mean(a, b, 0.25)
    second = mean(a, b, 0.5, first)
    rows = second.values["a", "rows"]
    assert rows.data_ptr() == first.values["a", "rows"].data_ptr()
    assert rows.tolist() == [2, 4]
    assert a.values["a", "rows"].tolist() == [0, 0] and b.values["a", "rows"].tolist() == [4, 8]


def test_a_step_outside_of_what_is_recorded_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Step 6 is not between .*\[2, 5\]"):
        Between(recording, [2, 5]).at(6)
