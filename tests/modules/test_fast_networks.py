"""The networks of preset `fast` against an oracle: the dense network with its pixels held (see
`tests.oracle`). A `fast` network must give the same to rounding."""

import pytest
import torch
from torch import Tensor, nn

from sgm.models.autoencoder import AutoencoderKL
from sgm.modules.diffusionmodules.openaimodel import UNetModel
from sgm.sparse.mask_sets import SparseStateError
from sgm.sparse.masks import downsample_mask
from sgm.sparse.recording import tensors_of
from sgm.sparse.rules.sgm import SparseTextAttention
from sgm.sparse.sparsify import handle_of, sparsify
from tests.conftest import max_error, rule_weights
from tests.oracle import Oracle

TOLERANCE = 1e-4  # golden README: UNet and VAE, absolute
SIZES = [(64, 64), (80, 112), (128, 208)]  # pixels; 5x7 at the lowest level of the second
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 16,
    "num_res_blocks": 2,
    "attention_resolutions": [2, 1],
    "channel_mult": [1, 2],
    "num_head_channels": 8,
    "transformer_depth": [1, 2],
    "context_dim": 12,
    "adm_in_channels": 10,
    "norm_groups": 4,
}
CODER = {
    "double_z": True,
    "z_channels": 4,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 8,
    "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 1,
    "norm_groups": 4,
}


def same_weights(*networks: nn.Module) -> None:
    """The same random weights in networks, whose keys and shapes must be equal."""
    shapes = [{k: list(t.shape) for k, t in n.state_dict().items()} for n in networks]
    assert all(shape == shapes[0] for shape in shapes)
    weights = rule_weights(shapes[0], seed=4)
    for network in networks:
        network.load_state_dict(weights)
        network.eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def unets() -> tuple[UNetModel, UNetModel]:
    dense, fast = UNetModel(**UNET), UNetModel(**UNET)
    same_weights(dense, fast)
    sparsify(fast)
    return dense, fast


@pytest.fixture(scope="module")
def autoencoders() -> tuple[AutoencoderKL, AutoencoderKL]:
    dense = AutoencoderKL(embed_dim=4, ddconfig=CODER)
    fast = AutoencoderKL(embed_dim=4, ddconfig=CODER)
    same_weights(dense, fast)
    sparsify(fast.encoder)
    sparsify(fast.decoder)
    return dense, fast


