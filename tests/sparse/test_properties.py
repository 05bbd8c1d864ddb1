"""What holds for every mask, size and kind of block: random ones, drawn by hypothesis.

The networks' properties (with whole tiny networks) are at the end, with fewer examples.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sgm.inference.networks import Networks, recording, sparse
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
from sgm.sparse.layers import as_rows
from sgm.sparse.masks import dilate, downsample_mask, inpainting_pyramid
from sgm.sparse.norm import Affine
from sgm.sparse.ops import BACKENDS
from tests.conftest import max_error
from tests.inference.test_edits import (
    check_untouched,
    drawn_on,
    networks_of,
    picture,
    unet_inputs,
)

SCALE = max(1, settings().max_examples // 100)
PUBLISHED = (CONV3X3, CONV1X1, UNET_DOWN, VAE_DOWN)
# Published blocks, and others of the same kinds of convolution.
GEOMETRIES = st.sampled_from(PUBLISHED) | st.builds(
    Geometry,
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    padding_end=st.integers(0, 2),
    out_block=st.integers(1, 6),
)
SEEDS = st.integers(0, 2**32 - 1)


def scattered(size: tuple[int, int], share: float, seed: int) -> Tensor:
    """A share of the pixels, at least one."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(size, generator=generator) < share
    mask.view(-1)[torch.randint(mask.numel(), (1,), generator=generator)] = True
    return mask


def box(size: tuple[int, int], seed: int, hollow: bool) -> Tensor:
    """A rectangle of at least one pixel, anywhere, or only its frame."""
    generator = torch.Generator().manual_seed(seed)
    ends = [torch.randint(length, (2,), generator=generator).sort().values for length in size]
    (top, bottom), (left, right) = (end.tolist() for end in ends)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top : bottom + 1, left : right + 1] = True
    if hollow:
        mask[top + 1 : bottom, left + 1 : right] = False
    return mask


@st.composite
def masks(draw: st.DrawFn, low: int = 5, high: int = 40) -> Tensor:
    """bool [H, W], not empty: scattered pixels, a rectangle or a frame."""
    size = (draw(st.integers(low, high)), draw(st.integers(low, high)))
    if draw(st.booleans()):
        return scattered(size, draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0])), draw(SEEDS))
    return box(size, draw(SEEDS), draw(st.booleans()))


def reads(active: ActiveSet, mask: Tensor) -> Tensor:
    """bool [n]: which outputs of an active set read a True pixel."""
    flat = torch.cat([mask.flatten(), torch.zeros(1, dtype=torch.bool)])  # last: outside
    return flat[active.inputs].any(dim=1)


@given(masks(), GEOMETRIES)
@settings(max_examples=150 * SCALE)
def test_every_output_that_reads_the_mask_is_active(mask: Tensor, g: Geometry) -> None:
    padded = F.pad(mask.float(), (g.padding, g.padding_end, g.padding, g.padding_end))
    changed = F.max_pool2d(padded[None, None], g.kernel, g.stride)[0, 0] > 0  # by other means
    active = block_active_set(mask, g)
    assert active.out_size == tuple(changed.shape)
    chosen = torch.zeros(changed.numel(), dtype=torch.bool)
    chosen[active.outputs[active.outputs != OUTSIDE]] = True
    assert not (changed.flatten() & ~chosen).any()
    assert int((active.outputs != OUTSIDE).sum()) == int(chosen.sum())  # none is there twice


@given(masks(), GEOMETRIES)
@settings(max_examples=100 * SCALE)
def test_no_block_is_active_for_nothing(mask: Tensor, g: Geometry) -> None:
    corners = active_blocks(mask, g)
    assert len(corners) or g.stride > g.kernel or g.padding + g.padding_end < 2
    margin = g.in_block + g.padding
    around = F.pad(mask, (margin, margin, margin, margin))
    for row, column in (corners + margin).tolist():
        assert around[row : row + g.in_block, column : column + g.in_block].any()


