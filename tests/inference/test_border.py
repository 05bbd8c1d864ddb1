"""Colours that meet those of the surroundings."""

import pytest
import torch
from torch import Tensor

from sgm.inference.border import blur, match_border
from sgm.inference.composite import composite, opacity

SIZE, FEATHER = (96, 160), 3


@pytest.fixture
def source() -> Tensor:
    rough = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(4))
    return 0.3 + 0.4 * blur(rough, 2.0)


@pytest.fixture
def weight() -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[30:70, 50:110] = True
    return opacity(mask, FEATHER)


def test_a_drift_is_taken_out_of_the_whole_edit(source: Tensor, weight: Tensor) -> None:
    slope = torch.linspace(0, 0.1, SIZE[1])
    drift = torch.stack([slope, torch.full_like(slope, 0.05), -slope])[:, None]
    matched = match_border(source + drift, source, weight, FEATHER)
    error = (matched - source).abs()[:, weight > 0]
    assert error.max() < 0.03 and error.mean() < 0.01
    assert (drift.expand_as(source)[:, weight > 0]).abs().mean() > 0.05


def test_an_object_across_the_border_keeps_its_colour(source: Tensor, weight: Tensor) -> None:
    drifted = source + 0.08
    drifted[:, 40:50, 40:80] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]  # its tail
    matched = match_border(drifted, source, weight, FEATHER)
    tail = matched[:, 41:49, 55:75].mean((1, 2))
    assert (tail - torch.tensor([0.9, 0.1, 0.1])).abs().max() < 0.12
    grass = (matched - source)[:, 55:70, 55:105]
    assert grass.abs().mean() < 0.02


def test_a_good_edit_stays_as_it_is(source: Tensor, weight: Tensor) -> None:
    edited = torch.where(weight >= 1, 1 - source, source)
    assert (match_border(edited, source, weight, FEATHER) - edited).abs().max() < 1e-3


def crossing(source: Tensor) -> Tensor:
    """An edit with something in it that goes on outside of the border, where the picture has none
    of it: too much on the left side to be drift, so that it shows the border's line."""
    edited = source.clone()
    edited[:, 30:70, 40:80] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    return edited


def test_what_is_left_at_the_border_fades_out_inside(source: Tensor, weight: Tensor) -> None:
    edited = crossing(source)
    found = composite(match_border(edited, source, weight, FEATHER), source, weight)
    left = (found - edited)[:, 35:65, 50:80].abs().mean((0, 1))  # from the border inwards
    whole = (source - edited)[:, 35:65, 50:80].abs().mean((0, 1))
    assert 0.3 < left[0] / whole[0] < 0.6  # half way
    assert left[3 * FEATHER :].max() < 0.1 * whole[0]
    steps = found[:, 35:65, 44:62].mean(1).diff(dim=1).abs().amax(0)
    hard = composite(match_border(edited, source, weight, 0), source, weight)
    assert steps.max() < 0.7 * hard[:, 35:65, 44:62].mean(1).diff(dim=1).abs().amax(0).max()


def test_an_edge_along_the_border_stays_sharp(source: Tensor, weight: Tensor) -> None:
    edited = torch.where(weight >= 1, 0.9, source)
    edges = match_border(edited, source, weight, FEATHER)[:, weight >= 1]
    assert (edges - 0.9).abs().max() < 0.01


def test_a_stroke_keeps_half_of_what_goes_on_around_it(source: Tensor) -> None:
    stroke = torch.zeros(SIZE, dtype=torch.bool)
    stroke[50:52] = True
    found = match_border(source + 0.3, source, opacity(stroke, FEATHER), FEATHER)
    assert found.isfinite().all()
    edited = source.clone()
    edited[:, 46:56, 60:72] = 0.95  # wider than the stroke, as networks paint
    found = match_border(edited, source, opacity(stroke, FEATHER), FEATHER)
    part = found[:, 50:52, 63:69]
    assert (part - source[:, 50:52, 63:69]).mean() > 0.4 * (0.95 - source[:, 50:52, 63:69]).mean()


def test_without_a_border_nothing_is_matched(source: Tensor) -> None:
    edited = (source + 0.3).clamp(0, 1)
    assert torch.equal(match_border(edited, source, torch.ones(SIZE), FEATHER), edited)


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
