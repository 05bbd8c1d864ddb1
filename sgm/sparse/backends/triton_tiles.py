"""How the Triton kernels are cut into programs: tiles to choose from, parts that fill a card."""

import functools

import torch
import triton

from sgm.sparse.backends import triton_attention, triton_conv, triton_gated
from sgm.sparse.backends.triton_compile import Kernel

INTERPRETED = triton.knobs.runtime.interpret

# Tiles of a product: rows, channels, depth of a step, warps, steps loaded ahead.
HALF_TILES = (
    (64, 64, 64, 4, 4),
    (64, 128, 64, 4, 4),
    (128, 64, 64, 4, 4),
    (128, 128, 64, 8, 4),
)
FLOAT_TILES = ((64, 64, 32, 4, 4), (64, 128, 32, 4, 3), (128, 64, 16, 8, 4))
# Of the gated product, which loads two matrices a step and keeps two tiles of sums. The narrow ones
# are for so few rows that weights are read once: two programs fit on a multiprocessor, so that all
# of a card's ask for weights.
HALF_GATED_TILES = (
    (64, 32, 64, 4, 6),
    (64, 32, 128, 4, 3),
    (64, 64, 64, 4, 4),
    (128, 64, 64, 8, 3),
    (128, 128, 64, 8, 3),
)
FLOAT_GATED_TILES = ((64, 64, 32, 8, 3), (64, 32, 32, 4, 3))
# Of attention: queries, keys, warps, steps loaded ahead; the widths of a head that it is for.
HALF_ATTENTION_TILES = ((16, 128, 4, 3), (32, 64, 2, 4), (64, 64, 4, 4), (64, 128, 4, 3))
FLOAT_ATTENTION_TILES = ((32, 32, 8, 2), (64, 32, 8, 2))
HEAD_WIDTHS = (16, 32, 64, 128)
# Programs of 64 queries a multiprocessor from which torch's flash attention is taken.
FLASH_ROWS, FLASH_PROGRAMS = 64, 2
# The tile that the number of parts is worked out for, and the steps that make a part worth it. The
# tile is large: every row of tiles reads all weights, and the second-level cache hands out a few
# terabytes a second only.
SPLIT_TILE, MIN_STEPS, MAX_SPLIT = (128, 128, 64), 8, 8
SMALL_TILE = (64, 128)
# Rows and channels of a tile that only moves rows; in half precision such a row is 256 bytes.
BLOCK_ROWS, BLOCK_CHANNELS = 16, 128
# Of the group norm's tiles, whose channels are whole groups; rows that a part of its sums adds up
# at once, and the most parts, which each of its programs reads.
NORM_ROWS, NORM_CHANNELS, PART_ROWS, MAX_PARTS = 16, 128, 32, 16


@functools.cache
def _tuned(
    kernel: triton.JITFunction, tiles: tuple[tuple[int, ...], ...], key: tuple[str, ...]
) -> triton.runtime.Autotuner:
    """A product kernel with a choice of tiles; timed once per value of the arguments named in
    `key`, and remembered on disk."""
    configs = [
        triton.Config(
            dict(zip(("BM", "BN", "BK"), sides, strict=False)), num_warps=warps, num_stages=stages
        )
        for *sides, warps, stages in tiles
    ]
    timer = functools.partial(triton.testing.do_bench, warmup=5, rep=20)
    return triton.autotune(configs, key=list(key), do_bench=timer, cache_results=True)(kernel)


def _interpreted_tile(channels: int, out_channels: int) -> dict[str, int]:
    """Large tiles: the interpreter's time goes by the number of its steps."""

    def side(length: int) -> int:
        return min(128, max(16, next_power_of_2(length)))

    return {"BM": 32, "BN": side(out_channels), "BK": side(channels)}


def conv_for(dtype: torch.dtype, channels: int, wide: int) -> tuple[Kernel, dict[str, int]]:
    """The convolution kernel, and what of its tile is not left to tuning."""
    if INTERPRETED:
        return triton_conv.conv_kernel, _interpreted_tile(channels, wide)
    key = ("size_class", "split", "TAPS", "C_IN", "C_OUT", "PRECISION")
    tiles = FLOAT_TILES if dtype == torch.float32 else HALF_TILES
    return _tuned(triton_conv.conv_kernel, tiles, key), {}


def gated_for(dtype: torch.dtype, channels: int, wide: int) -> tuple[Kernel, dict[str, int]]:
    """As `conv_for`, of the gated product."""
    if INTERPRETED:
        return triton_gated.gated_kernel, _interpreted_tile(channels, wide)
    tiles = FLOAT_GATED_TILES if dtype == torch.float32 else HALF_GATED_TILES
    key = ("size_class", "C_IN", "C_OUT", "PRECISION")
    return _tuned(triton_gated.gated_kernel, tiles, key), {}


def attention_for(dtype: torch.dtype) -> tuple[Kernel, dict[str, int]]:
    """As `conv_for`, of attention."""
    if INTERPRETED:
        return triton_attention.attention_kernel, {"BM": 32, "BN": 64}
    tiles = FLOAT_ATTENTION_TILES if dtype == torch.float32 else HALF_ATTENTION_TILES
    key = ("size_class", "key_class", "heads", "WIDTH", "PRECISION")
    return _tuned(triton_attention.attention_kernel, tiles, key), {}


def attends(device: torch.device, maps: int, queries: int, width: int) -> bool:
    """Whether our kernel is the one for `queries` of each of `maps` samples and heads."""
    programs = maps * cdiv(queries, FLASH_ROWS)
    return width in HEAD_WIDTHS and programs <= FLASH_PROGRAMS * multiprocessors(device)


def precision() -> str:
    """How float32 products are to be made."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; triton's own takes twenty times as long outside of kernels."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """n rounded up to a power of two; as for `cdiv`."""
    return 1 << max(0, n - 1).bit_length()


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Programs that a device runs side by side."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def product_parts(device: torch.device, rows: int, channels: int, wide: int, taps: int) -> int:
    """Parts of a product's long axis that fill the card about once; one where small tiles do."""
    fit = multiprocessors(device)
    if 2 * cdiv(rows, SMALL_TILE[0]) * cdiv(wide, SMALL_TILE[1]) > fit:
        return 1
    high, broad, depth = SPLIT_TILE
    tiles = cdiv(rows, high) * cdiv(wide, broad)
    steps = taps * cdiv(channels, depth)
    return max(1, min(MAX_SPLIT, fit // tiles, steps // MIN_STEPS))
