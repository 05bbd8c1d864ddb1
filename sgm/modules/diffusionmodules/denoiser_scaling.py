"""How a network's input and output are scaled to make a denoiser (Karras et al., 2022, table 1).

A scaling is called with noise levels of any shape, floating point, and returns c_skip, c_out, c_in
and c_noise, each of the shape and dtype of the levels.
"""

from torch import Tensor


class EpsScaling:
    """For a network that predicts the noise: D(x) = x - sigma * network(x / sqrt(sigma^2 + 1))."""

    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return sigma.new_ones(sigma.shape), -sigma, (sigma**2 + 1.0).rsqrt(), sigma


class VScaling:
    """For a network that predicts the velocity (Salimans and Ho, 2022):
    D(x) = x / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) * network(x / sqrt(sigma^2 + 1))."""

    def __call__(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c_in = (sigma**2 + 1.0).rsqrt()
        return c_in**2, -sigma * c_in, c_in, sigma
