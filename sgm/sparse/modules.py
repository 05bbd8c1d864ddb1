"""Recording and sparse passes of the blocks that UNet and autoencoder share.

Each pass is a pair of functions: `record_*` computes everything and leaves in the site what
`sparse_*` will read. Maps are [B, C, H, W]; the operators see them as rows [B, H * W, C].
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sgm.sparse.active import CONV1X1, CONV3X3, ActiveSet, Geometry
from sgm.sparse.backends.base import Prologue
from sgm.sparse.network import Site
from sgm.sparse.norm import Affine, group_norm_affine

PLAIN = Prologue()


def as_rows(x: Tensor) -> Tensor:
    """A map [B, C, H, W] as rows [B, H * W, C]; no copy if it is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])


def as_map(rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Rows [B, H * W, C] as a channels-last map [B, C, H, W], without a copy."""
    return rows.view(rows.shape[0], *size, rows.shape[2]).permute(0, 3, 1, 2)


def conv_rows(
    site: Site, x: Tensor, active: ActiveSet, conv: nn.Conv2d, prologue: Prologue = PLAIN
) -> Tensor:
    """`conv` of the map x at the active outputs: [B, n, C_out]."""
    return site.ops.conv(as_rows(x), active, conv.weight, conv.bias, prologue)


def scatter_map(
    site: Site, base: Tensor, active: ActiveSet, rows: Tensor, residual: Tensor | None = None
) -> Tensor:
    """The recorded map `base` with `rows` (+ the map `residual`) at the active outputs."""
    residual = None if residual is None else as_rows(residual)
    rows = site.ops.scatter(as_rows(base), active, rows, residual, in_place=site.mask_specific)
    return as_map(rows, active.out_size)


def conv_map(
    site: Site,
    base: Tensor,
    x: Tensor,
    active: ActiveSet,
    conv: nn.Conv2d,
    prologue: Prologue = PLAIN,
    residual: Tensor | None = None,
) -> Tensor:
    """The recorded map `base` with `conv` of the map x (+ the map `residual`) at the active
    outputs."""
    residual = None if residual is None else as_rows(residual)
    rows = site.ops.conv_scatter(
        as_rows(x),
        active,
        conv.weight,
        conv.bias,
        prologue,
        as_rows(base),
        residual,
        in_place=site.mask_specific,
    )
    return as_map(rows, active.out_size)


@dataclass(frozen=True, eq=False)
class Residual:
    """The layers of a residual block; `shortcut` is a 1x1 convolution or None."""

    norm1: nn.GroupNorm
    conv1: nn.Conv2d
    norm2: nn.GroupNorm
    conv2: nn.Conv2d
    shortcut: nn.Conv2d | None


def record_residual(site: Site, block: Residual, x: Tensor, emb: Tensor | None = None) -> Tensor:
    """Residual block on the unedited map; emb [B, C_out] is added between the convolutions.

    The embedding is folded into the second norm's shift (norm(h + e) = s * h + (s * e + t)), so
    that a sparse pass needs no embedding (published behaviour).
    """
    first = group_norm_affine(x, block.norm1)
    hidden = block.conv1(F.silu(first(x)).to(x.dtype))
    if emb is None:
        second = group_norm_affine(hidden, block.norm2)
    else:
        outer = group_norm_affine(hidden + emb[:, :, None, None], block.norm2)
        second = Affine(outer.scale, outer.scale * emb + outer.shift)
    out = block.conv2(F.silu(second(hidden)).to(x.dtype))
    if block.shortcut is None:
        out = out + x
    else:
        shortcut = block.shortcut(x)
        out = out + shortcut
        site.put(shortcut=shortcut)
    site.put(first=first, second=second, hidden=hidden, out=out)
    return out


def sparse_residual(site: Site, block: Residual, x: Tensor) -> Tensor:
    """Residual block on the edited map x, at the active outputs.

    Where a 3x3 block is active and the 1x1 block of the shortcut is not, the recorded shortcut
    stands (published behaviour).
    """
    active = site.active(CONV3X3, x)
    first = Prologue(site.affine("first", x), silu=True)
    hidden = conv_map(site, site.tensor("hidden", x), x, active, block.conv1, first)
    shortcut = x
    if block.shortcut is not None:
        narrow = site.active(CONV1X1, x)
        shortcut = conv_map(site, site.tensor("shortcut", x), x, narrow, block.shortcut)
    second = Prologue(site.affine("second", x), silu=True)
    out = site.tensor("out", x)
    return conv_map(site, out, hidden, active, block.conv2, second, shortcut)


def record_conv(site: Site, out: Tensor) -> Tensor:
    """Record the output of a lone convolution."""
    site.put(out=out)
    return out


def sparse_conv(site: Site, x: Tensor, conv: nn.Conv2d, geometry: Geometry) -> Tensor:
    """A lone convolution on the edited map, at the active outputs."""
    active = site.active(geometry, x)
    return conv_map(site, site.tensor("out", x), x, active, conv)


def upsampled(x: Tensor) -> Tensor:
    """Nearest-neighbour doubling of a map, dense as published."""
    return F.interpolate(x, scale_factor=2, mode="nearest")
