"""Group norm as a scale and a shift per channel, so that a sparse pass can reuse it.

The recording pass measures mean and variance on the unedited activations; the sparse pass applies
them to the few pixels it computes (SIGE, section 3.3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Affine:
    """scale and shift, float32 [B, C]: x -> x * scale + shift."""

    scale: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to a map [B, C, H, W]; the result is float32."""
        return x * self.scale[:, :, None, None] + self.shift[:, :, None, None]


def group_norm_affine(x: Tensor, norm: nn.GroupNorm) -> Affine:
    """The affine form of `norm` on this input; statistics in float32.

    Args:
        x: [B, C, H, W].

    Returns:
        scale and shift [B, C].
    """
    batch, channels = x.shape[:2]
    # Per channel first, then per group: a channels-last map is never copied.
    values = x.float()
    mean_c = values.mean(dim=(2, 3)).view(batch, norm.num_groups, -1)  # [B, G, C/G]
    square_c = values.square().mean(dim=(2, 3)).view(batch, norm.num_groups, -1)
    mean = mean_c.mean(dim=2, keepdim=True)
    # Within and between channels apart: less cancellation than one difference of large sums.
    within = (square_c - mean_c.square()).mean(dim=2, keepdim=True)
    between = (mean_c - mean).square().mean(dim=2, keepdim=True)
    variance = (within + between).clamp(min=0)
    inverse = torch.rsqrt(variance + norm.eps).expand_as(mean_c)
    scale = inverse.reshape(batch, channels) * norm.weight.float()
    shift = norm.bias.float() - mean.expand_as(mean_c).reshape(batch, channels) * scale
    return Affine(scale, shift)
