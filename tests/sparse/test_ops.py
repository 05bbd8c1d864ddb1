"""The sparse operators against the golden operators of the published engine, and at odd sizes.

The published engine keeps blocks: gather cuts windows out, scatter puts blocks back. Ours keeps
rows, so a window here is a list of pixel numbers, and blocks are reshaped to rows and back.

Three golden groups have no counterpart. `scatter_map` is a lookup table of the published kernels;
our neighbour table (tests/sparse/test_masks.py) takes its place. Cache ids keep several recordings
in one network; here a recording belongs to a state, so the passes under an id are compared with a
recording of their own. `sparse_update` writes a sparse result into the recording; ours is never
changed by a sparse pass, so the passes after it was switched on are left out.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.sparse.active import (
    CONV1X1,
    CONV3X3,
    OUTSIDE,
    UNET_DOWN,
    VAE_DOWN,
    ActiveSet,
    Geometry,
    active_blocks,
    block_active_set,
)
from sgm.sparse.backends.torch_ref import Prologue, TorchOps
from sgm.sparse.layers import as_map, as_rows
from sgm.sparse.network import Site
from sgm.sparse.norm import Affine
from sgm.sparse.rules.published import SIGEResnetBlock
from sgm.sparse.state import SparseState
from tests.conftest import Golden, max_error, rule_weights

ARITHMETIC = 1e-5  # golden README: operators with arithmetic, absolute; without it, exact
OPS = TorchOps()
KINDS = {"3x3": CONV3X3, "1x1": CONV1X1, "3x3_s2_p0": VAE_DOWN, "3x3_s2_p1": UNET_DOWN}
Load = Callable[[str], Golden]


@pytest.fixture
def ops(golden: Load) -> Golden:
    return golden("ops")


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uninitialised floating-point memory holds NaN, so that reading it cannot pass a test."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned_make(*arguments: object, **options: object) -> Tensor:
            made = make(*arguments, **options)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        return poisoned_make

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
    assert torch.empty(3).isnan().all()
    yield


def mask_of(data: Golden, name: str) -> Tensor:
    """bool [H, W] of a golden mask, stored as bytes or as bits."""
    height, width = data.info["H"], data.info["W"]
    if data[f"mask/{name}"].numel() == height * width:
        return data[f"mask/{name}"].view(height, width).bool()
    return data.mask(f"mask/{name}", height, width)


def thinned(result: Tensor, channels: int) -> Tensor:
    """Of 32 channels the golden results hold every fourth, of 8 all."""
    return result[:, ::4] if channels == 32 else result


def windows(mask: Tensor, geometry: Geometry) -> ActiveSet:
    """The input windows of all active blocks as an active set of single pixels."""
    height, width = mask.shape
    corners = active_blocks(mask, geometry)  # [N, 2]
    side = torch.arange(geometry.in_block)
    rows = corners[:, 0, None, None] + side[:, None]  # [N, b, 1]
    columns = corners[:, 1, None, None] + side  # [N, 1, b]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    pixels = torch.where(inside, rows * width + columns, OUTSIDE).flatten()
    return ActiveSet((height, width), (height, width), pixels, pixels[:, None])


def to_blocks(rows: Tensor, side: int) -> Tensor:
    """Rows [B, N * side * side, C] as blocks [B * N, C, side, side]."""
    return rows.reshape(-1, side, side, rows.shape[2]).permute(0, 3, 1, 2)


def from_blocks(blocks: Tensor, batch: int) -> Tensor:
    """Blocks [B * N, C, side, side] as rows [B, N * side * side, C]."""
    return blocks.permute(0, 2, 3, 1).reshape(batch, -1, blocks.shape[1])


def gathered(data: Golden, channels: int, variant: str) -> tuple[Tensor, Prologue]:
    """The map and the prologue of a golden gather variant, as far as X decides them."""
    x, base = data[f"base/c{channels}/X"], f"base/c{channels}"
    if variant == "swish_first_scale_shift":  # not in our contract: activate the map beforehand
        x, variant = F.silu(x), "identity_scale_shift"
    activation, _, rest = variant.partition("_")
    if not rest:
        return x, Prologue(silu=activation == "swish")
    suffix = "_c" if rest == "scale_c_shift_c" else ""
    scale, shift = (data[f"{base}/{name}{suffix}"][:, :, 0, 0] for name in ("scale", "shift"))
    affine = {
        "scale_shift": Affine(scale, shift),
        "scale_c_shift_c": Affine(scale, shift),
        "scale_only": Affine(scale, torch.zeros_like(shift)),
        "shift_only": Affine(torch.ones_like(scale), shift),
    }[rest]
    return x, Prologue(affine, silu=activation == "swish")


def test_active_blocks_and_gathers_equal_the_reference(ops: Golden) -> None:
    cases = 0
    for key in ops.keys("gather/"):
        _, kind, mask_name, *rest = key.split("/")
        geometry, mask = KINDS[kind], mask_of(ops, mask_name)
        if rest == ["active"]:
            assert torch.equal(active_blocks(mask, geometry), ops[key].long()), key
            continue
        channels, variant = int(rest[0][1:]), rest[1]
        x, prologue = gathered(ops, channels, variant)
        rows = OPS.gather(as_rows(x), windows(mask, geometry), prologue)
        blocks = thinned(to_blocks(rows, geometry.in_block), channels)
        tolerance = 0 if variant == "identity" else ARITHMETIC
        assert max_error(blocks, ops[key]) <= tolerance, key
        cases += 1
    assert cases >= 12


def test_scatters_equal_the_reference(ops: Golden) -> None:
    cases = 0
    for key in ops.keys("scatter/"):
        _, kind, mask_name, width, variant = key.split("/")
        if variant == "blocks":
            continue
        channels = int(width[1:])
        active = block_active_set(mask_of(ops, mask_name), KINDS[kind])
        height, columns = active.out_size
        base = ops[f"base/c{channels}/Y"][:, :, :height, :columns]
        residual = None
        if variant == "out_residual_X":
            residual = as_rows(ops[f"base/c{channels}/X"])
        elif variant == "out_residual_shift_c":
            residual = as_rows(ops[f"base/c{channels}/shift_c"].expand_as(base))
        rows = from_blocks(ops[f"scatter/{kind}/{mask_name}/{width}/blocks"], len(base))
        out = as_map(OPS.scatter(as_rows(base), active, rows, residual), active.out_size)
        tolerance = ARITHMETIC if residual is not None else 0
        assert max_error(thinned(out, channels), ops[key]) <= tolerance, key
        cases += 1
    assert cases >= 4


def test_scatter_then_gather_equals_the_fused_reference(ops: Golden) -> None:
    """Blocks that read their neighbours' new values: a scatter, then a gather of the whole."""
    cases = 0
    for key in ops.keys("scatter_gather/"):
        _, mask_name, width, *rest = key.split("/")
        if not rest or rest[0] == "blocks":
            continue
        channels, mask = int(width[1:]), mask_of(ops, mask_name)
        _, prologue = gathered(ops, channels, rest[0])
        base = ops[f"base/c{channels}/Y"]
        rows = from_blocks(ops[f"scatter_gather/{mask_name}/{width}/blocks"], len(base))
        full = OPS.scatter(as_rows(base), block_active_set(mask, CONV3X3), rows)
        out = to_blocks(OPS.gather(full, windows(mask, CONV3X3), prologue), CONV3X3.in_block)
        tolerance = 0 if rest[0] == "identity" else ARITHMETIC
        assert max_error(thinned(out, channels), ops[key]) <= tolerance, key
        cases += 1
    assert cases >= 4


