"""Joins the trained parts into one checkpoint with the published key names."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from tools.tiny.checkpoints import read, write

NETWORKS = {"base": "unet", "refiner": "refiner"}  # part: its training state


def averaged(path: Path) -> tuple[dict[str, Tensor], str]:
    """The averaged weights of a training state, and its step."""
    tensors, metadata = read(path)
    return {k[4:]: v for k, v in tensors.items() if k.startswith("ema.")}, metadata["step"]


def export(args: argparse.Namespace) -> None:
    """Write half-precision weights of the base or the refiner: UNet and towers, and the
    autoencoder (its decoder from the longer training with the encoder frozen, if there is one)."""
    work, network = Path(args.work), NETWORKS[args.part]
    tensors, steps = averaged(work / f"{network}.safetensors")
    first_stage, _ = read(work / "first_stage.safetensors")
    decoder_steps = "0"
    if (work / "decoder.safetensors").exists():
        trained, decoder_steps = averaged(work / "decoder.safetensors")
        parts = ("decoder.", "post_quant_conv.")
        first_stage |= {k: v for k, v in trained.items() if k.startswith(parts)}
    tensors |= {f"first_stage_model.{k}": v for k, v in first_stage.items()}
    _, vae_metadata = read(work / "vae.safetensors")
    metadata = {
        "made_by": "tools/tiny/train.py",
        "data": "procedural scenes of tools/tiny/scenes.py, 256x512",
        "vae_steps": vae_metadata["step"],
        "decoder_steps": decoder_steps,
        f"{network}_steps": steps,
        "torch": torch.__version__,
        "note": args.note,
    }
    if args.part == "refiner":
        metadata["started_from"] = "tiny_base.safetensors, narrowed, and taught by it"
    output = Path(args.folder) / f"tiny_{args.part}.safetensors"
    write(output, {k: v.half() for k, v in tensors.items()}, metadata)
