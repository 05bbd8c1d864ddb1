"""Edits with random tiny engines: what a sparse run must equal exactly, and what it must survive.

Sparse results only approximate dense ones (recorded norms, a dense middle), so nothing here
compares the two at large. What does hold is tested: with everything active and the norms recorded
on the same input the two agree; outside the active set the recording stands bit for bit; and no
edit leaves a trace in the next.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from sgm.inference.networks import Networks, recording, sparse
from sgm.inference.noise import NamedNoise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.io.checkpoint import build_model
from sgm.modules.diffusionmodules.sampling import Solver
from sgm.modules.diffusionmodules.schedules import published_steps
from sgm.sparse.active import CONV1X1, CONV3X3, UNET_DOWN, VAE_DOWN, Geometry, block_active_set
from sgm.sparse.masks import MaskPyramid, inpainting_pyramid
from sgm.sparse.network import SparseModule, SparseRoot
from sgm.sparse.rules import published
from sgm.sparse.rules.published import PUBLISHED
from sgm.sparse.rules.sgm import FAST
from sgm.sparse.sparsify import Table, handle_of, sparsify
from sgm.sparse.state import Mode
from sgm.words import Precision
from tests.conftest import ROOT, max_error, tiny_weights
from tests.edits_here import inpaint_with, sdedit_with

TOLERANCE = 1e-4  # golden README: UNet and VAE, absolute
SIZES = [(64, 64), (64, 128), (128, 192)]
STEPS = 3
PROMPT = "a photograph of a horse on a grassland"
# The active set that decides which outputs of a block are new.
GEOMETRIES: dict[type[SparseModule], Geometry] = {
    published.SIGEResBlock: CONV3X3,
    published.SIGEDownsample: UNET_DOWN,
    published.SIGESpatialTransformer: CONV1X1,
    published.SIGEResnetBlock: CONV3X3,
    published.SIGEEndPaddedDownsample: VAE_DOWN,
    published.SIGEUpsample: CONV3X3,
    published.SIGEAttnBlock: CONV1X1,
}
UPSAMPLES = (published.SIGEUpsample,)


# Configuration and sparse layers: dense, and of both presets.
KINDS: dict[str, tuple[str, Table | None]] = {
    "original": ("original", None),
    "sige": ("sige", PUBLISHED),
    "fast": ("original", FAST),
}


def networks_of(kind: str, dtype: torch.dtype = torch.float32) -> Networks:
    """A tiny engine with random weights, the same for every kind."""
    config, table = KINDS[kind]
    engine = build_model(ROOT / "configs" / f"tiny-{config}.yaml")
    shapes = {name: list(tensor.shape) for name, tensor in engine.state_dict().items()}
    weights = {name: tensor.to(dtype) for name, tensor in tiny_weights(shapes, seed=1).items()}
    engine.load_state_dict(weights, assign=True)
    return Networks(engine.eval().to(memory_format=torch.channels_last), table)


@pytest.fixture(scope="module")
def dense() -> Pipeline:
    return Pipeline(networks_of("original"), Precision.FP32, sparse=False)


@pytest.fixture(scope="module")
def sige() -> Pipeline:
    return Pipeline(networks_of("sige"), Precision.FP32, sparse=True)


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


def picture(size: tuple[int, int], seed: int = 0) -> Tensor:
    """A smooth random picture [3, H, W] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, size[0] // 16, size[1] // 16, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, size=size, mode="bilinear")[0]


