"""The data set of the UNet and of the decoder: latents of whole scenes, in files of `SHARD` each."""

import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sgm.models.autoencoder import AutoencoderKL
from tools.tiny.checkpoints import read, write
from tools.tiny.practice import SIZE, practice_scene
from tools.tiny.scenes import render

logger = logging.getLogger(__name__)

SCALE_FACTOR = 0.13025  # as in the configuration: scaled latents have about unit variance
SHARD = 140  # scenes a file: a whole number of turns of the objects


def drawn(seed: int) -> np.ndarray:
    """The picture of a training seed, uint8 [256, 512, 3]."""
    return np.asarray(render(practice_scene(seed), *SIZE))


def to_input(pictures: np.ndarray) -> Tensor:
    """uint8 [N, 256, 512, 3] as a float tensor [N, 3, 256, 512] in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_many(seeds: range, workers: int) -> Iterator[np.ndarray]:
    """The pictures of training seeds, in order, drawn by `workers` processes beside this one."""
    if workers <= 1:
        yield from map(drawn, seeds)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(drawn, seeds, chunksize=SHARD // 4)


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


def shards(folder: Path) -> list[Path]:
    """The files of a data set, in order."""
    return sorted(folder.glob("*.safetensors"))


@torch.inference_mode()
def extend(folder: Path, vae: AutoencoderKL, scenes: int, deadline: float, batch: int = 1) -> None:
    """Encode more scenes, until there are `scenes` or the time `deadline` (`time.time`) is over.

    A file that is there stays; one is written when it is full.
    """
    device, workers = vae.quant_conv.weight.device, len(os.sched_getaffinity(0)) if batch > 1 else 1
    first = SHARD * len(shards(folder))
    pictures = draw_many(range(first, scenes), workers)
    for start in range(first, scenes, SHARD):
        latents = []
        for begin in range(0, SHARD, batch):
            count = min(batch, SHARD - begin)
            x = to_input(np.stack([next(pictures) for _ in range(count)])).to(device)
            latents.append((vae.posterior(x).mode() * SCALE_FACTOR).half().cpu())
        write(folder / f"{start:06d}.safetensors", {"latents": torch.cat(latents)}, {})
        logger.info("%d scenes encoded", start + SHARD)
        if time.time() > deadline:
            return


class LatentScenes:
    """Scaled latents [N, 4, 32, 64] float16 by training seed; `refresh` adds what is new."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.parts = folder, []
        self.refresh()

    def refresh(self) -> None:
        for path in shards(self.folder)[len(self.parts) :]:
            self.parts.append(read(path)[0]["latents"])

    def __len__(self) -> int:
        return SHARD * len(self.parts)

    def __getitem__(self, seed: int) -> Tensor:
        """The latents of a scene, [4, 32, 64] float32."""
        return self.parts[seed // SHARD][seed % SHARD].float()
