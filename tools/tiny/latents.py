"""The data set of the UNet: latents of whole scenes, their captions and where their objects are."""

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from sgm.config import instantiate_from_config, load_config
from sgm.models.autoencoder import AutoencoderKL
from tools.tiny.autoencoder import SIZE, picture
from tools.tiny.checkpoints import read, write
from tools.tiny.scenes import caption, object_box, sample_scene

logger = logging.getLogger(__name__)

SCALE_FACTOR = 0.13025  # as in the configuration: scaled latents have about unit variance
CAPTIONS_PER_SCENE = 3


@dataclass(frozen=True)
class LatentScenes:
    """Scaled latents [N, 4, 32, 64] float16, captions a scene, and a box that crops keep.

    Attributes:
        boxes: per scene (top, left, bottom, right) of its first object in pixels, or None.
    """

    latents: Tensor
    captions: list[list[str]]
    boxes: list[tuple[int, int, int, int] | None]


def load_latents(path: Path) -> LatentScenes:
    """Read what `make_latents` wrote."""
    tensors, metadata = read(path)
    return LatentScenes(
        tensors["latents"], json.loads(metadata["captions"]), json.loads(metadata["boxes"])
    )


def load_first_stage(config: str, path: Path) -> AutoencoderKL:
    """The autoencoder of a configuration with the weights of a file."""
    entry = load_config(config)["model"]["params"]["first_stage_config"]
    vae = instantiate_from_config(entry)
    vae.load_state_dict(read(path)[0])
    return vae.eval()


@torch.no_grad()
def normalise(vae: AutoencoderKL, count: int = 200) -> None:
    """Fold mean and deviation of the latents into the 1x1 convolutions around them, so that
    `SCALE_FACTOR` times a latent has mean 0 and deviation 1 in every channel."""
    samples = torch.cat([vae.posterior(picture(seed)[None]).mode() for seed in range(count)])
    mean = samples.mean(dim=(0, 2, 3))
    gain = 1 / (samples.std(dim=(0, 2, 3)) * SCALE_FACTOR)
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] *= gain[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) * gain
    quant.bias[channels:] += 2 * gain.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]


@torch.inference_mode()
def make_latents(args: argparse.Namespace) -> None:
    """Normalise the trained autoencoder and encode `args.scenes` scenes."""
    work = Path(args.work)
    entry = load_config(args.config)["model"]["params"]["first_stage_config"]
    vae = instantiate_from_config(entry)
    tensors, _ = read(work / "vae.safetensors")
    vae.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    vae.eval()
    normalise(vae)
    save_file(vae.state_dict(), work / "first_stage.safetensors")
    vae.to(args.device, memory_format=torch.channels_last)
    latents, captions, boxes = [], [], []
    for seed in tqdm(range(args.scenes), desc="encoding scenes", unit="scene"):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng)
        captions.append([caption(scene, rng) for _ in range(CAPTIONS_PER_SCENE)])
        named = [o for o in scene.objects if o.name != "sun"] or list(scene.objects)
        boxes.append(object_box(named[0], *SIZE) if named else None)
        x = picture(seed)[None].to(args.device)
        latents.append((vae.encode(x) * SCALE_FACTOR).half().cpu())
    metadata = {"captions": json.dumps(captions), "boxes": json.dumps(boxes)}
    write(work / "latents.safetensors", {"latents": torch.cat(latents)}, metadata)
