"""From a noise-predicting network to a denoiser D(x, sigma)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgm.config import instantiate_from_config

Network = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


class DiscreteDenoiser(nn.Module):
    """A denoiser for a network trained on `num_idx` noise levels, which it knows by number: every
    sigma is first moved to the nearest of them.

    The table is no buffer: no checkpoint has to hold it, and neither building the model on another
    device nor casting it to half precision changes its values.

    Args:
        scaling_config: entry of a scaling, such as `EpsScaling`.
        discretization_config: entry of a schedule, such as `LegacyDDPMDiscretization`.
    """

    def __init__(
        self,
        num_idx: int,
        scaling_config: Mapping[str, Any],
        discretization_config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.scaling = instantiate_from_config(scaling_config)
        self.discretization = instantiate_from_config(discretization_config)
        # float32 on the CPU, shape [num_idx], ascending: position = number of the level.
        self.sigmas: Tensor = self.discretization(num_idx, append_zero=False).flip(0)
        self._copies: dict[torch.device, Tensor] = {}

    def _table(self, device: torch.device) -> Tensor:
        """The table on a device; copied once, since a copy in every step would stall a GPU."""
        if device not in self._copies:
            self._copies[device] = self.sigmas.to(device)
        return self._copies[device]

    def sigma_to_idx(self, sigma: Tensor) -> Tensor:
        """Numbers (int64, shape of `sigma`) of the nearest levels; the lower one of a tie."""
        distances = sigma.reshape(1, -1) - self._table(sigma.device)[:, None]  # [num_idx, N]
        return distances.abs().argmin(dim=0).view(sigma.shape)

    def idx_to_sigma(self, idx: Tensor) -> Tensor:
        """Sigmas (float32, shape of `idx`) of levels given by number (int64)."""
        return self._table(idx.device)[idx]

    def forward(
        self, network: Network, x: Tensor, sigma: Tensor, cond: Mapping[str, Tensor]
    ) -> Tensor:
        """The denoised estimate, of the shape of `x`.

        Args:
            network: called as `network(scaled x, level numbers [B] int64, cond)`.
            x: noisy latents [B, ...]; in float32 the result is too, whatever the network's own
                precision.
            sigma: noise level of each sample [B], on the device of `x`.
        """
        index = self.sigma_to_idx(sigma)  # [B]
        level = self.idx_to_sigma(index)  # [B]
        # For a discrete network c_noise is the number of the level.
        c_skip, c_out, c_in, _ = self.scaling(level.reshape(-1, *[1] * (x.ndim - 1)))
        return network(x * c_in, index, cond) * c_out + x * c_skip