def rectangle(size: tuple[int, int]) -> Tensor:
    """A mask off the middle, of about a tenth of the picture."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] * 3 // 4] = True
    return mask


def drawn_on(image: Tensor, mask: Tensor) -> Tensor:
    """Another picture inside the mask."""
    return torch.where(mask, picture(mask.shape, seed=9), image)


def inpaint(pipe: Pipeline, size: tuple[int, int], mask: Tensor, steps: int = STEPS) -> EditResult:
    return inpaint_with(pipe, picture(size), mask, PROMPT, steps=steps, noise=NamedNoise(3))


def sdedit(pipe: Pipeline, size: tuple[int, int], mask: Tensor) -> EditResult:
    image = picture(size)
    edited = drawn_on(image, mask)
    return sdedit_with(pipe, image, edited, PROMPT, steps=STEPS, noise=NamedNoise(3))


def full(size: tuple[int, int]) -> Tensor:
    return torch.ones(size, dtype=torch.bool)


def unet_inputs(size: tuple[int, int], seed: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, timesteps, context and vector for the tiny UNet, at guidance's batch of two."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 4, size[0] // 8, size[1] // 8)
    return (
        torch.randn(shape, generator=generator),
        torch.tensor([400, 400]),
        torch.randn(2, 77, 48, generator=generator),
        torch.randn(2, 128, generator=generator),
    )


# --- everything active -------------------------------------------------------------------------


@torch.inference_mode()
def test_with_a_full_mask_each_network_equals_the_dense_one(
    dense: Pipeline, sige: Pipeline, size: tuple[int, int]
) -> None:
    latents, *rest = unet_inputs(size)
    cases = {"unet": latents, "encoder": picture(size)[None], "decoder": latents[:1]}
    for name, x in cases.items():
        arguments = tuple(rest) if name == "unet" else ()
        network = getattr(sige.networks, name)
        expected = getattr(dense.networks, name)(x, *arguments)
        with recording(network):
            recorded = network(x, *arguments)
        with sparse(network, inpainting_pyramid(full(size))):
            out = network(x, *arguments)
        assert max_error(recorded, expected) < TOLERANCE, name
        assert max_error(out, expected) < TOLERANCE, name
        assert torch.equal(network(x, *arguments), expected), f"{name} is not dense again"


@torch.inference_mode()
def test_a_full_mask_run_that_records_itself_follows_the_dense_run(
    dense: Pipeline, sige: Pipeline, size: tuple[int, int]
) -> None:
    """The loop of an inpainting run, but recorded on x itself: the norms then are its own, and
    nothing is left in which a sparse step with everything active differs from a dense one."""
    solver, masks = Solver(published_steps(4)), inpainting_pyramid(full(size))
    finals = []
    for pipe in (dense, sige):
        networks = pipe.networks
        c, uc = networks.condition(PROMPT, "", size)
        denoise = networks.denoiser(c, uc, 6.0)
        sigmas = solver.sigmas(networks.engine.denoiser.discretization)
        z = NamedNoise(3)("start", (1, 4, size[0] // 8, size[1] // 8))
        x, state = solver.start(z, sigmas), None
        for i in range(len(sigmas) - 1):
            if pipe is sige:
                with recording(networks.unet):
                    denoise(x, sigmas[i].expand(1))
            with sparse(networks.unet, masks if pipe is sige else None):
                x, state = solver.step(denoise, x, i, sigmas, state)
        finals.append(x)
    assert max_error(*finals) < TOLERANCE * finals[0].abs().max().item()


class Bench(nn.Module):
    """One sparse block on its own."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        shapes = {name: list(t.shape) for name, t in self.state_dict().items()}
        self.load_state_dict(tiny_weights(shapes, seed=2))
        self.eval().to(memory_format=torch.channels_last)
        sparsify(self, replace(PUBLISHED, roots={Bench: SparseBench}))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.block(*inputs)


class SparseBench(SparseRoot, Bench):
    """The block with sparse passes."""


BLOCKS: dict[str, tuple[Callable[[], nn.Module], bool, bool]] = {
    # name: the block, whether it takes an embedding, whether it takes a context
    "unet-resblock": (lambda: published.SIGEResBlock(8, 16, 8, 4), True, False),
    "unet-resblock-wider": (lambda: published.SIGEResBlock(8, 16, 12, 4), True, False),
    "unet-down": (lambda: published.SIGEDownsample(8), False, False),
    "unet-up": (lambda: published.SIGEUpsample(8), False, False),
    "transformer": (lambda: published.SIGESpatialTransformer(8, 2, 4, 2, 6, False, 4), False, True),
    "vae-resblock": (lambda: published.SIGEResnetBlock(8, 12, 4), False, False),
    "vae-down": (lambda: published.SIGEEndPaddedDownsample(8), False, False),
    "vae-up": (lambda: published.SIGEUpsample(8), False, False),
    "vae-attention": (lambda: published.SIGEAttnBlock(8, 4), False, False),
}


def bench_inputs(name: str, size: tuple[int, int]) -> tuple[Tensor, ...]:
    _, embedding, context = BLOCKS[name]
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(2, 8, *size, generator=generator)
    extra = [torch.randn(2, 16, generator=generator)] * embedding
    extra += [torch.randn(2, 5, 6, generator=generator)] * context
    return (x, *extra)


def levels(mask: Tensor) -> MaskPyramid:
    """A mask at its own resolution and doubled, as an upsampling block needs it."""
    double = mask.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)
    return {tuple(m.shape): m for m in (mask, double)}


ODD_SIZES = [(7, 9), (9, 16), (13, 13), (3, 2), (1, 5)]
BLOCKS_AT_ODD_SIZES = [
    pytest.param(name, odd, id=f"{name}-{odd[0]}x{odd[1]}")
    for name in BLOCKS
    for odd in ODD_SIZES
    if name != "vae-down" or 1 not in odd  # the dense convolution has no output there
]


