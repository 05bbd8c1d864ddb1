"""Dense UNet and autoencoder against the golden reference."""

import pytest
import torch

from sgm.models.autoencoder import AutoencoderKL, DiagonalGaussian
from sgm.modules.attention import CPU_PIECE, GEGLU
from sgm.modules.diffusionmodules.openaimodel import UNetModel
from sgm.sparse.matmul import FEW_ROWS
from tests.conftest import max_error, rule_weights

TOLERANCE = 1e-4  # golden README: UNet and VAE, absolute


def network_params(config: dict) -> dict:
    return {k: v for k, v in config.items() if k not in UNetModel.TRAINING_ONLY}


@pytest.mark.parametrize("case", ["unet_base", "unet_refiner"])
@torch.inference_mode()
def test_unet_equals_the_reference(golden, case):
    data = golden(case)
    unet = UNetModel(**network_params(data.info["config"]))
    shapes = {name: list(t.shape) for name, t in unet.state_dict().items()}
    assert shapes == data.info["state_dict"]
    unet.load_state_dict(rule_weights(shapes, data.info["weights_seed"]))
    out = unet(data["x0"], data["timesteps"], data["context"], data["y"])
    assert max_error(out, data["original_x0"]) < TOLERANCE


@pytest.fixture(scope="module")
def vae(golden):
    data = golden("vae")
    model = AutoencoderKL(embed_dim=4, ddconfig=data.info["ddconfig"])
    shapes = {name: list(t.shape) for name, t in model.state_dict().items()}
    assert shapes == data.info["state_dict"]
    model.load_state_dict(rule_weights(shapes, data.info["weights_seed"]))
    return model.eval()


@torch.inference_mode()
def test_autoencoder_equals_the_reference(golden, vae):
    data = golden("vae")
    image = 2 * (data["image0"][None].float() / 255) - 1
    assert max_error(vae.encoder(image), data["encoder_original_x0"]) < TOLERANCE
    assert max_error(vae.decoder(data["z0"]), data["decoder_original_z0"]) < TOLERANCE


@torch.inference_mode()
def test_posterior_draws_once_from_the_cpu_generator(golden, vae):
    data = golden("vae")
    image = 2 * (data["image0"][None].float() / 255) - 1
    torch.manual_seed(data.info["ae"]["global_seed_before_encode"])
    sample = vae.posterior(image).sample()
    assert max_error(sample, data["ae/sample"]) < TOLERANCE
    posterior = vae.posterior(image)
    assert max_error(posterior.mode(), data["ae/mode"]) < TOLERANCE


def test_posterior_clamps_the_log_variance():
    moments = torch.tensor([0.0, 50.0, 0.0, -90.0]).view(2, 2, 1, 1)
    assert DiagonalGaussian(moments).logvar.flatten().tolist() == [20.0, -30.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 10}, "sequential"),
        ({"transformer_depth": [1, 2]}, "2 entries for 3 levels"),
        ({"num_head_channels": 48}, "does not divide"),
        ({"spatial_transformer_attn_type": "linear"}, "softmax"),
    ],
)
def test_unet_refuses_impossible_arguments(golden, change, words):
    params = network_params(golden("unet_base").info["config"]) | change
    with pytest.raises(ValueError, match=words):
        UNetModel(**params)


def test_ddconfig_is_strict(golden):
    ddconfig = golden("vae").info["ddconfig"]
    with pytest.raises(ValueError, match="chanels"):
        AutoencoderKL(embed_dim=4, ddconfig=ddconfig | {"chanels": 3})
    with pytest.raises(ValueError, match="ch_mult"):
        AutoencoderKL(embed_dim=4, ddconfig={k: v for k, v in ddconfig.items() if k != "ch_mult"})


@torch.inference_mode()
@pytest.mark.parametrize("rows", [5, FEW_ROWS])
@pytest.mark.parametrize("width", [8, CPU_PIECE, CPU_PIECE + 24])
def test_the_gated_layer_in_pieces_is_one_layer(width: int, rows: int) -> None:
    layer, x = GEGLU(12, width), torch.randn(2, rows, 12)  # the batch makes FEW_ROWS many
    proj = layer.proj
    value, gate = torch.nn.functional.linear(x, proj.weight, proj.bias).chunk(2, dim=-1)
    expected = value * torch.nn.functional.gelu(gate)
    assert torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-6)