@given(masks(), st.sampled_from(PUBLISHED))
@settings(max_examples=60 * SCALE)
def test_the_mask_itself_is_covered(mask: Tensor, g: Geometry) -> None:
    active = block_active_set(mask, g)
    read = active.inputs[active.inputs != OUTSIDE].unique()
    assert set(mask.flatten().nonzero()[:, 0].tolist()) <= set(read.tolist())
    assert reads(active, mask).any()


@given(masks(low=8, high=80), st.integers(0, 3))
@settings(max_examples=60 * SCALE)
def test_no_level_of_a_pyramid_loses_the_mask_or_floods(mask: Tensor, dilation: int) -> None:
    levels = downsample_mask(mask, dilation)
    sizes = list(levels)
    assert sizes[0] == tuple(mask.shape) and min(sizes[-1]) == 1
    assert torch.equal(levels[sizes[0]], dilate(mask, dilation))
    assert all(level.any() for level in levels.values())
    one = torch.zeros_like(mask)
    one[mask.nonzero()[0, 0], mask.nonzero()[0, 1]] = True
    for (height, width), level in downsample_mask(one, 0).items():
        # Bilinear halving spreads a pixel over two at most along each axis.
        assert level.sum() <= 4, (height, width)


def layer(g: Geometry, seed: int) -> tuple[Tensor, Tensor, Prologue]:
    """Weight [5, 4, k, k], bias and prologue of a random layer, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    affine = Affine(draw(2, 4), draw(2, 4)) if seed % 3 else None
    return draw(5, 4, g.kernel, g.kernel), draw(5), Prologue(affine, silu=seed % 2 == 1)


def in_full(x: Tensor, g: Geometry, seed: int) -> Tensor:
    """The same layer everywhere [2, 5, H', W'], by torch's own convolution."""
    weight, bias, prologue = layer(g, seed)
    if prologue.affine is not None:
        x = x * prologue.affine.scale[..., None, None] + prologue.affine.shift[..., None, None]
    if prologue.silu:
        x = F.silu(x)
    before, after = g.padding, g.padding_end
    return F.conv2d(F.pad(x, (before, after, before, after)), weight, bias, g.stride)


@given(masks(high=24), GEOMETRIES, SEEDS, st.booleans())
@settings(max_examples=80 * SCALE)
def test_a_sparse_layer_is_the_dense_one_inside_and_the_recording_outside(
    mask: Tensor, g: Geometry, seed: int, padded: bool
) -> None:
    if g.stride > 1 and g.kernel == 1:
        return  # a 1x1 convolution reads the map that it writes
    ops, active = TorchOps(), block_active_set(mask, g)
    if padded:
        active = active.pad()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, *mask.shape, generator=generator, dtype=torch.float64)
    dense = in_full(x, g, seed)
    if g.kernel == 1 and dense.shape[2:] != x.shape[2:]:
        return
    base = as_rows(torch.randn(dense.shape, generator=generator, dtype=torch.float64))
    weight, bias, prologue = layer(g, seed)
    residual = torch.randn(base.shape, generator=generator, dtype=torch.float64)
    out = ops.conv_scatter(as_rows(x), active, weight, bias, prologue, base, residual)
    inside = torch.zeros(base.shape[1], dtype=torch.bool)
    inside[active.outputs[active.outputs != OUTSIDE]] = True
    if inside.any():  # a stride can leave every output of a small mask outside
        assert max_error(out[:, inside], (as_rows(dense) + residual)[:, inside]) < 1e-11
    assert torch.equal(out[:, ~inside], base[:, ~inside])


def other_backends() -> list[str]:
    return [name for name in BACKENDS if name != "torch"]