@pytest.mark.parametrize(("name", "latent_size"), BLOCKS_AT_ODD_SIZES)
@torch.inference_mode()
def test_with_a_full_mask_each_block_equals_its_dense_self_at_odd_sizes(
    name: str, latent_size: tuple[int, int]
) -> None:
    """Sizes at which blocks of four stick out of the map, and maps smaller than a block."""
    bench, inputs = Bench(BLOCKS[name][0]()), bench_inputs(name, latent_size)
    expected = bench(*inputs)
    with handle_of(bench).recording():
        recorded = bench(*inputs)
    with handle_of(bench).sparse(levels(full(latent_size))):
        out = bench(*inputs)
    assert max_error(recorded, expected) < TOLERANCE
    assert max_error(out, expected) < TOLERANCE


# --- outside the active set --------------------------------------------------------------------


def untouched(block: SparseModule, mask: Tensor) -> Tensor:
    """bool [H', W']: outputs of a block that a sparse pass does not compute."""
    active = block_active_set(mask, GEOMETRIES[type(block)])
    keep = torch.ones(active.out_size, dtype=torch.bool)
    keep.view(-1)[active.written[0]] = False
    return keep


def check_untouched(network: nn.Module, masks: MaskPyramid, run: Callable[[bool], object]) -> int:
    """Run a network recording and sparsely, and compare every sparse block outside its active set.

    Args:
        run: called with False to record and with True for the edited input.

    Returns:
        How many blocks had outputs to compare.
    """
    outputs: dict[tuple[Mode, str], tuple[Tensor, tuple[int, int]]] = {}
    blocks = {n: b for n, b in network.named_modules() if type(b) in GEOMETRIES}

    def watch(name: str, block: nn.Module) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            factor = 2 if isinstance(module, UPSAMPLES) else 1  # the convolution's own input
            height, width = inputs[0].shape[2:]
            outputs[block.site.mode, name] = (out.clone(), (height * factor, width * factor))

        return hook

    handles = [b.register_forward_hook(watch(n, b)) for n, b in blocks.items()]
    try:
        with recording(network):
            run(False)
        with sparse(network, masks):
            run(True)
    finally:
        for handle in handles:
            handle.remove()
    compared = 0
    for name, block in blocks.items():
        (before, size), (after, _) = outputs[Mode.RECORD, name], outputs[Mode.SPARSE, name]
        keep = untouched(block, masks[size])
        assert torch.equal(before[:, :, keep], after[:, :, keep]), name
        assert not torch.equal(before, after), f"{name} computed nothing"
        compared += bool(keep.any())
    return compared