@pytest.fixture(params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def size(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.fixture(params=["rectangle", "corner", "islands", "pixel"])
def mask(request: pytest.FixtureRequest, size: tuple[int, int]) -> Tensor:
    """bool [H, W]."""
    mask = torch.zeros(size, dtype=torch.bool)
    match request.param:
        case "rectangle":
            mask[size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] * 3 // 4] = True
        case "corner":
            mask[-9:, -20:] = True
        case "islands":
            mask |= torch.rand(size, generator=torch.Generator().manual_seed(1)) > 0.9995
            mask[:5] = True
        case _:
            mask[size[0] // 2, size[1] // 2] = True
    return mask


def unet_inputs(size: tuple[int, int], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, size[0] // 8, size[1] // 8, generator=generator)
    context, y = (torch.randn(2, *n, generator=torch.Generator().manual_seed(7)) for n in SHAPES)
    return x, torch.tensor([300, 300]), context, y


SHAPES = [(5, UNET["context_dim"]), (UNET["adm_in_channels"],)]


@torch.inference_mode()
@pytest.mark.parametrize("dilation", [0, (0, 2, 1)])
def test_unet_equals_the_held_dense_one(unets, size, mask, dilation):
    dense, fast = unets
    masks = downsample_mask(mask, dilation)
    x0, x1 = (unet_inputs(size, seed) for seed in (1, 2))
    oracle = Oracle(dense)
    expected, kept = oracle.record(*x0)
    with handle_of(fast).recording():
        assert max_error(fast(*x0), expected) < TOLERANCE
    with handle_of(fast).sparse(masks):
        found, again = fast(*x1), fast(*x0)
    assert max_error(found, oracle.held(kept, masks, *x1)) < TOLERANCE
    assert max_error(again, expected) < TOLERANCE
    outside = ~masks[tuple(found.shape[2:])]
    with handle_of(fast).recording(masks):  # keeps only what these masks read
        recorded = fast(*x0)
    small = handle_of(fast).record.size_in_bytes()
    with handle_of(fast).sparse(masks):
        assert torch.equal(fast(*x1), found)
    assert torch.equal(found[:, :, outside], recorded[:, :, outside])
    with handle_of(fast).recording():
        fast(*x0)
    assert small < handle_of(fast).record.size_in_bytes()
    handle_of(fast).clear()


@torch.inference_mode()
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_autoencoder_equals_the_held_dense_one(autoencoders, size, mask, part):
    dense, fast = (getattr(autoencoder, part) for autoencoder in autoencoders)
    shape = (1, 3, *size) if part == "encoder" else (1, 4, size[0] // 8, size[1] // 8)
    x0, x1 = (torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    masks, oracle = downsample_mask(mask, 1), Oracle(dense)
    expected, kept = oracle.record(x0)
    with handle_of(fast).recording(masks):
        assert max_error(fast(x0), expected) < TOLERANCE
    with handle_of(fast).sparse(masks):
        assert max_error(fast(x1), oracle.held(kept, masks, x1)) < TOLERANCE
    handle_of(fast).clear()


@torch.inference_mode()
def test_a_recording_cut_to_a_mask_is_the_one_made_for_it(unets):
    fast, inputs = unets[1], unet_inputs((80, 112), 1)
    mask = torch.zeros(80, 112, dtype=torch.bool)
    mask[16:32, 40:71] = True
    masks, handle = downsample_mask(mask, 1), handle_of(fast)
    with handle.recording(masks) as made:
        fast(*inputs)
    with handle.recording() as whole:
        fast(*inputs)
    cut = handle.cut(whole, masks)
    assert cut.values.keys() == made.values.keys() and cut.masks is masks
    for key, value in made.values.items():
        for a, b in zip(tensors_of(cut.values[key]), tensors_of(value), strict=True):
            assert torch.equal(a, b), key
    handle.clear()


@torch.inference_mode()
def test_text_that_was_set_is_projected_once_and_read_by_sparse_passes_alone(unets):
    dense, fast = unets
    x, t, context, y = unet_inputs((64, 64), 1)
    masks = downsample_mask(torch.ones(64, 64, dtype=torch.bool), 0)
    layers = [m for m in fast.modules() if isinstance(m, SparseTextAttention)]
    handle, calls, other = handle_of(fast), [], context * -1
    hooks = [m.to_k.register_forward_hook(lambda *_: calls.append(1)) for m in layers]
    handle.set_text(other)
    assert len(calls) == len(layers)
    with handle.recording():
        assert max_error(fast(x, t, context, y), dense(x, t, context, y)) < TOLERANCE
    assert len(calls) == 2 * len(layers)  # a full pass projects what it comes with
    with handle.sparse(masks):
        found = fast(x, t, context, y), fast(x, t, other, y)
    assert len(calls) == 2 * len(layers)
    assert all(max_error(out, dense(x, t, other, y)) < TOLERANCE for out in found)
    with handle.sparse(masks), pytest.raises(SparseStateError, match=r"\(2, 4\); call set_text"):
        fast(x, t, context[:, :4], y)
    handle.clear()
    with handle.recording():
        fast(x, t, context, y)
    with handle.sparse(masks):  # none was set: projected in the pass
        assert max_error(fast(x, t, other, y), dense(x, t, other, y)) < TOLERANCE
    for hook in hooks:
        hook.remove()
    handle.clear()


@torch.inference_mode()
def test_a_recording_for_one_mask_is_refused_to_another(unets):
    fast = unets[1]
    inputs = unet_inputs((64, 64), 1)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:32] = True
    one, other = downsample_mask(mask, 1), downsample_mask(mask, 1)
    with handle_of(fast).recording(one):
        fast(*inputs)
    with pytest.raises(SparseStateError, match="other masks"), handle_of(fast).sparse(other):
        pass
    handle_of(fast).clear()
