"""The Triton kernels against torch: on a GPU where there is one, else in Triton's interpreter.

The interpreter stores bfloat16 by cutting digits off where a GPU rounds, so that a stored value
may be off by a whole step; the tolerances below allow one.
"""

import pytest
import torch
from torch import Tensor

from sgm.sparse.active import (
    CONV1X1,
    CONV3X3,
    OUTSIDE,
    UNET_DOWN,
    VAE_DOWN,
    ActiveSet,
    Geometry,
    block_active_set,
)
from sgm.sparse.backends.torch_ref import PLAIN, Prologue, TorchOps
from sgm.sparse.network import Site
from sgm.sparse.norm import Affine
from sgm.sparse.ops import BACKENDS, select_ops
from sgm.sparse.pixels import PixelGeometry
from sgm.sparse.rules.published import SIGEResnetBlock
from sgm.sparse.state import SparseState
from tests.conftest import max_error

pytest.importorskip("triton", reason="triton is not installed (it has no build for this system)")

import triton

from sgm.sparse.backends import triton_tiles  # needs triton
from sgm.sparse.backends.triton_ops import TritonOps

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TORCH = TorchOps()
KINDS = {"3x3": CONV3X3, "1x1": CONV1X1, "unet_down": UNET_DOWN, "vae_down": VAE_DOWN}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WHOLE, SPLIT = TritonOps(split=1), TritonOps(split=3)  # the product of a convolution
# Both ways in float32, and one of them in each half precision.
PATHS = {
    torch.float32: (WHOLE, SPLIT),
    torch.bfloat16: (WHOLE,),
    torch.float16: (SPLIT,),
}


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values on the device under test, the same on all devices."""
    return torch.randn(shape).to(DEVICE, dtype)


def mask_of(*size: int, share: float = 0.1) -> Tensor:
    """A share of the pixels, among them the last one, whose block sticks out."""
    mask = torch.rand(size) < share
    mask[-1, -1] = True
    return mask.to(DEVICE)


def prologue_of(batch: int, channels: int, silu: bool = True) -> Prologue:
    return Prologue(Affine(draw(batch, channels), draw(batch, channels)), silu)


def widened(prologue: Prologue) -> Prologue:
    """In float64, for reference results."""
    if prologue.affine is None:
        return prologue
    scale, shift = prologue.affine.scale.double(), prologue.affine.shift.double()
    return Prologue(Affine(scale, shift), prologue.silu)


class Case:
    """A convolution with everything around it."""

    def __init__(
        self,
        active: ActiveSet,
        kernel: int,
        batch: int,
        channels: tuple[int, int],
        dtype: torch.dtype,
        prologue: Prologue | None = None,
    ) -> None:
        wide, narrow = channels
        self.active, self.dtype = active, dtype
        self.x = draw(batch, active.in_size[0] * active.in_size[1], wide, dtype=dtype)
        weight = draw(narrow, wide, kernel, kernel, dtype=dtype) / (wide * kernel**2) ** 0.5
        self.weight = weight.to(memory_format=torch.channels_last)
        self.bias = draw(narrow, dtype=dtype)
        self.prologue = prologue_of(batch, wide) if prologue is None else prologue
        pixels = active.out_size[0] * active.out_size[1]
        self.base = draw(batch, pixels, narrow, dtype=dtype)
        # Rows with others between them, as a slice of a wider map has.
        self.residual = draw(batch, pixels, narrow + 3, dtype=dtype)[:, :, :narrow]

    def conv(self, ops: TorchOps, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        prologue = widened(self.prologue) if dtype == torch.float64 else self.prologue
        tensors = (t.to(dtype) for t in (self.x, self.weight, self.bias))
        x, weight, bias = tensors
        return ops.conv(x, self.active, weight, bias, prologue)

    def check(self, *backends: TorchOps) -> None:
        """Never worse than twice torch's error, and a step of the dtype for each rounding."""
        exact = self.conv(TORCH, torch.float64)
        step = torch.finfo(self.dtype).eps * float(exact.abs().max())
        allowed = 2 * max_error(self.conv(TORCH), exact) + 2 * step
        for ops in backends:
            rows = self.conv(ops)
            assert rows.dtype == self.dtype
            assert max_error(rows, exact) <= allowed

    def check_scatter(self, *backends: TorchOps) -> None:
        arguments = (self.active, self.weight, self.bias, self.prologue)
        pixels, positions = self.active.written
        exact = self.conv(TORCH, torch.float64)
        exact = exact if positions is None else exact[:, positions]
        exact = exact + self.residual.double()[:, pixels]
        expected = self.base.double().index_copy(1, pixels, exact)
        plain = TORCH.conv_scatter(self.x, *arguments, self.base, self.residual)
        allowed = 2 * max_error(plain, expected)
        allowed += 2 * torch.finfo(self.dtype).eps * float(expected.abs().max())
        for ops in backends:
            before = self.base.clone()
            out = ops.conv_scatter(self.x, *arguments, self.base, self.residual)
            assert torch.equal(self.base, before) and out.data_ptr() != self.base.data_ptr()
            assert max_error(out, expected) <= allowed
            others = torch.ones(out.shape[1], dtype=torch.bool, device=DEVICE)
            others[pixels] = False
            assert torch.equal(out[:, others], before[:, others])
            target = before.clone()
            same = ops.conv_scatter(self.x, *arguments, target, self.residual, in_place=True)
            assert same is target and torch.equal(target, out)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("geometry", KINDS.values(), ids=KINDS)
