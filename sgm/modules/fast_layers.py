"""The layers of which the networks of preset `fast` are made.

Everything that works pixel by pixel (1x1 convolutions, linear layers, activations, sums) runs
unchanged on the rows of the active pixels. Only these layers look further: 3x3 convolutions read
neighbours, group norms the statistics of the whole map, attention the keys and values of all
pixels. Each records what of the unedited picture it will read (as SIGE does for its blocks, Li et
al., 2022, section 3).
"""

import torch
from torch import Tensor, nn

from sgm.modules.attention import CrossAttention, attend
from sgm.modules.diffusionmodules.model import EndPaddedConv2d, UpsampledConv2d
from sgm.sparse.masks import Resolution
from sgm.sparse.modules import PLAIN, as_map, as_rows, conv_rows
from sgm.sparse.network import Site, SparseModule
from sgm.sparse.norm import Moments, moments_of
from sgm.sparse.pixels import PIXELS, PixelGeometry, PixelSet

# A 3x3 convolution that keeps the size.
CONV = PixelGeometry(3, padding=1, padding_end=1)


def rows_as_map(rows: Tensor) -> Tensor:
    """Rows [B, n, C] as a map [B, C, n, 1], without a copy."""
    return as_map(rows, (rows.shape[1], 1))


class FastGroupNorm(SparseModule, nn.GroupNorm):
    """A group norm of a map of which only the active pixels have changed.

    The statistics are those of the whole map as it is now: the recorded ones, with what the active
    pixels added replaced. The published engine keeps the statistics of the unedited map.
    """

    def _record(self, x: Tensor) -> Tensor:
        size, rows = (x.shape[2], x.shape[3]), as_rows(x)
        if self.site.own_masks:  # nothing else will be read
            active = self.site.state.active(PIXELS, size, x.device)
            rows = self.site.ops.gather(rows, active, PLAIN)
        self.site.put(size=size, rows=rows, moments=moments_of(x))
        return self._dense(x)

    def _sparse(self, x: Tensor) -> Tensor:
        return self._moments(x).affine(self)(x).to(x.dtype)

    def _moments(self, x: Tensor) -> Moments:
        """The moments of the whole map, of which x holds the active rows."""
        site, size = self.site, self.site.size(x)
        old, active = site.tensor("rows", x), site.state.active(PIXELS, size, x.device)
        if not site.own_masks:
            old = site.ops.gather(old, active, PLAIN)
        recorded, pixels = site.moments("moments", x), size[0] * size[1]
        moments = recorded.replaced(old, as_rows(x), pixels, active.inside)
        if site.state.updates:
            site.update(active, rows=as_rows(x))
            site.put(moments=moments)
        return moments


class FastConvNorm(FastGroupNorm):
    """The group norm before a 3x3 convolution, which also reads pixels around the active ones.

    So those are normed too, as they were recorded and with the statistics of now, and handed on
    behind the active rows: a short map (see `sgm.sparse.pixels`).
    """

    def _record(self, x: Tensor) -> Tensor:
        if self.site.own_masks:
            around = self._around((x.shape[2], x.shape[3]), x)
            self.site.put(around=as_rows(x).index_select(1, around))
        return super()._record(x)

    def _sparse(self, x: Tensor) -> Tensor:
        site = self.site
        if not site.own_masks:
            around = site.tensor("rows", x).index_select(1, self._around(site.size(x), x))
        else:
            around = site.tensor("around", x)
        short = rows_as_map(torch.cat([as_rows(x), around], dim=1))
        return self._moments(x).affine(self)(short).to(x.dtype)

    def _around(self, size: Resolution, x: Tensor) -> Tensor:
        """The pixels around the active ones, int64 [m]."""
        return pixel_set(self.site, CONV, size, x).around


def pixel_set(site: Site, geometry: PixelGeometry, size: Resolution, x: Tensor) -> PixelSet:
    """The active set of a convolution that reads a short map."""
    active = site.state.active(geometry, size, x.device)
    assert isinstance(active, PixelSet)
    return active


class FastNormedConv2d(SparseModule, nn.Conv2d):
    """A 3x3 convolution after a `FastConvNorm` and an activation: from a short map to active
    rows."""

    def _record(self, x: Tensor) -> Tensor:
        self.site.put(size=(x.shape[2], x.shape[3]))
        return self._dense(x)

    def _sparse(self, x: Tensor) -> Tensor:
        active = pixel_set(self.site, CONV, self.site.size(x), x)
        return rows_as_map(conv_rows(self.site, x, active, self))


