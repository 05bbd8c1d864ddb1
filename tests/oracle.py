"""What preset `fast` must compute, written down naively: every pixel, every time.

`Oracle` is a dense network that is held at an unedited pass outside of some masks. It knows layers
only by what they are (a group norm, a resampling, keys and values of self-attention, the last
convolution), by our names and by those of diffusers. `Guided` and `Trajectory` are the estimate
and the step of a sampling loop, from the published formulas.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from sgm.sparse.masks import MaskPyramid

# What an unedited pass leaves, by layer: the maps [B, C, H, W] or tokens [B, P, D] to hold it at,
# and for a group norm the squares of the map behind them.
Kept = dict[str, tuple[Tensor, ...]]

SELF_ATTENTION = re.compile(r"(attn1|mid\.attn_1|mid_block\.attentions\.0)\.(to_)?[kv]$")
EXIT = re.compile(r"(^|\.)(out\.2|conv_out)$")
# Kinds of layers that look further than their own pixel.
NORM, RESAMPLING, OUTPUT = "group norm", "resampling", "held by its output"


def kind_of(name: str, layer: nn.Module) -> str | None:
    """How a layer is held; None for one that works pixel by pixel, or on what is held already."""
    if isinstance(layer, nn.GroupNorm):
        return NORM
    if type(layer).__name__.startswith(("Downsample", "Upsample")):
        return RESAMPLING
    if SELF_ATTENTION.search(name) or EXIT.search(name):
        return OUTPUT
    return None


class Oracle:
    """A dense network that can be held at an unedited pass outside of some masks.

    It runs every pixel. The map that a group norm or a resampling reads is the unedited one
    outside of the masks, and so are the keys and values of self-attention and the result. A group
    norm has the statistics of the whole map as it is now. All else works pixel by pixel, or on
    such a map.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        named = {name: (kind_of(name, m), m) for name, m in network.named_modules()}
        self.layers = {name: (kind, m) for name, (kind, m) in named.items() if kind}

    def record(self, *inputs: Tensor) -> tuple[Tensor, Kept]:
        """The output of an unedited pass, and what it leaves."""
        kept: Kept = {}

        def keep(name: str, kind: str, x: Tensor, out: Tensor) -> None:
            kept[name] = (out,) if kind == OUTPUT else (x, x.square()) if kind == NORM else (x,)

        with self._hooked(keep):
            return self.network(*inputs), kept

    def held(self, kept: Kept, masks: MaskPyramid, *inputs: Tensor) -> Tensor:
        """The output of a pass that is held outside of the masks, bool [h, w] by size."""
        return self.run(kept, masks, *inputs)[0]

    def updated(self, kept: Kept, masks: MaskPyramid, *inputs: Tensor) -> Kept:
        """What a held pass leaves."""
        return self.run(kept, masks, *inputs)[1]

    def run(self, kept: Kept, masks: MaskPyramid, *inputs: Tensor) -> tuple[Tensor, Kept]:
        """The output of a held pass, and what it leaves."""
        left: Kept = {}

        def hold(name: str, kind: str, x: Tensor, out: Tensor) -> Tensor:
            layer, unedited = self.layers[name][1], kept[name]
            if kind == NORM and x.ndim == 3:  # of an autoencoder's attention, [B, C, P]
                turned = inside(masks, x.transpose(1, 2), unedited[0].transpose(1, 2))
                now = turned.transpose(1, 2)
            else:
                now = inside(masks, out if kind == OUTPUT else x, unedited[0])
            left[name] = (now,)
            if kind == OUTPUT:
                return now
            if kind == RESAMPLING:
                return type(layer).forward(layer, now)
            squares = unedited[1] + now.square() - unedited[0].square()
            left[name] = now, squares
            return normed(layer, now, squares)

        with self._hooked(hold):
            return self.network(*inputs), left

    @contextmanager
    def _hooked(self, hook: Callable[[str, str, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
        """With a hook of (name, kind, input, output) after every layer that is held; what it
        returns replaces the output."""

        def bound(name: str, kind: str) -> Callable[..., Tensor | None]:
            return lambda layer, args, out: hook(name, kind, args[0], out)

        handles = [
            layer.register_forward_hook(bound(name, kind))
            for name, (kind, layer) in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def inside(masks: MaskPyramid, now: Tensor, unedited: Tensor) -> Tensor:
    """`now` in the mask of its size and `unedited` around: maps [B, C, H, W], tokens [B, P, D]."""
    if now.ndim == 4:
        return torch.where(masks[now.shape[2], now.shape[3]], now, unedited)
    [mask] = [m for m in masks.values() if m.numel() == now.shape[1]]
    return torch.where(mask.flatten()[:, None], now, unedited)


def normed(norm: nn.GroupNorm, x: Tensor, squares: Tensor) -> Tensor:
    """The group norm of a map x [B, C, H, W] or [B, C, P].

    Args:
        squares: of x; where x lies between two unedited maps, between theirs.
    """
    groups = (len(x), norm.num_groups, -1)
    mean = x.double().reshape(groups).mean(2)  # [B, G]
    deviation = (squares.double().reshape(groups).mean(2) - mean.square() + norm.eps).sqrt()
    share = x.shape[1] // norm.num_groups
    mean, deviation = (t.repeat_interleave(share, 1)[:, :, None] for t in (mean, deviation))
    out = (x.double().flatten(2) - mean) / deviation * norm.weight[:, None] + norm.bias[:, None]
    return out.view(x.shape).to(x.dtype)


def weighted(kept: Sequence[Kept], shares: Sequence[float]) -> Kept:
    """The sum of what passes left, each times its share."""
    return {
        name: tuple(
            sum(share * one[name][part] for one, share in zip(kept, shares, strict=True))
            for part in range(len(parts))
        )
        for name, parts in kept[0].items()
    }


# --- one step of sampling ------------------------------------------------------------------------


def levels(steps: int) -> list[float]:
    """The noise levels of a run of so many steps and the final 0 (Rombach et al., 2022)."""
    table = training_levels()
    spread = [int(999 * (1 - i / steps) + 1e-9) for i in range(steps)]
    return [table[i] for i in spread] + [0.0]


@cache
def training_levels() -> list[float]:
    """All 1000, rising."""
    product, found = 1.0, []
    for i in range(1000):
        root = 0.00085**0.5 + (0.0120**0.5 - 0.00085**0.5) * i / 999
        product *= 1 - root**2
        found.append(((1 - product) / product) ** 0.5)
    return found


# (x [1, C, h, w], timestep [2], text tokens, vector) -> noise, as a UNet is called.
Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Guided:
    """The guided estimate of the clean latents; all tensors [2, ...], the unconditional first."""

    context: Tensor
    vector: Tensor
    scale: float = 6.0

    def __call__(self, network: Network, x: Tensor, sigma: float) -> Tensor:
        """Of latents x [1, C, h, w] at a noise level, with one call of the network."""
        table = training_levels()
        timestep = min(range(1000), key=lambda i: abs(table[i] - sigma))
        scaled = torch.cat([x, x]) / (sigma**2 + 1) ** 0.5
        noise = network(scaled, torch.tensor([timestep] * 2), self.context, self.vector)
        unconditional, conditional = (x - sigma * part for part in noise.chunk(2))
        return unconditional + self.scale * (conditional - unconditional)


class Trajectory:
    """Latents on their way down the noise levels by DPM++ 2M (Lu et al., 2022, algorithm 2)."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._last: tuple[Tensor, float] | None = None

    def step(self, estimate: Tensor, sigma: float, target: float) -> None:
        """From `sigma` to `target`, given the estimate of the clean latents at x."""
        slope = estimate
        if self._last is not None and target > 0:
            before, above = self._last
            ratio = math.log(sigma / target) / math.log(above / sigma)
            slope = estimate + ratio / 2 * (estimate - before)
        self.x = target / sigma * self.x + (1 - target / sigma) * slope
        self._last = estimate, sigma
