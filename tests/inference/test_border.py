"""Colours that meet those of the surroundings."""

import pytest
import torch
from torch import Tensor

from sgm.inference.border import blur, match_border
from sgm.inference.composite import opacity

SIZE = (96, 160)


@pytest.fixture
def source() -> Tensor:
    rough = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(4))
    return 0.3 + 0.4 * blur(rough, 2.0)


@pytest.fixture
def weight() -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[30:70, 50:110] = True
    return opacity(mask, 3)


def test_a_drift_is_taken_out_of_the_whole_edit(source: Tensor, weight: Tensor) -> None:
    slope = torch.linspace(0, 0.1, SIZE[1])
    drift = torch.stack([slope, torch.full_like(slope, 0.05), -slope])[:, None]
    matched = match_border(source + drift, source, weight)
    error = (matched - source).abs()[:, weight > 0]
    assert error.max() < 0.03 and error.mean() < 0.01
    assert (drift.expand_as(source)[:, weight > 0]).abs().mean() > 0.05


def test_an_object_across_the_border_keeps_its_colour(source: Tensor, weight: Tensor) -> None:
    drifted = source + 0.08
    drifted[:, 40:50, 40:80] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]  # its tail
    matched = match_border(drifted, source, weight)
    tail = matched[:, 41:49, 55:75].mean((1, 2))
    assert (tail - torch.tensor([0.9, 0.1, 0.1])).abs().max() < 0.12
    grass = (matched - source)[:, 55:70, 55:105]
    assert grass.abs().mean() < 0.02


def test_a_good_edit_stays_as_it_is(source: Tensor, weight: Tensor) -> None:
    edited = torch.where(weight >= 1, 1 - source, source)
    assert (match_border(edited, source, weight) - edited).abs().max() < 1e-3


def test_without_a_border_nothing_is_matched(source: Tensor) -> None:
    edited = (source + 0.3).clamp(0, 1)
    assert torch.equal(match_border(edited, source, torch.ones(SIZE)), edited)


@pytest.mark.parametrize("sigma", [1.0, 3.0, 17.0, 60.0])
def test_blurs_keep_the_mean_inside_and_spread_as_far_as_they_say(sigma: float) -> None:
    side = int(8 * sigma) + 33
    dot = torch.zeros(1, side, side)
    dot[0, side // 2, side // 2] = 1
    spread = blur(dot, sigma)[0]
    assert spread.sum() == pytest.approx(1, abs=0.02)
    at = torch.arange(side) - side // 2
    found = (spread.sum(0) * at**2).sum().sqrt()
    assert found == pytest.approx(sigma, rel=0.1)