def backend(name: str) -> tuple[TorchOps, torch.device]:
    """A backend on a device that it runs on; skips where this machine has none."""
    obstacles = {}
    for kind in ("cuda", "cpu"):
        if kind == "cuda" and not torch.cuda.is_available():
            continue
        obstacles[kind] = BACKENDS[name].obstacle(torch.device(kind))
        if obstacles[kind] is None:
            return BACKENDS[name].make(), torch.device(kind)
    pytest.skip(f"backend {name} does not run here: {obstacles}")


@pytest.mark.parametrize("name", other_backends())
def test_every_backend_equals_torch(name: str) -> None:
    ops, device = backend(name)

    @given(masks(high=24), st.sampled_from(PUBLISHED), SEEDS)
    @settings(max_examples=15 * SCALE)
    def check(mask: Tensor, g: Geometry, seed: int) -> None:
        active = block_active_set(mask, g)
        # Padded, as graphs want it; the published package knows whole blocks only.
        active = (active if name == "sige" else active.pad()).to(device)
        generator = torch.Generator().manual_seed(seed)
        # Channels in the multiples that networks have.
        x = torch.randn(2, mask.numel(), 32, generator=generator).to(device)
        weight = torch.randn(32, 32, g.kernel, g.kernel, generator=generator).to(device) / 16
        base = torch.randn(2, active.out_size[0] * active.out_size[1], 32, generator=generator)
        found, expected = (
            o.conv_scatter(x, active, weight, None, Prologue(), base.to(device))
            for o in (ops, TorchOps())
        )
        assert max_error(found, expected) < 1e-4

    check()


# --- whole networks ----------------------------------------------------------------------------

SIDES = st.sampled_from([64, 128])


@pytest.fixture(scope="module")
def tiny() -> Networks:
    return networks_of("sige")


@st.composite
def edits(draw: st.DrawFn) -> Tensor:
    """bool [H, W] of a picture's size, not empty and not full."""
    size = (draw(SIDES), draw(SIDES))
    mask = box(size, draw(SEEDS), draw(st.booleans()))
    if draw(st.booleans()):
        mask = scattered(size, draw(st.sampled_from([0.0, 0.0005])), draw(SEEDS))
    mask[0, 0] = not mask.all() and mask[0, 0]
    return mask


@pytest.mark.parametrize("name", ["unet", "encoder", "decoder"])
def test_what_is_not_active_is_the_recording_bit_for_bit(tiny: Networks, name: str) -> None:
    @given(edits())
    @settings(max_examples=3 * SCALE)
    @torch.inference_mode()
    def check(mask: Tensor) -> None:
        size, levels = tuple(mask.shape), inpainting_pyramid(mask)
        latents, *rest = unet_inputs(size)
        if name == "encoder":
            inputs = (picture(size)[None], drawn_on(picture(size), mask)[None])
        else:
            latents = latents if name == "unet" else latents[:1]
            inside = levels[size[0] // 8, size[1] // 8]
            inputs = (latents, torch.where(inside, torch.randn_like(latents), latents))
        arguments = tuple(rest) if name == "unet" else ()
        network = getattr(tiny, name)
        check_untouched(network, levels, lambda edited: network(inputs[edited], *arguments))

    check()


@pytest.mark.parametrize("name", ["unet", "encoder", "decoder"])
def test_an_edit_that_changes_nothing_gives_the_dense_result(tiny: Networks, name: str) -> None:
    @given(edits())
    @settings(max_examples=3 * SCALE)
    @torch.inference_mode()
    def check(mask: Tensor) -> None:
        size, levels = tuple(mask.shape), inpainting_pyramid(mask)
        latents, *rest = unet_inputs(size)
        network = getattr(tiny, name)
        x = {"unet": latents, "encoder": picture(size)[None], "decoder": latents[:1]}[name]
        arguments = tuple(rest) if name == "unet" else ()
        dense = network(x, *arguments)
        with recording(network):
            network(x, *arguments)
        with sparse(network, levels):
            assert max_error(network(x, *arguments), dense) < 1e-4

    check()
