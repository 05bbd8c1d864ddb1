"""Guidance: which inputs a step needs and how the predictions for them are combined."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Conditioning = Mapping[str, Tensor]


class Guider(Protocol):
    """What a sampling loop asks of a guider."""

    def conditioning(self, c: Conditioning, uc: Conditioning) -> dict[str, Tensor]:
        """The conditioning of every step's batch; the same tensors for a whole run."""
        ...

    def batch(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The batch to denoise for latents x [B, ...] at levels sigma [B]."""
        ...

    def __call__(self, denoised: Tensor, sigma: Tensor) -> Tensor:
        """The guided prediction [B, ...] from the denoised batch; sigma [B] as in x."""
        ...


@dataclass(frozen=True)
class VanillaCFG:
    """Classifier-free guidance (Ho and Salimans, 2021) in one batch, unconditional half first."""

    scale: float

    def conditioning(self, c: Conditioning, uc: Conditioning) -> dict[str, Tensor]:
        """Both conditionings behind each other.

        Args:
            c: conditional tensors, each of shape [B, ...].
            uc: unconditional tensors with the same keys and shapes.

        Returns:
            Each tensor [2B, ...].

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


def guider_of(scale: float) -> Guider:
    """Guidance of a scale; up to 1 none, at half the cost: the prompt's prediction alone, which is
    what few-step models were distilled for."""
    return VanillaCFG(scale) if scale > 1 else IdentityGuider()


@dataclass(frozen=True)
class IdentityGuider:
    """No guidance: the conditional prediction alone."""

    def conditioning(self, c: Conditioning, uc: Conditioning) -> dict[str, Tensor]:
        """`c` as it is; `uc` is not used."""
        return dict(c)

    def batch(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs as they are."""
        return x, sigma

    def __call__(self, denoised: Tensor, sigma: Tensor) -> Tensor:
        """`denoised` as it is, shape [B, ...]."""
        return denoised
