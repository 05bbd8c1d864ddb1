"""Latents as colours without the decoder: a linear map, fitted to the picture that is edited."""

import torch
from torch import Tensor
from torch.nn import functional

from sgm.specs import LATENT_FACTOR


class LatentColours:
    """The affine map from latents to colours that is closest to an autoencoder on one picture, by
    least squares. It needs no constants of the model.

    Args:
        z: latents of the picture [1, C, h, w].
        picture: [3, 8 h, 8 w] in [-1, 1].
    """

    def __init__(self, z: Tensor, picture: Tensor) -> None:
        small = functional.avg_pool2d(picture.double().cpu()[None], LATENT_FACTOR)
        colours = small[0].flatten(1).T  # [h w, 3]
        # A flat picture does not decide the map: of all that fit, the smallest is taken.
        fit = torch.linalg.lstsq(_with_ones(z), colours, driver="gelsd")
        self._map = fit.solution  # [C + 1, 3]

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents [1, C, h, w] as a picture [3, 8 h, 8 w] in [0, 1]."""
        height, width = latents.shape[2:]
        colours = (_with_ones(latents) @ self._map).T.reshape(1, 3, height, width)
        large = functional.interpolate(colours, scale_factor=LATENT_FACTOR, mode="bilinear")
        return (large[0].float() / 2 + 0.5).clamp(0, 1)


def _with_ones(latents: Tensor) -> Tensor:
    """[1, C, h, w] as rows [h w, C + 1], the last column 1; float64 on the CPU."""
    rows = latents[0].detach().double().cpu().flatten(1).T
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
