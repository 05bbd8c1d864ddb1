"""Noise schedules: which sigmas a run of n steps visits."""

import numpy as np
import torch
from torch import Tensor

# The smallest float16, as diffusers takes it: sigma is 4096 then.
LAST_ALPHA = 2.0**-24


class LegacyDDPMDiscretization:
    """The schedule of Stable Diffusion: betas linear in their square roots (Rombach et al., 2022).

    Args:
        linear_start, linear_end: betas of the first and the last training step.
        num_timesteps: number of training steps.
        zero_terminal_snr: move and stretch the schedule so that its last step is noise alone (Lin
            et al., 2023, algorithm 1). `LAST_ALPHA` is left of the picture, as sigma would be
            infinite.
    """

    def __init__(
        self,
        linear_start: float = 0.00085,
        linear_end: float = 0.0120,
        num_timesteps: int = 1000,
        zero_terminal_snr: bool = False,
    ) -> None:
        self.num_timesteps = num_timesteps
        # In float64, as published: float32 would shift the table that sigmas are matched against.
        # The device is given because the model around this object may be built on "meta".
        ends = linear_start**0.5, linear_end**0.5
        roots = torch.linspace(*ends, num_timesteps, dtype=torch.float64, device="cpu")
        self._alphas_cumprod = torch.cumprod(1.0 - roots**2, dim=0)  # [num_timesteps], falling
        if zero_terminal_snr:
            signal = self._alphas_cumprod.sqrt()
            signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
            self._alphas_cumprod = (signal**2).clamp(min=LAST_ALPHA)

    def __call__(self, steps: int, append_zero: bool = True) -> Tensor:
        """The sigmas of a run: float32 [steps (+ 1)] on the CPU, descending.

        Args:
            steps: how many, 1 to `num_timesteps` (else ValueError), spread evenly over the training
                steps from the last on.
            append_zero: whether the list ends in the noise-free 0.
        """
        last = self.num_timesteps - 1
        if not 1 <= steps <= self.num_timesteps:
            raise ValueError(f"Steps must be from 1 to {self.num_timesteps}, not {steps}.")
        if steps == self.num_timesteps:
            timesteps = torch.arange(last, -1, -1, device="cpu")
        else:
            # With numpy's rounding: where the quotient is a whole number it may fall just below it
            # and lose one (99 steps, 185, ...), and seeds are compared across implementations.
            spread = np.linspace(last, 0, steps, endpoint=False).astype(np.int64)
            timesteps = torch.from_numpy(spread)
        alphas = self._alphas_cumprod[timesteps]
        sigmas = ((1.0 - alphas) / alphas).float().sqrt()
        return torch.cat([sigmas, sigmas.new_zeros(1)]) if append_zero else sigmas
