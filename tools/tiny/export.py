"""Joins the trained parts into files: checkpoints with the published key names, and a LoRA."""

from collections.abc import Mapping
from pathlib import Path

import torch

from tools.tiny.autoencoder import DECODER_PARTS
from tools.tiny.checkpoints import part, read, write
from tools.tiny.turbo import lora_tensors

# Part of the family: its training state.
NETWORKS = {"base": "unet", "refiner": "refiner", "turbo": "turbo"}
MADE = {
    "made_by": "python -m tools.tiny.train all",
    "data": "procedural scenes of tools/tiny/scenes.py, 256x512",
    "torch": torch.__version__,
}


def export(work: Path, name: str, folder: Path, note: str) -> Path:
    """Write half-precision weights of a part of the family from the averages of its training so
    far, into a file of the folder.

    Args:
        work: the folder of the states.
        name: of `NETWORKS`.
        note: added to the metadata (device, time).
    """
    if name == "turbo":
        return export_lora(work, folder, note)
    return export_checkpoint(work, name, folder, note)


def export_lora(work: Path, folder: Path, note: str) -> Path:
    """The LoRA for few steps of the base."""
    path = folder / "tiny_turbo_lora.safetensors"
    tensors, steps = read(work / "turbo.safetensors")
    weights = lora_tensors(part(tensors, "ema"))
    metadata = MADE | said("turbo", steps) | {"for": "tiny_base.safetensors", "note": note}
    write(path, {k: v.half() for k, v in weights.items()}, metadata)
    return path


def export_checkpoint(work: Path, name: str, folder: Path, note: str) -> Path:
    """Base or refiner: UNet and towers, and the autoencoder. UNet and towers that have no state
    stay those of the file that is there."""
    path, state = folder / f"tiny_{name}.safetensors", work / f"{NETWORKS[name]}.safetensors"
    first_stage, made = read(work / "first_stage.safetensors")
    metadata = MADE | said("autoencoder", made)
    if state.exists():
        tensors, steps = read(state)
        weights = part(tensors, "ema")
        metadata |= said(NETWORKS[name], steps)
    else:
        tensors, before = read(path)
        weights = {k: v for k, v in tensors.items() if not k.startswith("first_stage_model.")}
        metadata = before | metadata
    metadata["note"] = note
    if (work / "decoder.safetensors").exists():
        trained, steps = read(work / "decoder.safetensors")
        average = part(trained, "ema").items()
        first_stage |= {k: v for k, v in average if k.startswith(DECODER_PARTS)}
        metadata |= said("decoder", steps)
    if name == "refiner":
        metadata["started_from"] = "tiny_base.safetensors, narrowed, and taught by it"
    weights |= {f"first_stage_model.{k}": v for k, v in first_stage.items()}
    write(path, {k: v.half() for k, v in weights.items()}, metadata)
    return path


def said(name: str, spent: Mapping[str, str]) -> dict[str, str]:
    """The steps and seconds that went into a part, as metadata."""
    return {f"{name}_steps": spent["step"], f"{name}_seconds": spent["seconds"]}
