"""The data set of UNet and decoder: latents of whole scenes, in files of `SHARD` each.

Beside each lie the latents of the same scene without the object whose turn it is.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sgm.models.autoencoder import AutoencoderKL
from tools.tiny.checkpoints import read, write
from tools.tiny.layout import Scene
from tools.tiny.practice import HELD_OUT_SEED, SIZE, practice_scene
from tools.tiny.scenes import render

logger = logging.getLogger(__name__)

SCALE_FACTOR = 0.13025  # as in the configuration: scaled latents have about unit variance
SHARD = 140  # scenes a file: a whole number of turns of the objects


def drawn(seed: int, scene_of: Callable[[int], Scene] = practice_scene) -> np.ndarray:
    """The picture of a training seed, uint8 [256, 512, 3]."""
    return np.array(render(scene_of(seed), *SIZE))


def to_input(pictures: np.ndarray) -> Tensor:
    """uint8 [N, 256, 512, 3] as a float tensor [N, 3, 256, 512] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


class Pictures:
    """The pictures of training seeds: drawn when asked for, or `count` of them beforehand by all
    cores, and then only those.

    Args:
        scene_of: what a seed shows.

    Attributes:
        seeds: how many there are, from 0 on.
    """

    def __init__(self, count: int = 0, scene_of: Callable[[int], Scene] = practice_scene) -> None:
        self.seeds, self.scene_of = count or HELD_OUT_SEED, scene_of
        self.kept: list[np.ndarray] = []
        if count:
            with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                draw = partial(drawn, scene_of=scene_of)
                self.kept = list(pool.map(draw, range(count), chunksize=32))

    def __call__(self, seed: int) -> np.ndarray:
        """uint8 [256, 512, 3]"""
        return self.kept[seed] if self.kept else drawn(seed, self.scene_of)


@torch.no_grad()
def normalise(vae: AutoencoderKL, count: int = 196) -> None:
    """Fold mean and deviation of the latents into the 1x1 convolutions around them, so that
    `SCALE_FACTOR` times a latent has mean 0 and deviation 1 in every channel."""
    device = vae.quant_conv.weight.device
    means = [vae.posterior(to_input(drawn(n)[None]).to(device)).mode() for n in range(count)]
    samples = torch.cat(means)
    mean = samples.mean(dim=(0, 2, 3))
    gain = 1 / (samples.std(dim=(0, 2, 3)) * SCALE_FACTOR)
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] *= gain[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) * gain
    quant.bias[channels:] += 2 * gain.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]


def encoded(vae: AutoencoderKL, pictures: list[np.ndarray]) -> Tensor:
    """Scaled latents [N, 4, 32, 64] float16 of pictures [256, 512, 3]."""
    x = to_input(np.stack(pictures)).to(vae.quant_conv.weight.device)
    return (vae.posterior(x).mode() * SCALE_FACTOR).half().cpu()


def shards(folder: Path) -> list[Path]:
    """The files of a data set, in order."""
    return sorted(folder.glob("*.safetensors"))


@torch.inference_mode()
def extend(
    folder: Path,
    vae: AutoencoderKL,
    pictures: Pictures,
    bare: Pictures,
    scenes: int,
    stop: Callable[[], bool],
    batch: int = 1,
) -> None:
    """Encode more scenes, until there are `scenes` or `stop()` holds. What is there stays.

    Args:
        pictures, bare: of the scenes as they are, and without the object whose turn it is.
    """
    for start in range(SHARD * len(shards(folder)), scenes, SHARD):
        if stop():
            return
        tensors = {}
        for name, shown in (("latents", pictures), ("bare", bare)):
            groups = torch.arange(start, start + SHARD).split(batch)
            tensors[name] = torch.cat([encoded(vae, [*map(shown, g.tolist())]) for g in groups])
        write(folder / f"{start:06d}.safetensors", tensors, {})
        logger.info("%d scenes encoded", start + SHARD)


class LatentScenes:
    """Scaled latents by training seed, as they are and without the object whose turn it is;
    `refresh` adds what is new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parts: list[dict[str, Tensor]] = []
        self.refresh()

    def refresh(self) -> None:
        self.parts += [read(path)[0] for path in shards(self.folder)[len(self.parts) :]]

    def __len__(self) -> int:
        return SHARD * len(self.parts)

    def __getitem__(self, seed: int) -> tuple[Tensor, Tensor]:
        """The latents of a scene with and without the object, [4, 32, 64] float32 each."""
        part = self.parts[seed // SHARD]
        return part["latents"][seed % SHARD].float(), part["bare"][seed % SHARD].float()
