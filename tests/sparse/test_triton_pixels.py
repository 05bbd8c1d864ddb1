"""The Triton kernels of preset `fast` against torch: norms, endings of convolutions, gated layers.

On a GPU where there is one, else in Triton's interpreter; as tests/sparse/test_triton.py says.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.sparse.active import ActiveSet
from sgm.sparse.backends.torch_ref import PLAIN, TorchOps
from sgm.sparse.norm import RecordedRows, moments_of
from sgm.sparse.pixels import PIXELS, PixelGeometry, PixelSet
from tests.conftest import max_error

pytest.importorskip("triton", reason="triton is not installed (it has no build for this system)")

from sgm.sparse.backends.triton_ops import TritonOps  # needs triton
from sgm.sparse.backends.triton_tiles import MAX_PARTS, PART_ROWS, cdiv

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TORCH, TRITON = TorchOps(), TritonOps()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values on the device under test, the same on all devices."""
    return torch.randn(shape).to(DEVICE, dtype)


def allowed(plain: Tensor, exact: Tensor) -> float:
    """Twice torch's own error, and two steps of the dtype: the interpreter cuts digits off."""
    return 2 * max_error(plain, exact) + 2 * torch.finfo(plain.dtype).eps * float(exact.abs().max())


def sets_of(size: tuple[int, int], share: float = 0.3) -> tuple[ActiveSet, PixelSet]:
    """The active pixels of a map, and the convolution's set on it."""
    mask = torch.rand(size) < share
    mask[0, 0] = mask[-1, -1] = True
    masks = {size: mask.to(DEVICE)}
    conv = PixelGeometry(3, padding=1, padding_end=1).active_set(masks, size)
    assert isinstance(conv, PixelSet)
    return PIXELS.active_set(masks, size), conv


class NormCase:
    """A map [B, P, C] of which the active pixels changed to `rows` [B, n, C]."""

    def __init__(
        self,
        size: tuple[int, int],
        groups: int,
        channels: int,
        dtype: torch.dtype,
        padded: bool = False,
    ) -> None:
        active, conv = sets_of(size)
        self.active, conv = (active.pad(), conv.pad()) if padded else (active, conv)
        self.around = conv.around
        self.norm = nn.GroupNorm(groups, channels, eps=1e-3).to(DEVICE, dtype).requires_grad_(False)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        wide = 3 + draw(2, size[0] * size[1], channels + 5, dtype=dtype)
        self.x = wide[:, :, 2 : channels + 2]  # with others between the rows
        self.rows = 2 * draw(2, self.active.count, channels + 1, dtype=dtype)[:, :, :channels]

    def recorded(self, whole: bool, short: bool) -> RecordedRows:
        """For any masks, or for these alone; with the rows around, or without."""
        moments = moments_of(self.x.transpose(1, 2)[..., None])
        pixels, around = self.x.shape[1], self.around if short else None
        if whole:
            return RecordedRows(moments, pixels, self.x, around, whole=True)
        rows = TORCH.gather(self.x, self.active, PLAIN)
        return RecordedRows(moments, pixels, rows, self.x[:, self.around] if short else None)

    def exact(self, short: bool, silu: bool) -> Tensor:
        """By the definition, in float64: the norm of the whole map with the new rows put in."""
        pixels, positions = self.active.written
        counted = self.rows if positions is None else self.rows[:, positions]
        whole = self.x.double().index_copy(1, pixels, counted.double())
        grouped = whole.unflatten(2, (self.norm.num_groups, -1))
        mean = grouped.mean(dim=(1, 3))[:, None, :, None]
        variance = grouped.var(dim=(1, 3), correction=0)[:, None, :, None]
        rows = torch.cat([self.rows, self.x[:, self.around if short else []]], dim=1).double()
        rows = (rows.unflatten(2, grouped.shape[2:]) - mean) / (variance + self.norm.eps).sqrt()
        out = rows.flatten(2) * self.norm.weight.double() + self.norm.bias.double()
        return F.silu(out) if silu else out

    def check(self, whole: bool, short: bool, silu: bool) -> None:
        recorded = self.recorded(whole, short)
        exact = self.exact(short, silu)
        arguments = (self.rows, self.active, recorded, self.norm)
        plain, out = (ops.group_norm(*arguments, silu=silu) for ops in (TORCH, TRITON))
        assert out.dtype == self.rows.dtype and out.is_contiguous()
        # The reference itself, by its rounding: the statistics are sums in float32.
        assert max_error(plain, exact) <= 4 * torch.finfo(plain.dtype).eps * float(
            exact.abs().max()
        )
        assert max_error(out, exact) <= allowed(plain, exact)


@dtypes
@pytest.mark.parametrize("whole", [False, True], ids=["own masks", "any masks"])
def test_group_norm_of_a_changed_map(whole: bool, dtype: torch.dtype) -> None:
    case = NormCase((7, 9), 4, 20, dtype)
    case.check(whole, short=True, silu=True)
    case.check(whole, short=False, silu=False)