def test_convolutions_at_odd_sizes_and_borders(geometry: Geometry, dtype: torch.dtype) -> None:
    active = block_active_set(mask_of(5, 9, share=0.05), geometry)
    assert (active.inputs == OUTSIDE).any() or geometry is CONV1X1  # padding is read
    assert (active.outputs == OUTSIDE).any()  # blocks stick out
    Case(active, geometry.kernel, 2, (17, 5), dtype).check(*PATHS[dtype])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("geometry", KINDS.values(), ids=KINDS)
def test_a_convolution_writes_where_its_rows_belong(geometry: Geometry, dtype: torch.dtype) -> None:
    active = block_active_set(mask_of(6, 5, share=0.0), geometry)
    Case(active, geometry.kernel, 2, (4, 35), dtype).check_scatter(*PATHS[dtype][-1:])


@pytest.mark.parametrize("channels", [(4, 320), (320, 33)], ids=str)
def test_convolutions_of_many_channels(channels: tuple[int, int]) -> None:
    active = block_active_set(mask_of(5, 5, share=0.0), CONV3X3)
    case = Case(active, 3, 1, channels, torch.float32)
    case.check(WHOLE)
    case.check_scatter(SPLIT)


def test_a_pointwise_convolution_of_many_channels() -> None:
    active = block_active_set(mask_of(5, 5, share=0.0), CONV1X1)
    Case(active, 1, 2, (1280, 40), torch.bfloat16, prologue_of(2, 1280, False)).check(WHOLE)


@pytest.mark.parametrize(
    "prologue", [PLAIN, Prologue(silu=True), None], ids=["none", "silu", "both"]
)
@pytest.mark.parametrize("scale", [1, 2], ids=["same", "doubled"])
def test_convolutions_of_single_pixels(scale: int, prologue: Prologue | None) -> None:
    """Sets of preset `fast`, whose input is a short map, as they are and padded."""
    geometry = PixelGeometry(3, padding=1, padding_end=1, scale=scale)
    masks = {(6, 7): mask_of(6, 7), (6 * scale, 7 * scale): mask_of(6 * scale, 7 * scale)}
    active = geometry.active_set(masks, (6, 7))
    Case(active, 3, 1, (17, 6), torch.float32, prologue).check(WHOLE, SPLIT)
    Case(active.pad(), 3, 2, (17, 6), torch.float32, prologue).check_scatter(WHOLE)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
