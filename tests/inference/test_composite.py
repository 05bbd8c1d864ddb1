"""The edit put into the input: whole where it was asked for, nothing changes beyond the ring."""

import math

import pytest
import torch

from sgm.inference.composite import (
    blended,
    composite,
    distance,
    opacity,
    opacity_of_drawing,
)
from sgm.specs import Blend


def test_distance_is_to_the_nearest_pixel_of_the_mask():
    mask = torch.rand(23, 31, generator=torch.Generator().manual_seed(1)) > 0.97
    found = distance(mask, 6)
    ys, xs = torch.nonzero(mask, as_tuple=True)
    for y in range(23):
        for x in range(31):
            exact = min(math.hypot(y - v, x - u) for v, u in zip(ys, xs, strict=True))
            assert found[y, x] == pytest.approx(exact, abs=1e-5) if exact <= 6 else found[y, x] > 6


@pytest.mark.parametrize("feather", [0, 1, 4, 8])
def test_the_whole_selection_changes_and_nothing_beyond_the_ring(feather):
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[5, 7] = mask[20:30, 25:26] = mask[28:30, 40:50] = True  # a pixel, a stroke, a bar
    weight = opacity(mask, feather)
    assert (weight[mask] == 1).all() and (weight[~mask] < 1).all()
    assert torch.equal(weight > 0, distance(mask, feather) <= feather)
    falling = weight[28, 49 : 49 + feather + 2]
    assert (falling.diff() < 0).all() and falling[-1] == 0


def test_a_soft_border_stays_as_it_was_drawn():
    ramp = torch.linspace(0, 1, 101)[None].repeat(9, 1)
    weight = opacity(ramp, 4)
    assert torch.equal(weight[:, :96], ramp[:, :96]) and (weight[:, 96:] >= ramp[:, 96:]).all()
    faint = ramp * 0.8  # nowhere wholly marked
    assert torch.equal(opacity(faint, 4), faint)


def test_outside_is_the_source_itself():
    source, edited = torch.rand(3, 24, 24), torch.full((3, 24, 24), float("inf"))
    weight = opacity(torch.rand(24, 24) > 0.9, 1)
    mixed = composite(edited, source, weight)
    assert torch.equal(mixed[:, weight == 0], source[:, weight == 0])
    assert torch.equal(composite(source, source, weight), source)
    edited = torch.rand(3, 24, 24)
    assert torch.equal(composite(edited, source, weight)[:, weight == 1], edited[:, weight == 1])


@pytest.mark.parametrize("match", [False, True])
def test_blending_follows_its_options(match):
    source = torch.rand(3, 64, 96) * 0.5 + 0.2
    mask = torch.zeros(64, 96, dtype=torch.bool)
    mask[20:40, 30:70] = True
    result = blended(source + 0.1, source, mask, Blend(3, match))
    outside = distance(mask, 3) > 3
    assert torch.equal(result[:, outside], source[:, outside])
    drift = (result - source)[:, mask].abs().max().item()
    assert drift < 1e-3 if match else abs(drift - 0.1) < 1e-6


@pytest.mark.parametrize(
    ("size", "width"), [((1024, 1024), 8), ((512, 1024), 8), ((256, 512), 4), ((64, 64), 1)]
)
def test_the_ring_grows_with_the_picture(size, width):
    assert Blend().width(size) == width and Blend(3).width(size) == 3 and Blend(0).width(size) == 0


def test_a_drawing_fades_out_from_its_edge_within_its_region():
    drawing = torch.zeros(60, 80, dtype=torch.bool)
    drawing[20:30, 30:50] = True
    region = distance(drawing, 7) <= 7
    weight = opacity_of_drawing(drawing, region, 7, 4)
    assert (weight[drawing] == 1).all() and (weight[~drawing] < 1).all()
    assert (weight[25, 49:62].diff() < 0).all() and weight[25, 61] == 0
    narrow = region & (torch.arange(80) < 52)
    assert (opacity_of_drawing(drawing, narrow, 7, 4) <= opacity(narrow, 4)).all()
    assert torch.equal(opacity_of_drawing(drawing, region, 7, 0), region.float())