@pytest.mark.parametrize("whole", [False, True], ids=["own masks", "any masks"])
def test_padded_rows_do_not_count_in_a_group_norm(whole: bool) -> None:
    case = NormCase((7, 9), 2, 12, torch.float32, padded=True)
    assert case.active.inside is not None  # some rows are padding
    case.check(whole, short=True, silu=True)


@pytest.mark.parametrize(
    ("groups", "channels"),
    [(1, 3), (3, 3), (32, 320), (5, 640), (2, 20)],
    ids=["one group", "a channel a group", "many groups", "wide groups", "few groups"],
)
def test_group_norms_of_all_widths(groups: int, channels: int) -> None:
    NormCase((4, 5), groups, channels, torch.float32).check(False, short=True, silu=False)


@pytest.mark.parametrize("size", [(25, 30), (40, 50)], ids=["one step a part", "two"])
def test_a_group_norm_in_parts(size: tuple[int, int]) -> None:
    """Enough active pixels for several parts, the last of them short or empty."""
    case = NormCase(size, 2, 6, torch.float32)
    steps = cdiv(case.active.count, PART_ROWS)
    assert steps > 2 and (steps > MAX_PARTS) == (size == (40, 50))
    case.check(True, short=True, silu=True)


@dtypes
@pytest.mark.parametrize("channels", [1, 24, 65])
def test_layer_norm_of_a_sum(channels: int, dtype: torch.dtype) -> None:
    norm = nn.LayerNorm(channels, eps=1e-3).to(DEVICE, dtype).requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, added = draw(2, 5, channels, dtype=dtype), draw(2, 5, channels + 2, dtype=dtype)
    added = added[:, :, 1:-1]
    plain, (total, out) = TORCH.layer_norm(x, added, norm), TRITON.layer_norm(x, added, norm)
    step = torch.finfo(dtype).eps * float(plain[0].abs().max())  # the interpreter cuts digits off
    assert max_error(total, plain[0]) <= step
    exact = F.layer_norm(
        total.double(), (channels,), norm.weight.double(), norm.bias.double(), norm.eps
    )
    assert max_error(out, exact) <= allowed(norm(total), exact)


@dtypes
@pytest.mark.parametrize(
    ("rows", "channels", "wide"), [(1, 3, 5), (33, 40, 24), (50, 130, 129)], ids=str
)
def test_a_gated_layer(rows: int, channels: int, wide: int, dtype: torch.dtype) -> None:
    x = draw(2, rows, channels + 1, dtype=dtype)[:, :, 1:]
    weight, bias = (
        draw(2 * wide, channels, dtype=dtype) / channels**0.5,
        draw(2 * wide, dtype=dtype),
    )
    plain, out = TORCH.gated(x, weight, bias), TRITON.gated(x, weight, bias)
    value, gate = F.linear(x.double(), weight.double(), bias.double()).chunk(2, dim=-1)
    exact = value * F.gelu(gate)
    assert out.shape == (2, rows, wide) and out.dtype == dtype
    assert max_error(out, exact) <= allowed(plain, exact)


@dtypes
@pytest.mark.parametrize("split", [1, 3, 5])
def test_a_convolution_adds_embedding_and_residual(split: int, dtype: torch.dtype) -> None:
    _, active = sets_of((6, 7))
    x = draw(2, active.in_size[0], 17, dtype=dtype)
    weight = (draw(6, 17, 3, 3, dtype=dtype) / 12).to(memory_format=torch.channels_last)
    bias, embedding = draw(6, dtype=dtype), draw(2, 9, dtype=dtype)[:, 3:]
    residual = draw(2, active.count, 8, dtype=dtype)[:, :, 1:-1]

    def conv(ops: TorchOps | TritonOps, dtype: torch.dtype) -> Tensor:
        moved = (t.to(dtype) for t in (x, weight, bias, embedding, residual))
        x_, weight_, bias_, embedding_, residual_ = moved
        return ops.conv(x_, active, weight_, bias_, embedding=embedding_, residual=residual_)

    exact, plain = conv(TORCH, torch.float64), conv(TORCH, dtype)
    out = conv(TritonOps(split), dtype)
    assert out.dtype == dtype and max_error(out, exact) <= allowed(plain, exact)


def test_nothing_to_do_is_done() -> None:
    active = sets_of((3, 4))[0]
    empty = ActiveSet((3, 4), (3, 4), active.outputs[:0], active.inputs[:0])
    rows, norm = draw(2, 0, 4), nn.GroupNorm(2, 4).to(DEVICE)
    recorded = RecordedRows(moments_of(draw(2, 4, 3, 4)), 12, rows)
    assert TRITON.group_norm(rows, empty, recorded, norm).shape == (2, 0, 4)
    assert TRITON.gated(rows, draw(6, 4), draw(6)).shape == (2, 0, 3)
    total, out = TRITON.layer_norm(rows, rows, nn.LayerNorm(4).to(DEVICE))
    assert total.shape == out.shape == (2, 0, 4)