def test_block_residuals_equal_the_reference(ops: Golden) -> None:
    cases = 0
    for key in ops.keys("block_residual/"):
        if not key.endswith("/out"):
            continue
        folder = key.rsplit("/", 1)[0]
        _, mask_name, width = folder.split("/")
        channels, mask = int(width[1:]), mask_of(ops, mask_name)
        x, y = ops[f"base/c{channels}/X"], ops[f"base/c{channels}/Y"]
        main = from_blocks(ops[f"{folder}/main_blocks"], len(x))
        short = from_blocks(ops[f"{folder}/shortcut_blocks"], len(x))
        shortcut = OPS.scatter(as_rows(y), block_active_set(mask, CONV1X1), short)
        wide = block_active_set(mask, CONV3X3)
        out = as_map(OPS.scatter(as_rows(x + y), wide, main, shortcut), wide.out_size)
        assert max_error(thinned(out, channels), ops[key]) < ARITHMETIC, key
        cases += 1
    assert cases >= 1


def conv_in_full(x: Tensor, weights: dict[str, Tensor], geometry: Geometry) -> Tensor:
    """The dense convolution whose active outputs `ops.conv` computes."""
    before, after = geometry.padding, geometry.padding_end
    padded = F.pad(x, (before, after, before, after))
    return F.conv2d(padded, weights["weight"], weights["bias"], geometry.stride)