@pytest.mark.parametrize("name", ["unet", "encoder", "decoder"])
@torch.inference_mode()
def test_outside_the_active_set_the_recording_stands_bit_for_bit(sige: Pipeline, name: str) -> None:
    size = (128, 192)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[40:60, 20:50] = True
    masks = inpainting_pyramid(mask)
    latents, *rest = unet_inputs(size)
    if name == "encoder":
        inputs = (picture(size)[None], drawn_on(picture(size), mask)[None])
    else:
        inside = masks[size[0] // 8, size[1] // 8]
        latents = latents if name == "unet" else latents[:1]
        inputs = (latents, torch.where(inside, torch.randn_like(latents), latents))
    arguments = tuple(rest) if name == "unet" else ()
    network = getattr(sige.networks, name)
    compared = check_untouched(network, masks, lambda edited: network(inputs[edited], *arguments))
    assert compared >= 6


# --- masks that are hard to place --------------------------------------------------------------


def edge_masks(size: tuple[int, int]) -> dict[str, Tensor]:
    """Single pixels in the corners and lines along the borders."""
    ends = {"first": 0, "last": -1}
    masks = {}
    for row_name, row in ends.items():
        for column_name, column in ends.items():
            masks[f"corner-{row_name}-{column_name}"] = (row, column)
        masks[f"row-{row_name}"] = (row, slice(None))
        masks[f"column-{row_name}"] = (slice(None), row)
    masks["middle"] = (size[0] // 2, size[1] // 2)
    masks["off-grid"] = (slice(3, 6), slice(size[1] - 7, size[1] - 2))
    return {
        name: full(size).logical_not().index_put_(*_at(size, where))
        for name, where in masks.items()
    }


def _at(
    size: tuple[int, int], where: tuple[int | slice, int | slice]
) -> tuple[tuple[Tensor, ...], Tensor]:
    numbers = torch.arange(size[0] * size[1]).view(size)[where].flatten()
    return (numbers // size[1], numbers % size[1]), torch.tensor(True)


def test_masks_at_every_border_and_corner_run(sige: Pipeline, size: tuple[int, int]) -> None:
    for name, mask in edge_masks(size).items():
        assert mask.any() and not mask.all()
        for result in (inpaint(sige, size, mask, steps=1), sdedit(sige, size, mask)):
            assert result.image.shape == (3, *size) and result.image.isfinite().all(), name


# --- whole edits -------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [inpaint, sdedit], ids=["inpainting", "sdedit"])
def test_no_edit_leaves_a_trace_in_the_next(
    sige: Pipeline, task: Callable[[Pipeline, tuple[int, int], Tensor], EditResult]
) -> None:
    first, other = SIZES[1], SIZES[2]
    results = [task(sige, first, rectangle(first))]
    results.append(task(sige, first, rectangle(first)))
    task(sige, first, rectangle(first).flip(0))  # another mask
    results.append(task(sige, first, rectangle(first)))
    task(sige, other, rectangle(other))  # another size
    inpaint(sige, first, rectangle(first).flip(1), steps=1)  # another task and schedule
    results.append(task(sige, first, rectangle(first)))
    fresh = Pipeline(networks_of("sige"), Precision.FP32, sparse=True)
    results.append(task(fresh, first, rectangle(first)))
    assert all(torch.equal(a.image, b.image) for a, b in pairwise(results))


def test_edits_of_every_size_change_the_picture(
    dense: Pipeline, sige: Pipeline, size: tuple[int, int]
) -> None:
    mask = rectangle(size)
    for pipe in (dense, sige):
        for task in (inpaint, sdedit):
            result = task(pipe, size, mask)
            assert result.image.shape == (3, *size) and result.image.dtype == torch.float32
            assert (
                result.image.isfinite().all() and 0 <= result.image.min() < result.image.max() <= 1
            )
            assert set(result.seconds) == {"encode", "sample", "decode"}


def test_a_dense_edit_ignores_the_unedited_picture(dense: Pipeline) -> None:
    size = SIZES[1]
    edited = drawn_on(picture(size), rectangle(size))
    options = {"steps": STEPS, "noise": NamedNoise(3)}
    alone = sdedit_with(dense, None, edited, PROMPT, **options)
    beside = sdedit_with(dense, picture(size), edited, PROMPT, **options)
    assert torch.equal(alone.image, beside.image)


def test_a_sparse_edit_needs_two_pictures_that_differ(sige: Pipeline) -> None:
    size = SIZES[0]
    image = picture(size)
    with pytest.raises(ValueError, match="needs the unedited picture"):
        sdedit_with(sige, None, image, PROMPT, steps=STEPS)
    with pytest.raises(ValueError, match="empty"):
        sdedit_with(sige, image, image.clone(), PROMPT, steps=STEPS)


def test_an_empty_mask_is_refused(dense: Pipeline, sige: Pipeline) -> None:
    size = SIZES[0]
    for pipe in (dense, sige):
        with pytest.raises(ValueError, match="empty"):
            inpaint_with(pipe, picture(size), ~full(size), PROMPT, steps=STEPS)


def test_a_refused_edit_does_not_spoil_the_next(sige: Pipeline) -> None:
    size = SIZES[0]
    before = inpaint(sige, size, rectangle(size))

    def interrupted(name: str, shape: object) -> Tensor:
        if name == "step/1":
            raise KeyboardInterrupt
        return NamedNoise(4)(name, shape)

    with pytest.raises(KeyboardInterrupt):
        inpaint_with(sige, picture(size), rectangle(size), PROMPT, steps=STEPS, noise=interrupted)
    assert torch.equal(inpaint(sige, size, rectangle(size)).image, before.image)


@pytest.mark.parametrize("run_type", ["original", "sige"])
def test_bf16_comes_close_to_fp32(
    request: pytest.FixtureRequest, run_type: str, size: tuple[int, int]
) -> None:
    exact: Pipeline = request.getfixturevalue("sige" if run_type == "sige" else "dense")
    half = Pipeline(networks_of(run_type, torch.bfloat16), Precision.BF16, exact.sparse)
    for task in (inpaint, sdedit):
        expected, result = (task(pipe, size, rectangle(size)).image for pipe in (exact, half))
        assert result.isfinite().all() and result.dtype == torch.float32
        error = (result - expected).square().mean()
        assert -10 * torch.log10(error) > 20, task.__name__


@pytest.mark.parametrize(
    ("picture", "mask"),
    [((72, 100), (72, 100)), ((64, 64), (64, 128))],
    ids=["not multiples of 64", "mask of another size"],
)
def test_sizes_are_checked_before_anything_runs(
    dense: Pipeline, picture: tuple[int, int], mask: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        inpaint_with(dense, torch.zeros(3, *picture), torch.ones(*mask).bool(), PROMPT)
    with pytest.raises(ValueError, match="multiples of 64"):
        sdedit_with(dense, torch.zeros(3, *mask), torch.zeros(3, *picture), PROMPT)


def test_an_edit_frees_its_recordings(sige: Pipeline) -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[20:40, 10:30] = True
    inpaint_with(sige, torch.zeros(3, 64, 64), mask, PROMPT, steps=1)
    networks = sige.networks
    for network in (networks.unet, networks.encoder, networks.decoder):
        assert handle_of(network).record.size_in_bytes() == 0
