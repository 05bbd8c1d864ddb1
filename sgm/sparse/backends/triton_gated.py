"""The Triton kernel of a gated linear layer: both halves of the product, and the gate, in one."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=("rows", "size_class"))
def gated_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    size_class: tl.tensor,
    x_row: tl.tensor,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """out = value * gelu(gate), both products of x; a tile of BM rows by BN channels a program.

    Args:
        x: [rows, C_IN] with strides x_row and 1.
        weight, bias: [2 * C_OUT, C_IN], contiguous, and [2 * C_OUT]; the gate's half comes second.
        out: [rows, C_OUT], contiguous.
        size_class: rows rounded up, which the choice of a tile goes by; not used here.
        PRECISION, WIDEN: as for the convolution.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    channel = tl.program_id(1) * BN + tl.arange(0, BN)
    lane = tl.arange(0, BK)
    source = x + row.to(tl.int64)[:, None] * x_row + lane[None, :]
    matrix = weight + channel[None, :] * C_IN + lane[:, None]
    has_row, has_channel = (row < rows)[:, None], (channel < C_OUT)[None, :]
    # Loaded before they are needed, so that nothing waits for them at the end.
    inside = channel < C_OUT
    value_bias = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    gate_bias = tl.load(bias + C_OUT + channel, mask=inside, other=0.0).to(tl.float32)
    value = tl.zeros((BM, BN), dtype=tl.float32)
    gate = tl.zeros((BM, BN), dtype=tl.float32)
    for done in range(0, C_IN, BK):
        reads, within = has_row, has_channel
        if C_IN % BK != 0:
            reads = reads & (done + lane < C_IN)[None, :]
            within = within & (done + lane < C_IN)[:, None]
        left = tl.load(source + done, mask=reads, other=0.0)
        if C_IN % BK == 0 and C_OUT % BN == 0:
            right = tl.load(matrix + done)
            other = tl.load(matrix + C_OUT * C_IN + done)
        else:
            right = tl.load(matrix + done, mask=within, other=0.0)
            other = tl.load(matrix + C_OUT * C_IN + done, mask=within, other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
            other = other.to(tl.float32)
        value = tl.dot(left, right, value, input_precision=PRECISION)
        gate = tl.dot(left, other, gate, input_precision=PRECISION)
    value += value_bias[None, :]
    gate += gate_bias[None, :]
    value *= 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    target = out + row.to(tl.int64)[:, None] * C_OUT + channel[None, :]
    tl.store(target, value.to(out.dtype.element_ty), mask=has_row & has_channel)
