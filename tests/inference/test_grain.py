"""Grain of an edit: that of its surroundings, and none where they have none."""

import pytest
import torch
from torch import Tensor

from sgm.inference.border import blur
from sgm.inference.composite import grained, opacity
from sgm.inference.grain import grain_for

SIZE, FEATHER = (128, 192), 4


@pytest.fixture
def smooth() -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return 0.5 + 3 * blur(torch.rand(3, *SIZE, generator=generator) - 0.5, 12.0)


@pytest.fixture
def weight() -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[40:90, 50:130] = True
    return opacity(mask, FEATHER)


def noise(level: float, seed: int = 1, grey: bool = False, sigma: float = 0.0) -> Tensor:
    """Grain [3, H, W] of a standard deviation, in levels of 255."""
    white = torch.randn(1 if grey else 3, *SIZE, generator=torch.Generator().manual_seed(seed))
    white = blur(white, sigma) if sigma else white
    return (white / white.std() * level / 255).expand(3, *SIZE)


def fine(x: Tensor) -> Tensor:
    """What is finer than two pixels."""
    return x - blur(x, 2.0)


@pytest.mark.parametrize("grey", [False, True], ids=["colours", "grey"])
@pytest.mark.parametrize("sigma", [0.0, 0.8], ids=["fine", "coarse"])
def test_a_smooth_edit_gets_the_grain_around_it(
    smooth: Tensor, weight: Tensor, grey: bool, sigma: float
) -> None:
    given = noise(6, grey=grey, sigma=sigma)
    grain = grain_for(smooth, smooth + given, weight)
    inside = weight >= 1
    for band in (lambda x: x, fine, lambda x: x - blur(x, 0.8)):
        found, wanted = (band(x)[:, inside].std().item() for x in (grain, given))
        assert found == pytest.approx(wanted, rel=0.15)
    alike = torch.corrcoef(grain[:, inside])[0, 1]
    assert alike > 0.9 if grey else alike.abs() < 0.15


def test_what_the_edit_has_of_its_own_counts(smooth: Tensor, weight: Tensor) -> None:
    source = smooth + noise(6)
    assert not grain_for(smooth + noise(6, 2), source, weight).any()
    assert not grain_for(smooth + noise(9, 2), source, weight).any()
    some = smooth + noise(4, 2)
    total = some - smooth + grain_for(some, source, weight)
    assert (255 * total[:, weight >= 1].std()).item() == pytest.approx(6, rel=0.1)


def test_a_clean_picture_gets_none(smooth: Tensor, weight: Tensor) -> None:
    quantised = (smooth * 255).round() / 255
    assert not grain_for(smooth, quantised, weight).any()


def test_texture_is_no_grain_where_some_of_the_surroundings_are_flat(
    smooth: Tensor, weight: Tensor
) -> None:
    source = smooth.clone()
    source[:, :, :110] += noise(20)[:, :, :110]
    assert not grain_for(smooth, source, weight).any()


def test_the_same_edit_gets_the_same_grain(smooth: Tensor, weight: Tensor) -> None:
    source = smooth + noise(6)
    torch.manual_seed(3)
    first = grain_for(smooth, source, weight)
    assert torch.equal(first, grain_for(smooth, source, weight)) and first.any()


def test_grain_is_even_across_the_ring_and_nothing_changes_beyond(
    smooth: Tensor, weight: Tensor
) -> None:
    source = smooth + noise(6)
    found = grained(smooth, source, weight)
    assert torch.equal(found[:, weight == 0], source[:, weight == 0])
    assert found.min() >= 0 and found.max() <= 1
    ring = (weight > 0) & (weight < 1)
    level = 255 * (found - smooth)[:, ring].std()
    assert level.item() == pytest.approx(6, rel=0.08)
