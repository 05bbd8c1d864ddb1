"""The Triton kernel of attention from few queries.

Flash attention of a library gives a program 64 or 128 queries, and where these are few it splits
the keys and needs a second launch to combine the parts. With all keys of a head in one program the
few programs are bound by how soon a step's keys arrive: tiles of keys are large, and loaded ahead.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("n", "keys", "heads", "size_class", "key_class"))
def attention_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    keys: tl.tensor,
    heads: tl.tensor,
    size_class: tl.tensor,
    key_class: tl.tensor,
    q_batch: tl.tensor,
    q_row: tl.tensor,
    k_batch: tl.tensor,
    k_row: tl.tensor,
    v_batch: tl.tensor,
    v_row: tl.tensor,
    scale: tl.tensor,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
) -> None:
    """softmax(q k^T / sqrt(WIDTH)) v, BM queries of a head a program; grid (tiles, heads, B).

    One pass over the keys, BN a step: sums are scaled down whenever a larger score is met (Dao et
    al., 2022). Scores, weights' sums and results are float32; weights are rounded to v's dtype.

    Args:
        q: [B, n, heads * WIDTH] with strides q_batch, q_row and 1.
        k, v: [B, keys, heads * WIDTH], at least one key, with strides alike.
        out: [B, n, heads * WIDTH], contiguous.
        size_class, key_class: n and keys rounded up, which with `heads` the choice of a tile goes
            by; not used here.
        scale: log2(e) / sqrt(WIDTH), since powers of two are what a card computes.
        PRECISION, WIDEN: as for the convolution.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    lane = head * WIDTH + tl.arange(0, WIDTH)
    column = tl.arange(0, BN)
    has_row = (row < n)[:, None]
    place = row.to(tl.int64)[:, None]
    query = tl.load(q + batch * q_batch + place * q_row + lane[None, :], mask=has_row, other=0.0)
    if WIDEN:
        query = query.to(tl.float32)
    first_key = k + batch * k_batch + lane[:, None]
    first_value = v + batch * v_batch + lane[None, :]
    largest = tl.full((BM,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BM,), dtype=tl.float32)
    sums = tl.zeros((BM, WIDTH), dtype=tl.float32)
    for start in range(0, keys, BN):
        key = (start + column).to(tl.int64)
        there = key < keys
        left = tl.load(first_key + key[None, :] * k_row, mask=there[None, :], other=0.0)
        right = tl.load(first_value + key[:, None] * v_row, mask=there[:, None], other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        scores = tl.dot(query, left, input_precision=PRECISION) * scale
        scores = tl.where(there[None, :], scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(weights, axis=1)
        sums = sums * shrink[:, None]
        sums = tl.dot(weights.to(right.dtype), right, sums, input_precision=PRECISION)
        largest = larger
    target = out + (batch * n + place) * (heads * WIDTH) + lane[None, :]
    tl.store(target, (sums / total[:, None]).to(out.dtype.element_ty), mask=has_row)
