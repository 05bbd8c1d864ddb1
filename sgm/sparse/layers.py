"""The layers that look further than one pixel, on rows of active pixels (preset `fast`).

Everything that works pixel by pixel (1x1 convolutions, linear layers, activations, sums) runs
unchanged on the rows of the active pixels, handed on as a map [B, C, n, 1]. Only these layers look
further: 3x3 convolutions read neighbours, group norms the statistics of the whole map, attention
the keys and values of all pixels. Each records what of the unedited picture it will read (as SIGE
does for its blocks, Li et al., 2022, section 3). In dense mode each is the layer of the library.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sgm.sparse.masks import Resolution
from sgm.sparse.matmul import linear
from sgm.sparse.modules import PLAIN, as_map, as_rows, conv_rows
from sgm.sparse.network import Site, SparseModule
from sgm.sparse.norm import Moments, moments_of
from sgm.sparse.pixels import PIXELS, PixelGeometry, PixelSet
from sgm.sparse.recording import Recorded, widened

# 3x3 convolutions that read a short map: of the same size; of stride 2, padded on every side; of
# stride 2, padded at the end; of a map doubled by nearest neighbours.
SAME = PixelGeometry(3, padding=1, padding_end=1)
DOWN = PixelGeometry(3, 2, padding=1, padding_end=1)
DOWN_END = PixelGeometry(3, 2, padding_end=1)
DOUBLED = PixelGeometry(3, padding=1, padding_end=1, scale=2)
# The first convolution of a network, which reads a whole map.
ENTRY = PixelGeometry(3, padding=1, padding_end=1, short=False)


def rows_as_map(rows: Tensor) -> Tensor:
    """Rows [B, n, C] as a map [B, C, n, 1], without a copy."""
    return as_map(rows, (rows.shape[1], 1))


def pixel_set(site: Site, geometry: PixelGeometry, size: Resolution, x: Tensor) -> PixelSet:
    """The active set of a convolution that reads a short map, for an input map of `size`."""
    active = site.state.active(geometry, size, x.device)
    assert isinstance(active, PixelSet)
    return active


def rows_around(site: Site, geometry: PixelGeometry, x: Tensor) -> Tensor:
    """The recorded rows [B, m, C] that a convolution reads around the active ones x."""
    if site.mask_specific:
        return site.tensor("around", x)
    around = pixel_set(site, geometry, site.size(x), x).around
    return site.tensor("rows", x).index_select(1, around)


def cut_around(
    site: Site, geometry: PixelGeometry, values: dict[str, Recorded]
) -> dict[str, Recorded]:
    """`size` and, of the recorded `rows` [B, P, C], those around the active ones."""
    rows, size = widened(values["rows"]), values["size"]
    assert isinstance(rows, Tensor) and isinstance(size, tuple)
    around = rows.index_select(1, pixel_set(site, geometry, size, rows).around)
    return {"size": size, "around": around}


class SparseGroupNorm(SparseModule, nn.GroupNorm):
    """A group norm of a map of which only the active pixels have changed.

    The statistics are those of the whole map as it is now: the recorded ones, with what the active
    pixels added replaced. The published engine keeps the statistics of the unedited map.
    """

    def _record(self, x: Tensor) -> Tensor:
        self.site.put(size=(x.shape[2], x.shape[3]), rows=as_rows(x), moments=moments_of(x))
        return self._dense(x)

    def cut(self, values: dict[str, Recorded]) -> dict[str, Recorded]:
        """Only the active rows."""
        rows, size = widened(values["rows"]), values["size"]
        assert isinstance(rows, Tensor) and isinstance(size, tuple)
        active = self.site.state.active(PIXELS, size, rows.device)
        return {**values, "rows": self.site.ops.gather(rows, active, PLAIN)}

    def _sparse(self, x: Tensor) -> Tensor:
        return self._moments(x).affine(self)(x).to(x.dtype)

    def _moments(self, x: Tensor) -> Moments:
        """The moments of the whole map, of which x holds the active rows."""
        site, size = self.site, self.site.size(x)
        old, active = site.tensor("rows", x), site.state.active(PIXELS, size, x.device)
        if not site.mask_specific:
            old = site.ops.gather(old, active, PLAIN)
        recorded, pixels = site.moments("moments", x), size[0] * size[1]
        moments = recorded.replaced(old, as_rows(x), pixels, active.inside)
        if site.state.updates:
            site.update(active, rows=as_rows(x))
            site.put(moments=moments)
        return moments


class SparseConvNorm(SparseGroupNorm):
    """The group norm before a 3x3 convolution, which also reads pixels around the active ones.

    So those are normed too, as they were recorded and with the statistics of now, and handed on
    behind the active rows: a short map (see `sgm.sparse.pixels`).
    """

    def cut(self, values: dict[str, Recorded]) -> dict[str, Recorded]:
        """The active rows, and those around them."""
        return {**super().cut(values), **cut_around(self.site, SAME, values)}

    def _sparse(self, x: Tensor) -> Tensor:
        around = rows_around(self.site, SAME, x)
        short = rows_as_map(torch.cat([as_rows(x), around], dim=1))
        return self._moments(x).affine(self)(short).to(x.dtype)


class ShortConv2d(SparseModule, nn.Conv2d):
    """A convolution from a short map, which the layer before made, to active rows."""

    geometry = SAME

    def _record(self, x: Tensor) -> Tensor:
        # The owner may have enlarged the map, or padded it: this is the size before.
        more, scale = self.geometry.padding_end - self.padding[0], self.geometry.scale
        self.site.put(size=((x.shape[2] - more) // scale, (x.shape[3] - more) // scale))
        return self._dense(x)

    def _sparse(self, x: Tensor) -> Tensor:
        active = pixel_set(self.site, self.geometry, self.site.size(x), x)
        return rows_as_map(conv_rows(self.site, x, active, self))


class DownConv2d(ShortConv2d):
    """The convolution of a halving, padded on every side."""

    geometry = DOWN


class EndPaddedDownConv2d(ShortConv2d):
    """The convolution of a halving whose owner pads the map at the bottom and at the right."""

    geometry = DOWN_END


class DoubledConv2d(ShortConv2d):
    """The convolution of a doubling whose owner doubles the map; sparsely, it never is."""

    geometry = DOUBLED


class EntryConv2d(SparseModule, nn.Conv2d):
    """The first convolution of a network: from a whole map to active rows."""

    def _sparse(self, x: Tensor) -> Tensor:
        return rows_as_map(conv_rows(self.site, x, self.site.active(ENTRY, x), self))


class ExitConv2d(ShortConv2d):
    """The last convolution: from a short map to the recorded map with the active rows put in."""

    def _record(self, x: Tensor) -> Tensor:
        out = super()._record(x)
        self.site.put(out=out)
        return out

    def _sparse(self, x: Tensor) -> Tensor:
        rows = as_rows(super()._sparse(x))
        base, size = self.site.tensor("out", x), self.site.size(x)
        active = pixel_set(self.site, self.geometry, size, x)
        out = as_map(self.site.ops.scatter(as_rows(base), active, rows), size)
        if self.site.state.updates:
            self.site.put(out=out)
        return out


class ShortMap(SparseModule):
    """Mix-in of a block that resamples a map and then runs one convolution.

    In full passes it is the library's block; in a sparse one it hands its convolution a short map
    of its own input, which is never resampled.
    """

    def short_conv(self) -> nn.Module:
        """The convolution."""
        raise NotImplementedError

    def geometry(self) -> PixelGeometry:
        """Of the convolution and of what comes before it."""
        raise NotImplementedError

    def _record(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        self.site.put(size=(x.shape[2], x.shape[3]), rows=as_rows(x))
        return self._dense(x, *rest, **named)

    def cut(self, values: dict[str, Recorded]) -> dict[str, Recorded]:
        """The rows around the active ones."""
        return cut_around(self.site, self.geometry(), values)

    def _sparse(self, x: Tensor) -> Tensor:
        site, around = self.site, rows_around(self.site, self.geometry(), x)
        short = rows_as_map(torch.cat([as_rows(x), around], dim=1))
        if site.state.updates:
            active = site.state.active(PIXELS, site.size(x), x.device)
            site.update(active, rows=as_rows(x))
        return self.short_conv()(short)


class FewRowsLinear(SparseModule, nn.Linear):
    """A linear layer; few rows are multiplied from the right on a CPU."""

    def _sparse(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def update_kv_cache(layer: SparseModule, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of all pixels [B, H * W, D] for self-attention: in a recording pass those
    given, which are recorded; in a sparse pass the recorded ones with those of the active pixels
    [B, n, D] put in."""
    site = layer.site
    if site.state.records:
        site.put(key=k, value=v)
        return k, v
    keys, values = site.tensor("key", k), site.tensor("value", v)
    active = site.state.active_by_area(PIXELS, keys.shape[1], k.device)
    site.update(active, key=k, value=v)
    return (
        site.ops.scatter(keys, active, k, in_place=site.mask_specific),
        site.ops.scatter(values, active, v, in_place=site.mask_specific),
    )


class TextAttention(SparseModule):
    """Mix-in of cross-attention to a text: in sparse passes its keys and values are those that
    `Sparse.set_text` projected, or else are projected anew in every pass."""

    def project_text(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, T, D] of text tokens [B, T, C]."""
        raise NotImplementedError

    def text_keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values to attend to; SparseStateError if the text that was set has another
        shape than the context."""
        return self.site.state.text_of(self.site.name, context) or self.project_text(context)
