"""The layers that look further than one pixel, on rows of active pixels (preset `fast`).

Everything that works pixel by pixel (1x1 convolutions, linear layers, activations, sums) runs
unchanged on the rows of the active pixels, handed on as a map [B, C, n, 1]. Only these layers look
further: 3x3 convolutions read neighbours, group norms the statistics of the whole map, attention
the keys and values of all pixels. Each records what of the unedited picture it will read (as SIGE
does for its blocks, Li et al., 2022, section 3). In dense mode each is the layer of the library.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sgm.sparse.backends.torch_ref import PLAIN
from sgm.sparse.mask_sets import AnyGeometry, SparseStateError
from sgm.sparse.masks import Resolution
from sgm.sparse.matmul import linear
from sgm.sparse.network import Site, SparseModule
from sgm.sparse.norm import Moments, RecordedRows, moments_of
from sgm.sparse.pixels import DOUBLED, DOWN, DOWN_END, PIXELS, SAME, PixelGeometry, PixelSet
from sgm.sparse.recording import Recorded, size_of, widened

# The first convolution of a network, which reads a whole map.
ENTRY = PixelGeometry(3, padding=1, padding_end=1, short=False)


def as_rows(x: Tensor) -> Tensor:
    """A map [B, C, H, W] as rows [B, H * W, C]; no copy if it is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1])


def as_map(rows: Tensor, size: Resolution) -> Tensor:
    """Rows [B, H * W, C] as a channels-last map [B, C, H, W], without a copy."""
    return rows.view(rows.shape[0], *size, rows.shape[2]).permute(0, 3, 1, 2)


def rows_as_map(rows: Tensor) -> Tensor:
    """Rows [B, n, C] as a map [B, C, n, 1], without a copy."""
    return as_map(rows, (rows.shape[1], 1))


def pixel_set(site: Site, geometry: PixelGeometry, size: Resolution, x: Tensor) -> PixelSet:
    """The active set of a convolution that reads a short map, for an input map of `size`."""
    active = site.state.active(geometry, size, x.device)
    assert isinstance(active, PixelSet)
    return active


def cut_around(
    site: Site, geometry: PixelGeometry, values: dict[str, Recorded]
) -> dict[str, Recorded]:
    """`size` and, of the recorded `rows` [B, P, C], those around the active ones."""
    rows, size = widened(values["rows"]), size_of(values)
    assert isinstance(rows, Tensor)
    around = rows.index_select(1, pixel_set(site, geometry, size, rows).around)
    return {"size": size, "around": around}


class SparseGroupNorm(SparseModule, nn.GroupNorm):
    """A group norm of a map of which only the active pixels have changed.

    The statistics are those of the whole map as it is now: the recorded ones, with what the active
    pixels added replaced. The published engine keeps the statistics of the unedited map.
    """

    geometries: Sequence[AnyGeometry] = (PIXELS,)

    def _record(self, x: Tensor) -> Tensor:
        self.site.put(size=(x.shape[2], x.shape[3]), rows=as_rows(x), moments=moments_of(x))
        return self._dense(x)

    def cut(self, values: dict[str, Recorded]) -> dict[str, Recorded]:
        """The values with the active rows alone, [B, n, C]."""
        rows = widened(values["rows"])
        assert isinstance(rows, Tensor)
        active = self.site.state.active(PIXELS, size_of(values), rows.device)
        return {**values, "rows": self.site.ops.gather(rows, active, PLAIN)}

    def _sparse(self, x: Tensor) -> Tensor:
        return rows_as_map(self.normed(as_rows(x)))

    def normed(self, rows: Tensor, *, silu: bool = False) -> Tensor:
        """The rows [B, n, C] of the active pixels through the norm, and SiLU; behind them, where
        the norm records such, the rows around them: [B, n + m, C]."""
        site, size = self.site, self.site.size(rows)
        active = site.state.active(PIXELS, size, rows.device)
        site.fill(active, rows)
        moments, old = site.get("moments", rows, Moments), site.tensor("rows", rows)
        recorded = RecordedRows(
            moments, size[0] * size[1], old, self._around(rows), not site.mask_specific
        )
        out = site.ops.group_norm(rows, active, recorded, self, silu=silu)
        if site.state.updates:
            before = site.ops.gather(old, active, PLAIN)
            now = moments.replaced(before, rows, recorded.pixels, active.inside)
            site.update(active, rows=rows)
            site.put(moments=now)
        return out

    def _around(self, rows: Tensor) -> Tensor | None:
        """Which recorded rows follow the active ones, as `RecordedRows` has them."""
        return None


