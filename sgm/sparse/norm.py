"""Group norm as a scale and a shift per channel, so that a sparse pass can reuse it.

The recording pass measures mean and variance on the unedited activations. As published (SIGE,
section 3.3), the sparse pass applies them as they are to the few pixels that it computes; with
preset `fast` it first corrects them by what those pixels changed.
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
        return torch.addcmul(self.shift[:, :, None, None], x, self.scale[:, :, None, None])


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean of the values and of their squares over the pixels of a map, float32 [B, C] each."""

    mean: Tensor
    square: Tensor

    def affine(self, norm: nn.GroupNorm) -> Affine:
        """The affine form of `norm` on a map with these moments."""
        groups = (norm.num_groups, -1)
        mean_c = self.mean.unflatten(1, groups)  # [B, G, C/G]
        square_c = self.square.unflatten(1, groups)
        # Within and between channels apart: less cancellation than one difference of large sums.
        between, mean = torch.var_mean(mean_c, dim=2, correction=0, keepdim=True)
        within = torch.addcmul(square_c, mean_c, mean_c, value=-1).mean(dim=2, keepdim=True)
        inverse = torch.rsqrt((within + between).clamp(min=0) + norm.eps)
        scale = norm.weight.float().unflatten(0, groups) * inverse
        shift = torch.addcmul(norm.bias.float().unflatten(0, groups), mean, scale, value=-1)
        return Affine(scale.flatten(1), shift.flatten(1))

    def replaced(
        self, old: Tensor, new: Tensor, pixels: int, counted: Tensor | None = None
    ) -> "Moments":
        """The moments after some pixels have changed.

        Args:
            old, new: [B, n, C], the pixels before and after.
            pixels: number of pixels of the whole map.
            counted: [n, 1], 1 for rows that count and 0 for others; None if all do.
        """
        old, new = old.float(), new.float()
        if counted is not None:
            old, new = old * counted, new * counted
        change = new - old
        squares = (change * (new + old)).sum(dim=1)  # of the new less those of the old
        mean = torch.add(self.mean, change.sum(dim=1), alpha=1 / pixels)
        return Moments(mean, torch.add(self.square, squares, alpha=1 / pixels))


@dataclass(frozen=True, eq=False)
class RecordedRows:
    """What a recording kept of a map, for its group norm after some pixels have changed.

    Attributes:
        moments: of the whole map.
        pixels: number of pixels of the whole map.
        rows: [B, n, C], the active pixels before; with `whole` [B, P, C], all pixels.
        around: [B, m, C], rows to norm behind the active ones; with `whole` their pixel numbers,
            int64 [m]; None for no such rows.
        whole: whether `rows` are those of all pixels.
    """

    moments: Moments
    pixels: int
    rows: Tensor
    around: Tensor | None = None
    whole: bool = False


def moments_of(x: Tensor) -> Moments:
    """Moments of a map [B, C, H, W], in float32; a channels-last map is never copied."""
    values = x.float()
    return Moments(values.mean(dim=(2, 3)), values.square().mean(dim=(2, 3)))
