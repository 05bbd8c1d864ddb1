"""Sparse UNet and autoencoder against the golden reference, and against the dense networks."""

import pytest
import torch

from sgm.inference import presets
from sgm.models.sige_autoencoder import SIGEAutoencoderKL
from sgm.modules.diffusionmodules.openaimodel import UNetModel
from sgm.modules.diffusionmodules.sige_openaimodel import SIGEUNetModel
from sgm.sparse.active import CONV1X1, CONV3X3, UNET_DOWN, active_blocks
from sgm.sparse.mask_sets import SparseStateError
from sgm.sparse.masks import inpainting_pyramid
from sgm.sparse.rules.published import (
    PUBLISHED,
    SIGEDownsample,
    SIGEResBlock,
    SIGESpatialTransformer,
    SIGEUpsample,
)
from sgm.sparse.sparsify import handle_of, sparsify
from tests.conftest import max_error, rule_weights

TOLERANCE = 1e-4  # golden README: UNet and VAE, absolute


def load_unet(data) -> SIGEUNetModel:
    config = data.info["config"]
    params = {k: v for k, v in config.items() if k not in UNetModel.TRAINING_ONLY}
    unet = SIGEUNetModel(**params)
    shapes = {name: list(t.shape) for name, t in unet.state_dict().items()}
    assert shapes == data.info["state_dict"]
    unet.load_state_dict(rule_weights(shapes, data.info["weights_seed"]))
    sparsify(unet)
    return unet.to(memory_format=torch.channels_last).eval()


@pytest.fixture(scope="module", params=["unet_base", "unet_refiner"])
def recorded(request, golden):
    """A UNet that has recorded x0, and its case."""
    data = golden(request.param)
    unet = load_unet(data)
    with torch.inference_mode(), handle_of(unet).recording():
        full = unet(data["x0"], data["timesteps"], data["context"], data["y"])
    return data, unet, full


def pixel_mask(data, name):
    height, width = (8 * n for n in data["x0"].shape[2:])
    return data.mask(f"{name}/pixel_mask", height, width)


def test_recording_is_the_dense_pass(recorded):
    data, _, full = recorded
    assert max_error(full, data["sige_full_x0"]) < TOLERANCE
    assert max_error(full, data["original_x0"]) < TOLERANCE


@pytest.mark.parametrize("mask", ["rect", "blob"])
@torch.inference_mode()
def test_sparse_pass_equals_the_reference(recorded, mask):
    data, unet, full = recorded
    masks = inpainting_pyramid(pixel_mask(data, mask))
    with handle_of(unet).sparse(masks):
        out = unet(data[f"{mask}/x1"], data["timesteps"], data["context"], data["y"])
        same = unet(data["x0"], data["timesteps"], data["context"], data["y"])
    assert max_error(out, data[f"{mask}/sige_sparse_x1"]) < TOLERANCE
    assert max_error(same, full) < TOLERANCE  # an unchanged input gives the full pass


@torch.inference_mode()
def test_a_recording_for_one_mask_alone_serves_any_number_of_passes(golden):
    """Sparse passes write into its maps, and only where each of them writes again."""
    data = golden("unet_base")
    unet, masks = load_unet(data), inpainting_pyramid(pixel_mask(data, "rect"))
    args = (data["timesteps"], data["context"], data["y"])
    with handle_of(unet).recording():
        unet(data["x0"], *args)
    with handle_of(unet).sparse(masks):
        expected = unet(data["rect/x1"], *args)
    with handle_of(unet).recording(masks):
        unet(data["x0"], *args)
    with handle_of(unet).sparse(masks):
        first = unet(data["rect/x1"], *args)
        other = unet(data["x0"], *args)
        again = unet(data["rect/x1"], *args)
    assert not torch.equal(first, other)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)


@torch.inference_mode()
def test_sparse_pass_ignores_the_context_and_all_but_the_middle_the_time(recorded):
    data, unet, _ = recorded
    x1, y = data["rect/x1"], data["y"]
    with handle_of(unet).sparse(inpainting_pyramid(pixel_mask(data, "rect"))):
        out = unet(x1, data["timesteps"], data["context"], y)
        other = unet(x1, data["timesteps"], data["other_context"], y)
        later = unet(x1, data["other_timesteps"], data["context"], y)
    assert torch.equal(out, other)
    assert max_error(later, data["rect/sige_sparse_x1_other_timesteps"]) < TOLERANCE


