"""Where random draws come from. The order of draws is part of the published behaviour."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# (name of the draw, shape) -> standard normal noise, float32 on the CPU, so that a seed means the
# same on every device.
Noise = Callable[[str, Sequence[int]], Tensor]


def sequential_noise(name: str, shape: Sequence[int]) -> Tensor:
    """The published source: the global CPU generator, one draw after the other."""
    return torch.randn(tuple(shape))


def by_level(noise: Noise) -> Callable[[float, Tensor], Tensor]:
    """A source for solvers that draw: from a noise level and latents to noise of their shape, dtype
    and device. Each level has one draw, kept for the run, so that latents which are stepped side by
    side get the same."""
    kept: dict[float, Tensor] = {}

    def draw(sigma: float, like: Tensor) -> Tensor:
        if sigma not in kept:
            kept[sigma] = noise(f"level/{sigma:.6g}", like.shape).to(like)
        return kept[sigma]

    return draw


class NamedNoise:
    """Noise that depends on the seed and the draw's name, never on what was drawn before. So dense
    and sparse SDEdit, which draw a different number of times, get the same."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, name: str, shape: Sequence[int]) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn(tuple(shape), generator=generator)


def fixed_noise(noise: Noise) -> Noise:
    """A source that gives every step the noise of the start: for a dense inpainting run that is to
    be compared with one of preset `fast`."""
    return lambda name, shape: noise("start" if name.startswith("step/") else name, shape)


def noise_inside(inside: Tensor | None, seed: int | None, around: Noise) -> Noise:
    """A source whose draws have the named noise of a seed inside an edit (bool [h, w] on any
    device, the size of the draws), and those of another source around it. Without a seed, or
    without an edit, all is of the other source."""
    if inside is None or seed is None:
        return around
    own, where = NamedNoise(seed), inside.cpu()
    return lambda name, shape: torch.where(where, own(name, shape), around(name, shape))