def conv_at(
    base: Tensor, x: Tensor, mask: Tensor, weights: dict[str, Tensor], geometry: Geometry
) -> Tensor:
    """Gather, convolve, scatter into `base`."""
    active = block_active_set(mask, geometry)
    rows = OPS.conv(as_rows(x), active, weights["weight"], weights["bias"], Prologue())
    return as_map(OPS.scatter(as_rows(base), active, rows), active.out_size)


def drawn(shapes: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    """Weights of a golden convolution, without the leading `conv.`."""
    return {name.rsplit(".", 1)[1]: t for name, t in rule_weights(shapes, seed).items()}


CHAINS = {"c8_1x1": 12, "c32_3x3": 32, "c8_3x3": 8, "c8_3x3_s2_p0": 8, "c8_3x3_s2_p1": 8}


@pytest.mark.parametrize(("name", "out_channels"), CHAINS.items(), ids=CHAINS)
def test_chains_equal_the_reference(ops: Golden, name: str, out_channels: int) -> None:
    width, kind = name.split("_", 1)
    channels, geometry = int(width[1:]), KINDS[kind]
    shape = [out_channels, channels, geometry.kernel, geometry.kernel]
    seed = ops.info["weights_seeds"][f"chain/{name}"]
    weights = drawn({"conv.bias": [out_channels], "conv.weight": shape}, seed)
    mask, y = mask_of(ops, "edge"), ops[f"base/c{channels}/Y"]
    x = torch.where(mask, ops[f"base/c{channels}/X"], y)
    out = conv_at(conv_in_full(y, weights, geometry), x, mask, weights, geometry)
    assert max_error(thinned(out, out_channels), ops[f"chain/{name}/sparse"]) < ARITHMETIC


def edits(ops: Golden) -> dict[str, Tensor]:
    """The maps of the golden cache and pair cases."""
    x, y, z, r = (ops[f"base/c8/{name}"] for name in "XYZR")
    edge, blob = mask_of(ops, "edge"), mask_of(ops, "blob")
    first = torch.where(edge, x, y)
    return {
        "xa": y,
        "xb": r,
        "xa1": first,
        "xa2": torch.where(blob, z, first),
        "xb1": torch.where(blob, x, r),
    }


@pytest.mark.parametrize(
    ("key", "recorded", "edited", "mask"),
    [
        ("cache/1_id0_xa1_edge", "xa", "xa1", "edge"),
        ("cache/2_id0_xa2_blob", "xa", "xa2", "blob"),
        ("cache/3_id1_xb1_blob", "xb", "xb1", "blob"),
    ],
)
def test_passes_from_their_own_recording_equal_the_reference(
    ops: Golden, key: str, recorded: str, edited: str, mask: str
) -> None:
    maps, seed = edits(ops), ops.info["weights_seeds"]["cache"]
    weights = drawn({"conv.bias": [8], "conv.weight": [8, 8, 3, 3]}, seed)
    base = conv_in_full(maps[recorded], weights, CONV3X3)
    out = conv_at(base, maps[edited], mask_of(ops, mask), weights, CONV3X3)
    assert max_error(out, ops[key]) < ARITHMETIC


@pytest.mark.parametrize(
    ("key", "edited", "mask"),
    [("pair/1_xa1_edge", "xa1", "edge"), ("pair/2_xa2_blob", "xa2", "blob")],
)
def test_residual_pairs_equal_the_reference(ops: Golden, key: str, edited: str, mask: str) -> None:
    """The block itself, with norms that change nothing."""
    maps = edits(ops)
    weights = rule_weights(ops.info["pair_state_dict"], ops.info["weights_seeds"]["pair"])
    block = SIGEResnetBlock(8, 8, 1)  # whose norms are never called in a sparse pass
    block.nin_shortcut = nn.Conv2d(8, 8, 1)
    weights = {name.replace("short", "nin_shortcut"): value for name, value in weights.items()}
    found = block.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys and all("norm" in name for name in found.missing_keys)
    state = SparseState(OPS)
    site = block.site = Site(state, "pair")
    neutral = Affine(torch.ones(2, 8), torch.zeros(2, 8))
    with torch.inference_mode():
        hidden = block.conv1(F.silu(maps["xa"]))
        shortcut = block.nin_shortcut(maps["xa"])
        out = block.conv2(F.silu(hidden)) + shortcut
        site.put(first=neutral, second=neutral, hidden=hidden, shortcut=shortcut, out=out)
        where = mask_of(ops, mask)
        with state.sparse({(where.shape[0], where.shape[1]): where}):
            result = block(maps[edited])
    assert max_error(result, ops[key]) < ARITHMETIC


def random_mask(size: tuple[int, int], share: float, generator: torch.Generator) -> Tensor:
    """A share of the pixels, at least one."""
    mask = torch.rand(size, generator=generator) < share
    mask[size[0] // 2, size[1] // 2] = True
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize(
    "size", [(5, 7), (9, 16), (33, 31)], ids=["under-one-block", "blocks-stick-out", "odd"]
)
@pytest.mark.parametrize("geometry", KINDS.values(), ids=KINDS)
@pytest.mark.usefixtures("poisoned")
def test_conv_equals_the_dense_convolution_at_odd_sizes(
    geometry: Geometry, size: tuple[int, int], channels: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(size[0] * channels)
    x = torch.randn(2, channels, *size, generator=generator).to(dtype)
    shape = (6, channels, geometry.kernel, geometry.kernel)
    weight = torch.randn(shape, generator=generator) / (channels * geometry.kernel**2) ** 0.5
    weights = {"weight": weight.to(dtype), "bias": torch.randn(6, generator=generator).to(dtype)}

    def dense(kind: torch.dtype) -> Tensor:
        return conv_in_full(x.to(kind), {k: t.to(kind) for k, t in weights.items()}, geometry)

    exact = dense(torch.float64)
    # Never worse than twice torch's own error at this dtype; sums in another order round anew.
    allowed = 2 * max_error(dense(dtype), exact) + 8 * torch.finfo(dtype).eps
    for share in (0.02, 0.3, 1.0):
        active = block_active_set(random_mask(size, share, generator), geometry)
        assert active.out_size == tuple(exact.shape[2:])
        rows = OPS.conv(as_rows(x), active, weights["weight"], weights["bias"], Prologue())
        assert rows.dtype == dtype and rows.shape == (2, active.count, 6)
        assert rows.isfinite().all()  # outputs that stick out are computed, never left unset
        out = OPS.scatter(as_rows(torch.zeros_like(exact).to(dtype)), active, rows)
        pixels, _ = active.written
        expected = as_rows(exact).index_select(1, pixels)
        assert max_error(out.index_select(1, pixels), expected) <= allowed
        others = torch.ones(out.shape[1], dtype=torch.bool).index_fill(0, pixels, False)
        assert not out[:, others].any()


@pytest.mark.usefixtures("poisoned")
def test_a_convolution_in_several_parts_equals_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(1, 3, 33, 31), torch.randn(4, 3, 3, 3)
    active = block_active_set(torch.ones(33, 31, dtype=torch.bool), CONV3X3)
    whole = OPS.conv(as_rows(x), active, weight, None, Prologue(silu=True))
    monkeypatch.setattr("sgm.sparse.backends.torch_ref.PATCH_BYTES", 5000)
    parts = OPS.conv(as_rows(x), active, weight, None, Prologue(silu=True))
    assert max_error(whole, parts) < ARITHMETIC


def test_scatter_leaves_its_base_alone() -> None:
    base = torch.randn(1, 35, 2)
    before = base.clone()
    active = block_active_set(torch.ones(5, 7, dtype=torch.bool), CONV1X1)
    out = OPS.scatter(base, active, torch.zeros(1, active.count, 2))
    assert torch.equal(base, before) and not out.any()
