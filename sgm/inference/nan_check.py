"""Latents that stop being numbers, noticed at the step where they do."""

import torch
from torch import Tensor

from sgm.errors import UserError
from sgm.words import Precision

NEVER = 2**31 - 1


class NanCheck:
    """Looks at the latents of every step without making a device wait: the number of the first
    step with a bad value stays on the device until `check` reads it.

    Args:
        device: of the latents.
    """

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), NEVER, dtype=torch.int32, device=device)
        self._steps = 0

    def __call__(self, step: int, x: Tensor) -> None:
        """Look at latents of any shape.

        Args:
            step: counted from 0.
        """
        bad = (~x.isfinite().all()).int()
        # `torch.where` with numbers would copy them to the device, and wait for that.
        self._first = torch.minimum(self._first, NEVER - bad * (NEVER - step))
        self._steps = max(self._steps, step + 1)

    def check(self, precision: Precision) -> None:
        """Wait for the device and say what was seen; without data (on the meta device, where
        passes are counted) nothing was.

        Raises:
            UserError: the step from which on there were values that are no numbers.
        """
        first = NEVER if self._first.is_meta else int(self._first)
        if first == NEVER:
            return
        remedy = "use a smaller --scale, or check the checkpoint"
        if precision is not Precision.FP32:
            remedy = f"{remedy}, or use --precision fp32"
        raise UserError(
            f"The latents are no numbers from step {first + 1} of {self._steps} on, at "
            f"{precision}; {remedy}."
        )
