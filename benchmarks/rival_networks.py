"""Dense networks that a sparse pass has to beat: the compiled UNet, and that of `diffusers`.

`diffusers` is needed by nothing else here; without it, or with one that cannot be imported, its row
is left out.
"""

from __future__ import annotations

import importlib
import itertools
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgm.config import load_config
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


def borrowed(network: nn.Module, weights: Mapping[str, Tensor]) -> int:
    """Fill a network of the meta device with tensors of the same shapes from another one's
    weights, each used once where there are enough, without a copy; what has no like is drawn.

    Returns:
        How many numbers were drawn.
    """
    pools: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for weight in weights.values():
        shape = tuple(weight.shape)
        # A 1x1 convolution is a linear layer.
        pools[shape[:2] if shape[2:] == (1, 1) else shape].append(weight)
    sources = {shape: itertools.cycle(pool) for shape, pool in pools.items()}
    like = next(iter(weights.values()))
    found, drawn = {}, 0
    for name, parameter in network.state_dict().items():
        shape = tuple(parameter.shape)
        key = shape[:2] if shape[2:] == (1, 1) else shape
        if key in sources:
            found[name] = next(sources[key]).reshape(shape)
        else:
            found[name] = torch.randn(shape, dtype=like.dtype, device=like.device) / 10
            drawn += parameter.numel()
    network.load_state_dict(found, assign=True)
    return drawn


def diffusers_unet(options: RunOptions, weights: Mapping[str, Tensor], inputs: Inputs) -> Call:
    """A pass of the UNet of `diffusers` with the shape of a run's, on borrowed weights.

    Args:
        options: a run of the dense network.
        weights: our network's.
        inputs: our network's: latents, `timesteps`, `context` and `y`.

    Raises:
        ImportError, RuntimeError: `diffusers` is not there, or cannot be imported.
    """
    module = importlib.import_module("diffusers")
    config = load_config(options.config_path / options.spec.config_file(options.run_type, False))
    arguments = unet_arguments(config["model"]["params"]["network_config"]["params"])
    with torch.device("meta"):
        network = module.UNet2DConditionModel(**arguments).eval()
    borrowed(network, weights)
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
