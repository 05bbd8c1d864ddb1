"""One table of names: the tensors of a published checkpoint, and the same in a diffusers folder.

A published file holds everything under one set of names (`model.diffusion_model.*`, ...); diffusers
keeps a file per network, counts blocks within levels, and splits the fused queries, keys and values
of OpenCLIP's tower. The levels are read off the names themselves, so any depth is served.
"""

import re
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass

UNET, VAE, CONDITIONER = "model.diffusion_model.", "first_stage_model.", "conditioner.embedders."
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Place:
    """Where one of our tensors stands in a diffusers folder: the subfolder, one of `COMPONENTS`,
    and the names of the tensors there, of which several are joined along the first axis;
    `transposed` if it is stored with its two axes exchanged."""

    component: str
    names: tuple[str, ...]
    transposed: bool = False


# Ours on the left; a name is replaced where it stands between dots.
_RESBLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_PARTS = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.block_2": "mid_block.resnets.1",
    "mid.attn_1.norm": "mid_block.attentions.0.group_norm",
    "mid.attn_1.q": "mid_block.attentions.0.to_q",
    "mid.attn_1.k": "mid_block.attentions.0.to_k",
    "mid.attn_1.v": "mid_block.attentions.0.to_v",
    "mid.attn_1.proj_out": "mid_block.attentions.0.to_out.0",
    "norm_out": "conv_norm_out",
    "nin_shortcut": "conv_shortcut",
    "downsample": "downsamplers.0",
    "upsample": "upsamplers.0",
}
_TOWER = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final": "final_layer_norm",
    "transformer.resblocks": "encoder.layers",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
# How diffusers named the autoencoder's attention until 2023.
_OLDER_VAE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _renamed(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        name = re.sub(rf"(?:(?<=\.)|^){re.escape(ours)}(?=\.|$)", theirs, name, count=1)
    return name


def diffusers_places(names: Collection[str]) -> dict[str, Place]:
    """Where each tensor of a network stands in a diffusers folder, by its published name; without
    those that diffusers has no use for (`logit_scale`)."""
    downs = _numbers(names, r"input_blocks\.(\d+)\.0\.op\.weight")
    ups = _numbers(names, r"output_blocks\.(\d+)\.\d+\.conv\.weight")
    levels = 1 + max(_numbers(names, r"decoder\.up\.(\d+)\..*"), default=0)
    places = {}
    for name in names:
        if name.startswith(UNET):
            inner = _unet_name(name.removeprefix(UNET), downs, ups)
            places[name] = Place("unet", (inner,))
        elif name.startswith(VAE):
            places[name] = Place("vae", (vae_name(name.removeprefix(VAE), levels),))
        elif name.startswith(CONDITIONER) and not name.endswith(("logit_scale", "position_ids")):
            places[name] = _text_place(name.removeprefix(CONDITIONER).partition(".")[2])
    return places


def _numbers(names: Collection[str], pattern: str) -> list[int]:
    """The numbers that a pattern finds at the end of names, rising."""
    found = (re.search(rf"\.{pattern}$", name) for name in names)
    return sorted({int(match[1]) for match in found if match})


def _unet_name(name: str, downs: Sequence[int], ups: Sequence[int]) -> str:
    """A UNet's tensor, given the blocks that end in a change of resolution."""
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.*)", name)
    if match is None or name.startswith("input_blocks.0."):
        return _renamed(_renamed(name, _UNET_ENDS), _RESBLOCK)
    side, number, slot, inner = match[1], int(match[2]), match[3], match[4]
    ends = downs if side == "input" else ups
    level = bisect_left(ends, number)
    if side == "input":
        block, before = f"down_blocks.{level}", downs[level - 1] if level else 0
    else:
        block, before = f"up_blocks.{level}", ups[level - 1] if level else -1
    position = number - before - 1
    if inner.startswith("op."):
        return f"{block}.downsamplers.0.conv.{inner.removeprefix('op.')}"
    if inner.startswith("conv."):
        return f"{block}.upsamplers.0.{inner}"
    kind = "resnets" if slot == "0" else "attentions"
    return f"{block}.{kind}.{position}.{_renamed(inner, _RESBLOCK)}"


def vae_name(name: str, levels: int) -> str:
    """An autoencoder's tensor, of so many resolutions; both without a prefix."""
    name = re.sub(r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets.", name)
    name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", name)
    if match := re.match(r"decoder\.up\.(\d+)\.(block\.)?", name):
        kind = "resnets." if match[2] else ""  # counted from the lowest resolution there
        name = f"decoder.up_blocks.{levels - 1 - int(match[1])}.{kind}{name[match.end() :]}"
    return _renamed(name, _VAE_PARTS)


def older_vae_name(name: str) -> str:
    """A diffusers autoencoder's tensor as it was named until 2023."""
    return _renamed(name, _OLDER_VAE) if ".attentions." in name else name


def _text_place(name: str) -> Place:
    """A text tower's tensor: CLIP's under `transformer`, OpenCLIP's under `model`."""
    tower, _, inner = name.partition(".")
    if tower == "transformer":
        return Place("text_encoder", (inner,))
    if inner == "text_projection":
        return Place("text_encoder_2", ("text_projection.weight",), transposed=True)
    inner = "text_model." + _renamed(inner, _TOWER)
    if match := re.fullmatch(r"(.*)\.attn\.in_proj_(weight|bias)", inner):
        names = tuple(f"{match[1]}.self_attn.{x}_proj.{match[2]}" for x in "qkv")
        return Place("text_encoder_2", names)
    return Place("text_encoder_2", (inner,))
