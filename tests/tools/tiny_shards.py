"""Files of the tiny model's data set as tests fill them."""

from pathlib import Path

import torch
from torch import Tensor

from tools.tiny.checkpoints import write
from tools.tiny.masks import MASKS
from tools.tiny.practice import GRID


def write_shard(path: Path, count: int, **parts: Tensor) -> None:
    """A file of `count` scenes: the given parts, and zeros for the others."""
    tensors = {
        "latents": torch.zeros(count, 4, *GRID).half(),
        "bare": torch.zeros(count, 4, *GRID).half(),
        "masked": torch.zeros(count, MASKS, 4, *GRID).half(),
        "masks": torch.zeros(count, MASKS, *GRID).bool(),
        "grey": torch.zeros(4, *GRID).half(),
    }
    write(path, tensors | parts, {})


def write_random_shard(path: Path, count: int, seed: int) -> None:
    """A file of `count` scenes of noise."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, *GRID, generator=generator).half()

    write_shard(
        path,
        count,
        latents=noise(count, 4),
        bare=noise(count, 4),
        masked=noise(count, MASKS, 4),
        masks=noise(count, MASKS) > 0,
        grey=noise(4),
    )