class _PixelConv(SparseModule):
    """Mix-in of a lone convolution from active rows to active rows."""

    geometry: PixelGeometry

    def _record(self, x: Tensor) -> Tensor:
        site, size = self.site, (x.shape[2], x.shape[3])
        rows = as_rows(x)
        if site.own_masks:  # nothing else will be read
            rows = rows.index_select(1, pixel_set(site, self.geometry, size, x).around)
        site.put(size=size, around=rows)
        return self._dense(x)

    def _sparse(self, x: Tensor) -> Tensor:
        site, size = self.site, self.site.size(x)
        active = pixel_set(site, self.geometry, size, x)
        around = site.tensor("around", x)
        if not site.own_masks:
            around = around.index_select(1, active.around)
        short = rows_as_map(torch.cat([as_rows(x), around], dim=1))
        if site.state.updates:
            inputs = site.state.active(PIXELS, size, x.device)
            site.update(inputs, around=as_rows(x))
        return rows_as_map(conv_rows(site, short, active, self))


class FastConv2d(_PixelConv, nn.Conv2d):
    """A lone 3x3 convolution of any stride, padded by one on every side."""

    @property
    def geometry(self) -> PixelGeometry:
        return PixelGeometry(3, self.stride[0], padding=1, padding_end=1)


class FastEndPaddedConv2d(_PixelConv, EndPaddedConv2d):
    """The autoencoder's convolution of stride 2."""

    geometry = PixelGeometry(3, 2, padding_end=1)


class FastUpsampledConv2d(_PixelConv, UpsampledConv2d):
    """A 3x3 convolution of a doubled map, which is never made."""

    geometry = PixelGeometry(3, padding=1, padding_end=1, scale=2)


class FastEntryConv2d(SparseModule, nn.Conv2d):
    """The first convolution: from a whole map to active rows."""

    geometry = PixelGeometry(3, padding=1, padding_end=1, short=False)

    def _record(self, x: Tensor) -> Tensor:
        return self._dense(x)

    def _sparse(self, x: Tensor) -> Tensor:
        active = self.site.active(self.geometry, x)
        return rows_as_map(conv_rows(self.site, x, active, self))


class FastExitConv2d(FastNormedConv2d):
    """The last convolution: from a short map to the recorded map with the active rows put in."""

    def _record(self, x: Tensor) -> Tensor:
        out = super()._record(x)
        self.site.put(out=out)
        return out

    def _sparse(self, x: Tensor) -> Tensor:
        rows = as_rows(super()._sparse(x))
        base, size = self.site.tensor("out", x), self.site.size(x)
        active = pixel_set(self.site, CONV, size, x)
        out = as_map(self.site.ops.scatter(as_rows(base), active, rows), size)
        if self.site.state.updates:
            self.site.put(out=out)
        return out


class FastSelfAttention(SparseModule, CrossAttention):
    """Self-attention with queries at the active pixels; keys and values elsewhere are recorded.

    The same result as computing all keys and values anew, since the others have not changed.
    """

    def _record(self, x: Tensor) -> Tensor:
        k, v = self.to_k(x), self.to_v(x)
        self.site.put(key=k, value=v)
        return self.to_out(attend(self.to_q(x), k, v, self.heads))

    def _sparse(self, x: Tensor) -> Tensor:
        k, v = replaced(self, self.to_k(x), self.to_v(x))
        return self.to_out(attend(self.to_q(x), k, v, self.heads))


def replaced(layer: SparseModule, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The recorded keys and values [B, H * W, D] of a layer with those of the active pixels
    [B, n, D] put in."""
    site = layer.site
    keys, values = site.tensor("key", k), site.tensor("value", v)
    active = site.state.active_by_area(PIXELS, keys.shape[1], k.device)
    site.update(active, key=k, value=v)
    return (
        site.ops.scatter(keys, active, k, in_place=site.own_masks),
        site.ops.scatter(values, active, v, in_place=site.own_masks),
    )


class FastTextAttention(SparseModule, CrossAttention):
    """Cross-attention that projects the text once for as long as the same text tensor comes."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, N, query_dim], context [B, M, context_dim] -> [B, N, query_dim], in any mode."""
        k, v = self.site.once(context, lambda: (self.to_k(context), self.to_v(context)))
        return self.to_out(attend(self.to_q(x), k, v, self.heads))
