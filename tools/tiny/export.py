"""Joins the trained parts into one checkpoint with the published key names."""

from collections.abc import Mapping
from pathlib import Path

import torch

from tools.tiny.autoencoder import DECODER_PARTS
from tools.tiny.checkpoints import part, read, write

NETWORKS = {"base": "unet", "refiner": "refiner"}  # part of the family: its training state


def export(work: Path, name: str, folder: Path, note: str) -> Path:
    """Write half-precision weights of a part of the family from the averages of its training so
    far: UNet and towers, and the autoencoder.

    Args:
        work: the folder of the states.
        name: "base" or "refiner".
        folder: gets tiny_<name>.safetensors.
        note: added to the metadata (device, time).
    """
    tensors, steps = read(work / f"{NETWORKS[name]}.safetensors")
    weights = part(tensors, "ema")
    first_stage, made = read(work / "first_stage.safetensors")
    metadata = {
        "made_by": "python -m tools.tiny.train all",
        "data": "procedural scenes of tools/tiny/scenes.py, 256x512",
        **said("autoencoder", made),
        **said(NETWORKS[name], steps),
        "torch": torch.__version__,
        "note": note,
    }
    if (work / "decoder.safetensors").exists():
        trained, steps = read(work / "decoder.safetensors")
        average = part(trained, "ema").items()
        first_stage |= {k: v for k, v in average if k.startswith(DECODER_PARTS)}
        metadata |= said("decoder", steps)
    if name == "refiner":
        metadata["started_from"] = "tiny_base.safetensors, narrowed, and taught by it"
    weights |= {f"first_stage_model.{k}": v for k, v in first_stage.items()}
    path = folder / f"tiny_{name}.safetensors"
    write(path, {k: v.half() for k, v in weights.items()}, metadata)
    return path


def said(name: str, spent: Mapping[str, str]) -> dict[str, str]:
    """What went into a part, as metadata."""
    return {f"{name}_{key}": value for key, value in spent.items()}
