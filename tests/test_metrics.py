"""PSNR and SSIM against values worked out by hand and by another spelling."""

import math

import numpy as np
import pytest
import torch

from sgm.metrics import psnr, ssim, ssim_map


def pictures(height=24, width=32):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, height, width, generator=generator).unbind()


def test_psnr_of_a_known_error():
    a = torch.full((3, 16, 20), 0.5)
    assert psnr(a, a + 0.1) == pytest.approx(20, abs=1e-5)
    assert psnr(a, a) == math.inf
    one = a.clone()
    one[0, 3, 4] += 0.3  # 0.09 / (3 channels * 320 pixels)
    assert psnr(a, one) == pytest.approx(-10 * math.log10(0.09 / 960), abs=1e-4)


def test_psnr_counts_the_mask_only():
    a, b = pictures()
    mask = torch.zeros(24, 32, dtype=torch.bool)
    mask[2:9, 5:30] = True
    inside = torch.where(mask, b, a)
    assert psnr(a, inside, ~mask) == math.inf
    error = (a - b)[:, 2:9, 5:30].double().square().mean().item()
    assert psnr(a, inside, mask) == pytest.approx(-10 * math.log10(error))


def windows(picture):
    """All 11 x 11 windows of the luma, as numpy [H - 10, W - 10, 11, 11]."""
    luma = np.tensordot((0.299, 0.587, 0.114), picture.double().numpy(), axes=1)
    return np.lib.stride_tricks.sliding_window_view(luma, (11, 11))


def test_ssim_is_the_formula_of_the_paper():
    """Each window on its own, by weighted means and central moments."""
    a, b = pictures()
    squares = (np.arange(11) - 5) ** 2
    weights = np.exp(-(squares[:, None] + squares[None]) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = windows(a), windows(b)
    mean_x, mean_y = ((w * weights).sum((2, 3)) for w in (x, y))
    dx, dy = x - mean_x[..., None, None], y - mean_y[..., None, None]
    var_x, var_y, cov = ((p * weights).sum((2, 3)) for p in (dx * dx, dy * dy, dx * dy))
    c1, c2 = 0.0001, 0.0009
    top = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
    expected = top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    assert np.allclose(ssim_map(a, b).numpy(), expected, atol=1e-12)
    assert ssim(a, b) == pytest.approx(expected.mean())
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, b) == pytest.approx(ssim(b, a))
    mask = torch.rand(24, 32, generator=torch.Generator().manual_seed(1)) < 0.3
    assert ssim(a, b, mask) == pytest.approx(expected[mask.numpy()[5:-5, 5:-5]].mean())


def test_ssim_falls_with_the_noise():
    a, noise = pictures()
    values = [ssim(a, a + level * (noise - 0.5)) for level in (0.05, 0.2, 0.8)]
    assert 1 > values[0] > values[1] > values[2]


def test_what_cannot_be_compared():
    a, b = pictures()
    empty = torch.zeros(24, 32, dtype=torch.bool)
    border = empty.clone()
    border[:3] = True
    for metric, mask in ((psnr, empty), (ssim, empty), (ssim, border)):
        with pytest.raises(ValueError, match="no pixel"):
            metric(a, b, mask)
    with pytest.raises(ValueError, match="two pictures"):
        psnr(a, b[:, 1:])
    with pytest.raises(ValueError, match="bool mask"):
        psnr(a, b, empty.float())
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(a[:, :10], b[:, :10])
