"""Guidance: which inputs a step needs and how the predictions for them are combined."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Conditioning = Mapping[str, Tensor]


@dataclass(frozen=True)
class IdentityGuider:
    """No guidance: the conditional prediction alone. Other guiders derive from it."""

    def conditioning(self, c: Conditioning, uc: Conditioning) -> dict[str, Tensor]:
        """The conditioning of every step's batch; the same tensors for a whole run.

        Args:
            c: conditional tensors, each of shape [B, ...].
            uc: unconditional tensors, which are not used here.
        """
        return dict(c)

    def batch(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The batch to denoise for latents x [B, ...] at levels sigma [B]."""
        return x, sigma

    def __call__(self, denoised: Tensor, sigma: Tensor) -> Tensor:
        """The guided prediction [B, ...] from the denoised batch; sigma [B] as in x."""
        return denoised


@dataclass(frozen=True)
class VanillaCFG(IdentityGuider):
    """Classifier-free guidance (Ho and Salimans, 2021) in one batch, unconditional half first."""

    scale: float

    def conditioning(self, c: Conditioning, uc: Conditioning) -> dict[str, Tensor]:
        """Both conditionings behind each other, each tensor [2B, ...].

        Raises:
            ValueError: `c` and `uc` have different keys.
        """
        if c.keys() != uc.keys():
            got = " and ".join(", ".join(sorted(cond)) or "none" for cond in (c, uc))
            raise ValueError(f"Guidance needs the same keys with and without prompt, not {got}.")
        return {key: torch.cat([uc[key], c[key]]) for key in c}

    def batch(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, ...] and sigma [B], each doubled."""
        return torch.cat([x, x]), torch.cat([sigma, sigma])

    def __call__(self, denoised: Tensor, sigma: Tensor) -> Tensor:
        """u + scale * (c - u) from [2B, ...], unconditional half first, to [B, ...]."""
        unconditional, conditional = denoised.chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


def guider_of(scale: float) -> IdentityGuider:
    """Guidance of a scale; up to 1 none, at half the cost: the prompt's prediction alone, which is
    what few-step models were distilled for."""
    return VanillaCFG(scale) if scale > 1 else IdentityGuider()