KINDS = {  # which convolution a gather of the reference stood before
    (SIGEResBlock, "main_gather"): CONV3X3,
    (SIGEResBlock, "shortcut_gather"): CONV1X1,
    (SIGESpatialTransformer, "gather"): CONV1X1,
    (SIGEDownsample, "gather"): UNET_DOWN,
    (SIGEUpsample, "gather"): CONV3X3,
}


@pytest.mark.parametrize("mask", ["rect", "blob"])
def test_active_blocks_per_layer_are_the_published_ones(recorded, mask):
    data, unet, _ = recorded
    masks = inpainting_pyramid(pixel_mask(data, mask))
    layers = data.info["figures"][f"{mask}/active"]
    assert len(layers) > 40
    for path, (count, size) in layers.items():
        block, gather = path.rsplit(".", 1)
        geometry = KINDS[type(unet.get_submodule(block)), gather]
        assert len(active_blocks(masks[tuple(size)], geometry)) == count, path


@pytest.fixture(scope="module")
def vae(golden):
    data = golden("vae")
    model = SIGEAutoencoderKL(embed_dim=4, ddconfig=data.info["ddconfig"])
    sparsify(model.encoder, PUBLISHED)
    sparsify(model.decoder, PUBLISHED)
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    assert shapes == data.info["state_dict"]
    model.load_state_dict(rule_weights(shapes, data.info["weights_seed"]))
    return model.to(memory_format=torch.channels_last).eval()


def picture(tensor):
    return 2 * (tensor[None].float() / 255) - 1


@pytest.mark.parametrize("mask", ["rect", "blob"])
@torch.inference_mode()
def test_autoencoder_equals_the_reference(golden, vae, mask):
    data = golden("vae")
    size = data["image0"].shape[1:]
    pixels = data.mask(f"{mask}/pixel_mask", *size)
    encoder, decoder = vae.encoder, vae.decoder
    with handle_of(encoder).recording():
        full = encoder(picture(data["image0"]))
    with handle_of(encoder).sparse(presets.PUBLISHED.sdedit_masks(pixels)):
        out = encoder(picture(data[f"{mask}/image1"]))
    assert max_error(full, data["encoder_sige_full_x0"]) < TOLERANCE
    assert max_error(out, data[f"{mask}/encoder_sige_sparse_x1"]) < TOLERANCE
    with handle_of(decoder).recording():
        full = decoder(data["z0"])
    with handle_of(decoder).sparse(presets.PUBLISHED.sdedit_decoder_masks(pixels)):
        out = decoder(data[f"{mask}/z1"])
    assert max_error(full, data["decoder_original_z0"]) < TOLERANCE
    assert max_error(out, data[f"{mask}/decoder_sige_sparse_z1"]) < TOLERANCE


def test_a_sparse_pass_needs_a_recording_that_fits(golden):
    data = golden("unet_base")
    unet = load_unet(data)
    masks = inpainting_pyramid(pixel_mask(data, "rect"))
    args = (data["timesteps"], data["context"], data["y"])
    with pytest.raises(SparseStateError, match="no recording"), handle_of(unet).sparse(masks):
        pass
    with torch.inference_mode():
        with handle_of(unet).recording():
            unet(data["x0"], *args)
        with handle_of(unet).sparse(masks), pytest.raises(SparseStateError, match="batch of 2"):
            unet(data["x0"][:1], *(a[:1] for a in args))
        small = {size: m for size, m in masks.items() if size[0] < 16}
        with handle_of(unet).sparse(small), pytest.raises(SparseStateError, match="no level"):
            unet(data["x0"], *args)
    with (
        handle_of(unet).recording(),
        pytest.raises(SparseStateError, match="already"),
        handle_of(unet).sparse(masks),
    ):
        pass
    handle_of(unet).clear()
    assert handle_of(unet).record.size_in_bytes() == 0


@torch.inference_mode()
def test_a_full_mask_gives_the_dense_result_up_to_the_recorded_norms(golden):
    """All pixels active and the recorded norms those of the input itself: the dense network."""
    data = golden("unet_base")
    unet = load_unet(data)
    args = (data["timesteps"], data["context"], data["y"])
    with handle_of(unet).recording():
        dense = unet(data["rect/x1"], *args)
    height, width = (8 * n for n in data["x0"].shape[2:])
    with handle_of(unet).sparse(inpainting_pyramid(torch.ones(height, width, dtype=torch.bool))):
        out = unet(data["rect/x1"], *args)
    assert max_error(out, dense) < TOLERANCE
