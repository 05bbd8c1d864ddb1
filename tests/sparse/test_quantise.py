"""Recordings in fewer bytes: how far off the maps are, who reads them, what it saves."""

import pytest
import torch
from torch import Tensor

from sgm.inference.networks import Networks, recording
from sgm.io.checkpoint import build_model
from sgm.sparse.masks import downsample_mask
from sgm.sparse.recording import Quantised, quantise
from sgm.sparse.rules.sgm import FAST
from sgm.sparse.sparsify import handle_of
from tests.conftest import ROOT
from tests.inference.test_edits import networks_of, rectangle, unet_inputs

SMALL = [torch.int8, torch.bfloat16]
SIZE = (64, 128)


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    """[2, 37, 5], every channel of another size; one is 0."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([1e-6, 0.3, 1.0, 1e4, 0.0])
    return (torch.randn(2, 37, 5, generator=generator) * scale).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_off_by_half_a_step_of_the_channel(dtype: torch.dtype) -> None:
    x = rows(dtype)
    small = quantise(x, torch.int8)
    assert isinstance(small, Quantised) and small.codes.dtype is torch.int8
    wide = small.widen()
    assert wide.dtype is dtype and wide.shape == x.shape
    step = x.double().abs().amax(dim=1, keepdim=True) / 127
    # The scale is rounded to the map's dtype, and so is every product.
    unit = torch.finfo(dtype).eps
    assert ((wide.double() - x.double()).abs() <= step * (0.5 + 127 * unit)).all()
    assert wide[..., 4].eq(0).all()


def test_bfloat16_is_off_by_its_rounding() -> None:
    x = rows()
    small = quantise(x, torch.bfloat16)
    assert isinstance(small, Quantised)
    assert torch.equal(small.widen(), x.bfloat16().float())
    assert quantise(x.bfloat16(), torch.bfloat16).equal(x.bfloat16())  # nothing to save


@pytest.mark.parametrize("dtype", SMALL)
def test_a_map_without_rows_stays(dtype: torch.dtype) -> None:
    """As that around a mask of everything is."""
    assert quantise(torch.empty(2, 0, 3), dtype).shape == (2, 0, 3)


def test_adding_is_widening() -> None:
    x, total = rows(), torch.ones(2, 37, 5)
    for dtype in SMALL:
        small = quantise(x, dtype)
        expected = total + 0.25 * small.widen()
        small.add_to(total, 0.25)
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("specific", [False, True])
@torch.inference_mode()
def test_a_sparse_pass_reads_a_small_recording(dtype: torch.dtype, specific: bool) -> None:
    """It equals the pass over the same recording widened by hand, and the recording stays small."""
    networks, inputs = networks_of("fast"), unet_inputs(SIZE)
    masks = downsample_mask(rectangle(SIZE), 1)
    handle = handle_of(networks.unet)
    with recording(networks.unet, masks if specific else None, dtype) as record:
        networks.unet(*inputs)
    kinds = {key for (_, key), value in record.values.items() if isinstance(value, Quantised)}
    assert {"rows", "kv"} <= kinds
    edited = (inputs[0] + 1, *inputs[1:])
    with handle.sparse(masks):
        found = networks.unet(*edited)
    for key, value in record.values.items():
        if isinstance(value, Quantised):
            record.values[key] = value.widen()
    with handle.sparse(masks):
        assert torch.equal(found, networks.unet(*edited))
    with recording(networks.unet, masks if specific else None):
        networks.unet(*inputs)
    with handle.sparse(masks):
        exact = networks.unet(*edited)
    error = (found - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < 0.02


def test_a_step_of_the_real_size_fits_in_400_mb() -> None:
    """SDXL base at 512x1024 in float32, counted without data."""
    networks = Networks(build_model(ROOT / "configs" / "original.yaml").eval(), FAST)
    shapes = ((2, 4, 64, 128), (2,), (2, 77, 2048), (2, 2816))
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    sizes = {}
    for dtype in (None, torch.bfloat16, torch.int8):
        with recording(networks.unet, dtype=dtype) as record:
            networks.unet(*inputs)
        sizes[dtype] = record.size_in_bytes()
    assert sizes[torch.int8] < 400e6
    assert sizes[None] == pytest.approx(4 * sizes[torch.int8], rel=0.02)
    assert sizes[None] == pytest.approx(2 * sizes[torch.bfloat16], rel=0.02)
