"""End-to-end inpainting and SDEdit with the small golden engines, dense and sparse."""

import pytest
import torch

from sgm.inference import inpainting, sdedit
from sgm.inference.networks import Networks
from sgm.inference.noise import sequential_noise
from sgm.models.diffusion import DiffusionEngine
from sgm.modules.diffusionmodules.openaimodel import UNetModel
from sgm.modules.diffusionmodules.sampling import DPMPP2M
from sgm.sparse.masks import downsample_mask, inpainting_pyramid, sdedit_decoder_pyramid
from tests.conftest import max_error, rule_weights

LATENTS = 1e-4  # golden README: of the largest value
IMAGE = 5e-4
DIFFUSION = "sgm.modules.diffusionmodules"
ENCODERS = "sgm.modules.encoders.modules"
TARGETS = {
    "original": (f"{DIFFUSION}.openaimodel.UNetModel", "sgm.models.autoencoder.AutoencoderKL"),
    "sige": (
        f"{DIFFUSION}.sige_openaimodel.SIGEUNetModel",
        "sgm.models.sige_autoencoder.SIGEAutoencoderKL",
    ),
}


def engine_configs(info, text, run_type):
    unet, vae = TARGETS[run_type]
    towers = text["towers"]["base"]
    clip = {k: v for k, v in towers["clip"].items() if k != "projection_dim"}
    sizes = ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
    embedders = [
        ("txt", "FrozenCLIPEmbedder", {"layer_idx": 3, "tower": clip}),
        ("txt", "FrozenOpenCLIPEmbedder2", {"tower": towers["open_clip"]}),
        *[(key, "ConcatTimestepEmbedderND", {"outdim": 8}) for key in sizes],
    ]
    drop = UNetModel.TRAINING_ONLY
    return {
        "network_config": {
            "target": unet,
            "params": {k: v for k, v in info["unet"]["base"].items() if k not in drop},
        },
        "denoiser_config": {
            "target": f"{DIFFUSION}.denoiser.DiscreteDenoiser",
            "params": {
                "num_idx": 1000,
                "scaling_config": {"target": f"{DIFFUSION}.denoiser_scaling.EpsScaling"},
                "discretization_config": {
                    "target": f"{DIFFUSION}.discretizer.LegacyDDPMDiscretization"
                },
            },
        },
        "conditioner_config": {
            "target": "sgm.modules.GeneralConditioner",
            "params": {
                "emb_models": [
                    {"input_key": key, "target": f"{ENCODERS}.{name}", "params": params}
                    for key, name, params in embedders
                ]
            },
        },
        "first_stage_config": {
            "target": vae,
            "params": {"embed_dim": 4, "ddconfig": info["ddconfig"]},
        },
        "scale_factor": info["scale_factor"],
    }


@pytest.fixture(scope="module", params=["original", "sige"])
def case(request, golden):
    data, text = golden("pipeline"), golden("text").info
    engine = DiffusionEngine(**engine_configs(data.info, text, request.param))
    seeds = data.info["weights_seeds"]["base"]
    shapes = text["conditioner_base"]["state_dict"]
    parts = [
        (engine.model.diffusion_model, golden("unet_base").info["state_dict"], seeds["unet"]),
        (engine.first_stage_model, golden("vae").info["state_dict"], seeds["vae"]),
        (engine.conditioner.embedders[0], shapes["conditioner.embedders.0"], seeds["clip"]),
        (engine.conditioner.embedders[1], shapes["conditioner.embedders.1"], seeds["open_clip"]),
    ]
    for module, names, seed in parts:
        weights = rule_weights(names, seed)
        module.load_state_dict({k: weights.get(k, v) for k, v in module.state_dict().items()})
    networks = Networks(engine.eval().to(memory_format=torch.channels_last))
    return data, networks, request.param


def picture(tensor):
    return 2 * (tensor.float() / 255) - 1


def conditioned(data, networks, name, task):
    prompts = (data.info["prompt"], data.info["negative_prompt"])
    c, uc = networks.condition(*prompts, data[name].shape[1:])
    for kind, cond in (("c", c), ("uc", uc)):
        for key, value in cond.items():
            assert max_error(value, data[f"conditioning/{task}/{kind}_{key}"]) < 1e-4
    return networks.denoiser(c, uc, 6.0)


def check(data, run, steps, latents, image, sparse):
    """Latents after every step, at the end, and the picture."""
    expected = data[f"{run}/step_outputs"]
    expected = expected[1::2] if sparse else expected  # sparse runs alternate recording and edit
    scale = data[f"{run}/latents"].abs().max().item()
    assert len(steps) == len(expected)
    for number, (x, reference) in enumerate(zip(steps, expected, strict=True)):
        assert max_error(x, reference) < LATENTS * expected.abs().max().item(), number
    assert max_error(latents, data[f"{run}/latents"]) < LATENTS * scale
    reference = data.tensors[f"{run}/image_u16"].to(torch.float64) / 65535
    assert max_error(image[None], reference) < IMAGE


@torch.inference_mode()
def test_inpainting(case):
    data, networks, run_type = case
    run = f"inpaint/base/{run_type}"
    height, width = data["image"].shape[1:]
    pyramid = inpainting_pyramid(data.mask("inpaint_mask", height, width))
    denoise = conditioned(data, networks, "image", "inpaint")
    steps: list[torch.Tensor] = []
    torch.manual_seed(data.info["runs"][run]["seed"])
    noise = sequential_noise
    plan = inpainting.prepare(networks, picture(data["image"]), pyramid, run_type == "sige", noise)
    solver = DPMPP2M(data.info["steps"])
    x = inpainting.denoise_latents(
        networks, plan, denoise, solver, noise, lambda i, x: steps.append(x)
    )
    check(data, run, steps, x, inpainting.decode(networks, plan, x), run_type == "sige")


@torch.inference_mode()
def test_sdedit(case):
    data, networks, run_type = case
    run = f"sdedit/base/{run_type}"
    height, width = data["image"].shape[1:]
    denoise = conditioned(data, networks, "image", "sdedit")
    init, edited = picture(data["image"]), picture(data["image_edited"])
    steps: list[torch.Tensor] = []
    torch.manual_seed(data.info["runs"][run]["seed"])
    noise = sequential_noise
    if run_type == "original":
        plan = sdedit.prepare_dense(networks, edited, noise)
    else:
        from sgm.sparse.masks import difference_mask, dilate, sdedit_pyramid

        difference = difference_mask(init, edited)
        dilated = data.mask("difference_mask_dilated5", height, width)
        assert torch.equal(dilate(difference, 5), dilated)
        masks, decoder_masks = sdedit_pyramid(difference), sdedit_decoder_pyramid(difference)
        assert torch.equal(masks[height, width], downsample_mask(dilated, 1)[height, width])
        plan = sdedit.prepare_sparse(networks, init, edited, masks, decoder_masks, noise)
    solver = DPMPP2M(data.info["steps"])
    plan = sdedit.denoise_latents(
        networks, plan, denoise, solver, 0.8, noise, lambda i, x: steps.append(x)
    )
    check(data, run, steps, plan.edited, sdedit.decode(networks, plan), run_type == "sige")
