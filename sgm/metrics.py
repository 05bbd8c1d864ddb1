"""How alike two pictures are, all over or in a part of them: PSNR, SSIM, and LPIPS if installed."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# ITU-R BT.601, the luma of which SSIM is taken.
LUMA = (0.299, 0.587, 0.114)
# Wang et al. (2004), section III-C: window, its standard deviation and the constants for a range
# of values of 1.
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
# The backbone of LPIPS as torchvision keeps it, which would download it.
ALEXNET = "alexnet-owt-7be5be79.pth"


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio over all channels, in dB; infinite where the pictures are equal.

    Args:
        a, b: [3, H, W] in [0, 1].
        mask: bool [H, W], the pixels that count; None for all. ValueError for an empty one.
    """
    _check(a, b, mask)
    squares = (a.double() - b.double()).square().mean(dim=0)  # [H, W]
    error = _mean(squares, mask)
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Structural similarity of the luma (Wang et al., 2004), Gaussian window of 11 x 11; at most 1,
    which means equal. As in the paper only positions whose window lies in the picture have a value.

    Args:
        a, b: [3, H, W] in [0, 1], at least 11 pixels high and wide.
        mask: bool [H, W], the positions that are averaged; None for all. A window at the edge of
            the mask also sees pixels outside of it. ValueError if no position is left.
    """
    _check(a, b, mask)
    if min(a.shape[1:]) < WINDOW:
        raise ValueError(f"SSIM needs {WINDOW} x {WINDOW} pixels, not {tuple(a.shape[1:])}.")
    values = ssim_map(a, b)
    margin = WINDOW // 2
    return _mean(values, None if mask is None else mask[margin:-margin, margin:-margin])


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM at every position whose window lies in the picture: float64 [H - 10, W - 10]."""
    weights = torch.tensor(LUMA, dtype=torch.float64, device=a.device)[:, None, None]
    x, y = ((picture.double() * weights).sum(dim=0) for picture in (a, b))  # [H, W]
    mean_x, mean_y, square_x, square_y, product = _blurred(torch.stack((x, y, x * x, y * y, x * y)))
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    covariance = product - mean_x * mean_y
    light = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return light * (2 * covariance + C2) / (variance_x + variance_y + C2)


def lpips_map() -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS (Zhang et al., 2018) over AlexNet at every pixel: from two pictures [3, H, W] in [0, 1]
    to distances [H, W]. None where the package `lpips` is not installed, or its backbone's weights
    are not there yet: nothing is downloaded."""
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if importlib.util.find_spec("lpips") is None or not weights.is_file():
        return None
    import lpips

    network = lpips.LPIPS(net="alex", spatial=True, verbose=False)

    @torch.inference_mode()
    def distances(a: Tensor, b: Tensor) -> Tensor:
        return network(a[None] * 2 - 1, b[None] * 2 - 1)[0, 0]

    return distances


def _blurred(maps: Tensor) -> Tensor:
    """Gaussian means of float64 [N, H, W] at the positions inside: [N, H - 10, W - 10]."""
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=maps.device) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window = window / window.sum()
    rows = F.conv2d(maps[:, None], window[None, None, :, None])
    return F.conv2d(rows, window[None, None, None, :])[:, 0]


def _mean(values: Tensor, mask: Tensor | None) -> float:
    """Mean of [H, W] over a mask [H, W]; ValueError if that is nothing."""
    chosen = values if mask is None else values[mask.to(values.device)]
    if chosen.numel() == 0:
        raise ValueError("The mask leaves no pixel to compare; give one with True inside.")
    return chosen.mean().item()


def _check(a: Tensor, b: Tensor, mask: Tensor | None) -> None:
    """Raise ValueError unless these are two pictures of one size, and their mask."""
    if a.ndim != 3 or a.shape != b.shape or a.shape[0] != 3:
        raise ValueError(f"Expected two pictures [3, H, W], not {list(a.shape)}, {list(b.shape)}.")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != a.shape[1:]):
        raise ValueError(
            f"Expected a bool mask {list(a.shape[1:])}, not {mask.dtype} {list(mask.shape)}."
        )
