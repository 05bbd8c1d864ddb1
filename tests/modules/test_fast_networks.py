"""The networks of preset `fast` against an oracle: the dense network with its pixels held (see
`tests.oracle`). A `fast` network must give the same to rounding."""

import pytest
import torch
from torch import Tensor, nn

from sgm.models.autoencoder import AutoencoderKL
from sgm.models.fast_autoencoder import FastAutoencoderKL
from sgm.modules.diffusionmodules.fast_openaimodel import FastUNetModel
from sgm.modules.diffusionmodules.openaimodel import UNetModel
from sgm.modules.fast_layers import FastTextAttention
from sgm.sparse.masks import downsample_mask
from sgm.sparse.state import SparseStateError
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
def unets() -> tuple[UNetModel, FastUNetModel]:
    dense, fast = UNetModel(**UNET), FastUNetModel(**UNET)
    same_weights(dense, fast)
    return dense, fast


@pytest.fixture(scope="module")
def autoencoders() -> tuple[AutoencoderKL, FastAutoencoderKL]:
    dense = AutoencoderKL(embed_dim=4, ddconfig=CODER)
    fast = FastAutoencoderKL(embed_dim=4, ddconfig=CODER)
    same_weights(dense, fast)
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
    with fast.state.recording():
        assert max_error(fast(*x0), expected) < TOLERANCE
    with fast.state.sparse(masks):
        found, again = fast(*x1), fast(*x0)
    assert max_error(found, oracle.held(kept, masks, *x1)) < TOLERANCE
    assert max_error(again, expected) < TOLERANCE
    outside = ~masks[tuple(found.shape[2:])]
    with fast.state.recording(masks):  # keeps only what these masks read
        recorded = fast(*x0)
    small = fast.state.record.size_in_bytes()
    with fast.state.sparse(masks):
        assert torch.equal(fast(*x1), found)
    assert torch.equal(found[:, :, outside], recorded[:, :, outside])
    with fast.state.recording():
        fast(*x0)
    assert small < fast.state.record.size_in_bytes()
    fast.state.clear()


@torch.inference_mode()
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_autoencoder_equals_the_held_dense_one(autoencoders, size, mask, part):
    dense, fast = (getattr(autoencoder, part) for autoencoder in autoencoders)
    shape = (1, 3, *size) if part == "encoder" else (1, 4, size[0] // 8, size[1] // 8)
    x0, x1 = (torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    masks, oracle = downsample_mask(mask, 1), Oracle(dense)
    expected, kept = oracle.record(x0)
    with fast.state.recording(masks):
        assert max_error(fast(x0), expected) < TOLERANCE
    with fast.state.sparse(masks):
        assert max_error(fast(x1), oracle.held(kept, masks, x1)) < TOLERANCE
    fast.state.clear()


@torch.inference_mode()
def test_text_is_projected_once_and_anew_for_another_text(unets, monkeypatch):
    dense, fast = unets
    x, t, context, y = unet_inputs((64, 64), 1)
    layers = [m for m in fast.modules() if isinstance(m, FastTextAttention)]
    calls = []
    for layer in layers:
        layer.to_k.register_forward_hook(lambda *_: calls.append(1))
    fast(x, t, context, y), fast(x, t, context, y)
    assert len(calls) == len(layers)
    other = context * -1
    assert max_error(fast(x, t, other, y), dense(x, t, other, y)) < TOLERANCE
    assert len(calls) == 2 * len(layers)
    fast.state.clear()


@torch.inference_mode()
def test_a_recording_for_one_mask_is_refused_to_another(unets):
    fast = unets[1]
    inputs = unet_inputs((64, 64), 1)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:32] = True
    one, other = downsample_mask(mask, 1), downsample_mask(mask, 1)
    with fast.state.recording(one):
        fast(*inputs)
    with pytest.raises(SparseStateError, match="other masks"), fast.state.sparse(other):
        pass
    fast.state.clear()
