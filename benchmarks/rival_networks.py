"""Dense networks that a sparse pass has to beat: the compiled UNet, and that of `diffusers`.

`diffusers` is needed by nothing else here; without it, or with one that cannot be imported, its row
is left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sgm.config import load_config
from sgm.io.names import UNET, diffusers_places
from sgm.profiling.latency import Call
from sgm.profiling.passes import Inputs, Pass, call
from sgm.specs import RunOptions

# Numbers that `diffusers` embeds one by one beside the pooled text: sizes and crop.
SIZES = 6


def compiled(dense: Pass) -> Call:
    """The dense pass compiled; on a CUDA device as CUDA graphs."""
    network = torch.compile(dense.network, mode="reduce-overhead")
    return lambda: call(network, dense.inputs)


def unet_arguments(params: Mapping[str, Any]) -> dict[str, Any]:
    """What `diffusers.UNet2DConditionModel` is made with, to be the UNet of a configuration.

    Args:
        params: of our `UNetModel`, as in the YAML files.
    """
    widths = [params["model_channels"] * mult for mult in params["channel_mult"]]
    attends = [2**level in params["attention_resolutions"] for level in range(len(widths))]
    pooled = params["adm_in_channels"]
    time_width = min(256, pooled // 8)  # 256 in SDXL; how the vector is shared out costs nothing
    return {
        "in_channels": params["in_channels"],
        "out_channels": params["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": params["num_res_blocks"],
        "down_block_types": [("CrossAttn" if a else "") + "DownBlock2D" for a in attends],
        "up_block_types": [("CrossAttn" if a else "") + "UpBlock2D" for a in attends[::-1]],
        "transformer_layers_per_block": list(params["transformer_depth"]),
        # By this name `diffusers` takes the number of heads.
        "attention_head_dim": [width // params["num_head_channels"] for width in widths],
        "cross_attention_dim": params["context_dim"],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": time_width,
        "projection_class_embeddings_input_dim": pooled,
        "norm_num_groups": params.get("norm_groups", 32),
    }


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's weights under diffusers' names and in its shapes, without a copy.

    Args:
        weights: of our UNet; the 1x1 convolutions around its transformers are linear there.
    """
    places = diffusers_places([UNET + name for name in weights])
    return {
        places[UNET + name].names[0]: weight[:, :, 0, 0] if is_linear(name, weight) else weight
        for name, weight in weights.items()
    }


def is_linear(name: str, weight: Tensor) -> bool:
    """Whether diffusers has a linear layer where this weight is a 1x1 convolution's."""
    return ".proj_" in name and weight.ndim == 4


def diffusers_unet(options: RunOptions, weights: Mapping[str, Tensor], inputs: Inputs) -> Call:
    """A pass of the UNet of `diffusers` that is a run's, with the same weights.

    Args:
        options: a run of the dense network.
        weights: our network's.
        inputs: our network's: latents, `timesteps`, `context` and `y`.

    Raises:
        ImportError, RuntimeError: `diffusers` is not there, or cannot be imported.
    """
    module = importlib.import_module("diffusers")
    config = load_config(options.config_path / options.spec.config_file(options.run_type, False))
    params = config["model"]["params"]["network_config"]["params"]
    channels = weights["input_blocks.0.0.weight"].shape[1]  # of an inpainting network more
    arguments = unet_arguments({**params, "in_channels": channels})
    with torch.device("meta"):
        network = module.UNet2DConditionModel(**arguments).eval()
    network.load_state_dict(renamed(weights), assign=True)
    network.to(memory_format=torch.channels_last)
    latents, y = inputs[0].to(memory_format=torch.channels_last), inputs["y"]
    dtype = next(iter(weights.values())).dtype
    pooled = y.shape[1] - SIZES * arguments["addition_time_embed_dim"]
    added = {"text_embeds": y[:, :pooled].to(dtype), "time_ids": y[:, :SIZES].to(dtype)}

    def run() -> Tensor:
        return network(
            latents.to(dtype),
            inputs["timesteps"],
            encoder_hidden_states=inputs["context"].to(dtype),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    return run
