"""Small building blocks of the diffusion networks."""

import math

import torch
from torch import Tensor

LONGEST = 10000.0  # wavelength


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of (possibly fractional) timesteps [N], cosines first (Ho et al., 2020):
    float32 [N, dim]; an odd width ends in a zero column."""
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    # Multiplied before divided: the published order, which the networks were trained with.
    frequencies = torch.exp(-math.log(LONGEST) * index / half)
    angles = timesteps[:, None].float() * frequencies[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return torch.nn.functional.pad(embedding, (0, dim % 2))