class SparseConvNorm(SparseGroupNorm):
    """The group norm before a 3x3 convolution, which also reads pixels around the active ones.

    So those are normed too, as they were recorded and with the statistics of now, and handed on
    behind the active rows: a short map (see `sgm.sparse.pixels`).
    """

    geometries = (PIXELS, SAME)

    def cut(self, values: dict[str, Recorded]) -> dict[str, Recorded]:
        """The values with the active rows, and those around them as `around` [B, m, C]."""
        return {**super().cut(values), **cut_around(self.site, SAME, values)}

    def _around(self, rows: Tensor) -> Tensor:
        site = self.site
        if site.mask_specific:
            return site.tensor("around", rows)
        return pixel_set(site, SAME, site.size(rows), rows).around


class ShortConv2d(SparseModule, nn.Conv2d):
    """A convolution from a short map, which the layer before made, to active rows."""

    geometry = SAME

    def _record(self, x: Tensor) -> Tensor:
        # The owner may have enlarged the map, or padded it: this is the size before.
        more, scale = self.geometry.padding_end - self.padding[0], self.geometry.scale
        self.site.put(size=((x.shape[2] - more) // scale, (x.shape[3] - more) // scale))
        return self._dense(x)

    @property
    def geometries(self) -> Sequence[AnyGeometry]:
        return (self.geometry,)

    def _sparse(self, x: Tensor) -> Tensor:
        return rows_as_map(self.product(as_rows(x)))

    def product(
        self, rows: Tensor, *, embedding: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """The active rows [B, n, C_out] of a short map's rows [B, n + m, C], with an embedding
        [B, C_out] and a residual [B, n, C_out] added."""
        active = pixel_set(self.site, self.geometry, self.site.size(rows), rows)
        terms = {"embedding": embedding, "residual": residual}
        return self.site.ops.conv(rows, active, self.weight, self.bias, **terms)


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

    geometries = (ENTRY,)

    def _record(self, x: Tensor) -> Tensor:
        self.site.put(size=(x.shape[2], x.shape[3]))
        return self._dense(x)

    def _sparse(self, x: Tensor) -> Tensor:
        active = self.site.active(ENTRY, x)
        return rows_as_map(self.site.ops.conv(as_rows(x), active, self.weight, self.bias))


class ExitConv2d(ShortConv2d):
    """The last convolution: from a short map to the recorded map with the active rows put in."""

    def _record(self, x: Tensor) -> Tensor:
        out = super()._record(x)
        self.site.put(out=out)
        return out

    def _sparse(self, x: Tensor) -> Tensor:
        base, size = self.site.tensor("out", x), self.site.size(x)
        active = pixel_set(self.site, self.geometry, size, x)
        arguments = (as_rows(x), active, self.weight, self.bias, PLAIN, as_rows(base))
        out = as_map(self.site.ops.conv_scatter(*arguments), size)
        if self.site.state.updates:
            self.site.put(out=out)
        return out


class ShortMap(SparseModule):
    """Mix-in of a block that resamples a map and then runs one convolution.

    In full passes it is the library's block; in a sparse one it hands its convolution a short map
    of its own input, which is never resampled.

    Attributes:
        geometry: of the convolution and of what comes before it.
        conv_name: which attribute of the block the convolution is.
    """

    geometry: PixelGeometry
    conv_name = "conv"

    @property
    def geometries(self) -> Sequence[AnyGeometry]:
        return (PIXELS, self.geometry)

    def _record(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        self.site.put(size=(x.shape[2], x.shape[3]), rows=as_rows(x))
        return self._dense(x, *rest, **named)

    def cut(self, values: dict[str, Recorded]) -> dict[str, Recorded]:
        """`size`, and the rows around the active ones as `around` [B, m, C]."""
        return cut_around(self.site, self.geometry, values)

    def _sparse(self, x: Tensor) -> Tensor:
        site, rows = self.site, as_rows(x)
        size = site.size(rows)
        active = site.state.active(PIXELS, size, rows.device)
        site.fill(active, rows)
        if site.mask_specific:
            around = site.tensor("around", rows)
        else:
            pixels = pixel_set(site, self.geometry, size, rows).around
            around = site.tensor("rows", rows).index_select(1, pixels)
        short = rows_as_map(torch.cat([rows, around], dim=1))
        site.update(active, rows=rows)
        return getattr(self, self.conv_name)(short)


class FewRowsLinear(SparseModule, nn.Linear):
    """A linear layer; few rows are multiplied from the right on a CPU."""

    def _sparse(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class SparseConv1x1(SparseModule, nn.Conv2d):
    """A 1x1 convolution, as a matrix product on rows."""

    def _sparse(self, x: Tensor) -> Tensor:
        return rows_as_map(linear(as_rows(x), self.weight.flatten(1), self.bias))


def update_kv_cache(layer: SparseModule, kv: Tensor) -> Tensor:
    """Keys and values of all pixels side by side, [B, H * W, 2 * D], for self-attention: in a
    recording pass those given, which are recorded; in a sparse pass the recorded ones with those
    of the active pixels [B, n, 2 * D] put in."""
    site = layer.site
    if site.state.records:
        site.put(kv=kv.contiguous())
        return kv
    recorded = site.tensor("kv", kv)
    active = site.state.active_by_area(PIXELS, recorded.shape[1], kv.device)
    site.update(active, kv=kv)
    return site.ops.scatter(recorded, active, kv, in_place=site.mask_specific)


def side_by_side(layers: Sequence[nn.Module]) -> tuple[Tensor, Tensor | None] | None:
    """Weight [sum of N, C] and bias [sum of N] of linear layers as those of one, without a copy.
    None where `lay_side_by_side` did not put them one behind the other in memory, or an adapter
    wraps one."""
    if any(type(layer) is not FewRowsLinear for layer in layers):
        return None
    weight = _joined([layer.weight for layer in layers])
    if weight is None or layers[0].bias is None:
        return None if weight is None else (weight, None)
    bias = _joined([layer.bias for layer in layers])
    return None if bias is None else (weight, bias)


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    """Contiguous tensors that lie one behind the other as one, joined in their first dimension."""
    first, start = parts[0], parts[0].storage_offset()
    for part in parts:
        same = part.untyped_storage()._cdata == first.untyped_storage()._cdata
        if not same or part.storage_offset() != start or not part.is_contiguous():
            return None
        start += part.numel()
    return first.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())


def lay_side_by_side(layers: Sequence[nn.Module]) -> None:
    """Put weights and biases of linear layers one behind the other in memory, so that one product
    can make the outputs of all. Parameters keep their names and values. On a CUDA device only: on
    a CPU the weights may be those of the file, mapped, and would have to be copied."""
    alone = all(type(layer) is FewRowsLinear for layer in layers)
    if not alone or not layers[0].weight.is_cuda or side_by_side(layers) is not None:
        return
    for name in ("weight", "bias"):
        parts = [getattr(layer, name) for layer in layers]
        if parts[0] is not None:
            whole = torch.cat([part.detach() for part in parts]).split([len(p) for p in parts])
            for layer, old, new in zip(layers, parts, whole, strict=True):
                setattr(layer, name, nn.Parameter(new, old.requires_grad))


class TextAttention(SparseModule):
    """Mix-in of cross-attention to a text: in sparse passes its keys and values are those that
    `Sparse.set_text` projected, or else are projected anew in every pass."""

    def project_text(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, T, D] of text tokens [B, T, C]."""
        return self.to_k(context), self.to_v(context)

    def text_keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values to attend to, [B, T, D], for a context [B, T, C]; SparseStateError if
        the text that was set has another batch or length."""
        found = self.site.state.text.get(self.site.name)
        if found is None:
            return self.project_text(context)
        if found[0].shape[:2] != context.shape[:2]:
            raise SparseStateError(
                f"The text that was set has {tuple(found[0].shape[:2])} tokens (batch, length) and "
                f"this pass comes with {tuple(context.shape[:2])}; call set_text with its text."
            )
        return found