def test_gather_and_scatter_of_rows(padded: bool, dtype: torch.dtype) -> None:
    active = block_active_set(mask_of(5, 9), CONV1X1)
    active = active.pad() if padded else active
    wide = draw(2, 45, 140, dtype=dtype)
    x, residual = wide[:, :, 5:138], wide[:, :, :133]  # rows with others between them
    assert torch.equal(WHOLE.gather(x, active, PLAIN), TORCH.gather(x, active, PLAIN))
    prologue = prologue_of(2, 133)
    exact = TORCH.gather(x.double(), active, widened(prologue))
    step = 2 * torch.finfo(dtype).eps * float(exact.abs().max())
    assert max_error(WHOLE.gather(x, active, prologue), exact) <= step
    base, rows = draw(2, 45, 133, dtype=dtype), draw(2, active.count, 133, dtype=dtype)
    before = base.clone()
    assert torch.equal(WHOLE.scatter(base, active, rows), TORCH.scatter(base, active, rows))
    assert torch.equal(base, before)
    out = WHOLE.scatter(base, active, rows, residual, in_place=True)
    assert out is base
    step = torch.finfo(dtype).eps * float(out.abs().max())
    assert max_error(out, TORCH.scatter(before, active, rows, residual)) <= step


def test_nothing_to_do_is_done() -> None:
    empty = torch.empty(0, dtype=torch.int64, device=DEVICE)
    active = ActiveSet((3, 4), (3, 4), empty, empty.view(0, 9))
    x, weight = draw(2, 12, 4), draw(6, 4, 3, 3)
    assert WHOLE.gather(x, active, PLAIN).shape == (2, 0, 4)
    assert WHOLE.conv(x, active, weight, None, PLAIN).shape == (2, 0, 6)
    base = draw(2, 12, 6)
    assert torch.equal(WHOLE.conv_scatter(x, active, weight, None, PLAIN, base), base)


def test_what_the_kernels_cannot_do_is_refused() -> None:
    active = block_active_set(mask_of(3, 4), CONV1X1)
    with pytest.raises(TypeError, match="float64"):
        WHOLE.gather(draw(1, 12, 4).double(), active, PLAIN)


def test_a_map_with_gaps_is_written_into_a_copy() -> None:
    active = block_active_set(mask_of(3, 4), CONV1X1)
    base, rows = draw(1, 12, 8)[:, :, :4], draw(1, active.count, 4)
    before = base.clone()
    out = WHOLE.scatter(base, active, rows, in_place=True)
    assert torch.equal(out, TORCH.scatter(before, active, rows))
    assert torch.equal(base, before)


def test_the_parts_of_a_product_fill_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tiles, "multiprocessors", lambda device: 132)
    # 300 outputs, 1280 -> 1280 channels: 30 tiles, so four parts and 120 programs.
    assert triton_tiles.product_parts(DEVICE, 300, 1280, 1280, 9) == 4
    assert triton_tiles.product_parts(DEVICE, 2740, 320, 320, 9) == 1  # 129 small tiles
    assert triton_tiles.product_parts(DEVICE, 64, 64, 64, 9) == 1  # nine steps are not worth it


def test_a_residual_block_runs_on_either_backend() -> None:
    """The engine's own block, with a shortcut, on both backends."""
    block = SIGEResnetBlock(8, 12, 1).to(DEVICE)
    first, second = prologue_of(2, 8).affine, prologue_of(2, 12).affine
    maps = {name: draw(2, 12, 6, 10) for name in ("hidden", "shortcut", "out")}
    x, mask = draw(2, 8, 6, 10), mask_of(6, 10)
    results = []
    for ops in (TORCH, select_ops("triton", DEVICE)):
        state = SparseState(ops)
        site = block.site = Site(state, "block")
        site.put(first=first, second=second, **maps)
        with torch.inference_mode(), state.sparse({(6, 10): mask}):
            results.append(block(x))
    assert max_error(*results) < 1e-5


def test_an_older_triton_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    found = BACKENDS["triton"].obstacle
    assert found(DEVICE) is None
    monkeypatch.setattr(triton, "__version__", "3.4.1+cu128")
    assert found(DEVICE) == "triton 3.4.1+cu128 is older than 3.5"
    monkeypatch.setattr(triton, "__version__", "3.10.0")
    assert found(DEVICE) is None
