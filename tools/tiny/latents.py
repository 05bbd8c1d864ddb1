"""The data set of UNet and decoder: latents of whole scenes, in files of `SHARD` each.

Beside each lie the latents of the same scene without the object whose turn it is.
"""

import itertools
import logging
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sgm.config import instantiate_from_config, load_config
from sgm.models.autoencoder import AutoencoderKL
from tools.tiny.checkpoints import read, write
from tools.tiny.layout import Scene
from tools.tiny.practice import GRID, SIZE, bare_scene, practice_scene
from tools.tiny.scenes import render

logger = logging.getLogger(__name__)

SCALE_FACTOR = 0.13025  # as in the configuration: scaled latents have about unit variance
SHARD = 140  # scenes a file: a whole number of turns of the objects
LOOK_EVERY = 1.0  # seconds, whether it is time to stop
CONFIG = "configs/tiny-original.yaml"


def drawn(seed: int, scene_of: Callable[[int], Scene] = practice_scene) -> np.ndarray:
    """The picture of a training seed, uint8 [256, 512, 3]."""
    return np.array(render(scene_of(seed), *SIZE))


def sent(numbers: np.ndarray, device: torch.device) -> Tensor:
    """An array on a device, without waiting for what the device is at."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_input(pictures: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] as float32 [N, 3, H, W] in [-1, 1], channels last."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def normalise(vae: AutoencoderKL, count: int = 196) -> None:
    """Fold mean and deviation of the latents into the 1x1 convolutions around them, so that
    `SCALE_FACTOR` times a latent has mean 0 and deviation 1 in every channel."""
    device = vae.quant_conv.weight.device
    means = [vae.posterior(to_input(sent(drawn(n)[None], device))).mode() for n in range(count)]
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
    x = to_input(sent(np.stack(pictures), vae.quant_conv.weight.device))
    return (vae.posterior(x).mode() * SCALE_FACTOR).half().cpu()


def shards(folder: Path) -> list[Path]:
    """The files of a data set, in order."""
    return sorted(folder.glob("*.safetensors"))


def missing(folder: Path, scenes: int) -> list[Path]:
    """The files that a data set of so many scenes lacks; a file's name is its first seed."""
    paths = (folder / f"{start:06d}.safetensors" for start in range(0, scenes, SHARD))
    return [path for path in paths if not path.exists()]


@torch.inference_mode()
def make_shard(path: Path, vae: AutoencoderKL, count: int) -> None:
    """Draw and encode `count` scenes, from the seed that the file is named after on."""
    first = int(path.stem)
    group = 1 if vae.quant_conv.weight.device.type == "cpu" else 14
    tensors = {}
    for name, scene_of in (("latents", practice_scene), ("bare", bare_scene)):
        groups = torch.arange(first, first + count).split(group)
        made = [encoded(vae, [drawn(n, scene_of) for n in g.tolist()]) for g in groups]
        tensors[name] = torch.cat(made)
    write(path, tensors, {})


def load_first_stage(path: Path, device: str) -> AutoencoderKL:
    """The autoencoder of a training state, on a device."""
    vae = instantiate_from_config(load_config(CONFIG)["model"]["params"]["first_stage_config"])
    vae.load_state_dict(read(path)[0])
    return vae.eval().to(device, memory_format=torch.channels_last)


def work(path: Path, first_stage: Path, device: str, count: int) -> None:
    """The task of a worker process: one file."""
    make_shard(path, load_first_stage(first_stage, device), count)


def extend(
    folder: Path,
    first_stage: Path,
    device: str,
    scenes: int,
    pool: ProcessPoolExecutor | None,
    stop: Callable[[], bool],
) -> None:
    """Make files of latents until there are `scenes` or `stop()` holds. What is there stays.

    Args:
        first_stage: the state of the autoencoder.
        device: that encodes; each worker has its share of it.
        pool: worker processes, each of which makes a file at a time, and ends what it has begun;
            None to make them one after the other.
    """
    paths = missing(folder, scenes)
    if pool is None:
        vae = load_first_stage(first_stage, device)
        for path in itertools.takewhile(lambda _: not stop(), paths):
            make_shard(path, vae, SHARD)
            logger.info("%d scenes encoded", SHARD * len(shards(folder)))
        return
    tasks = {pool.submit(work, path, first_stage, device, SHARD) for path in paths}
    while tasks and not stop():
        done, tasks = wait(tasks, LOOK_EVERY, FIRST_COMPLETED)
        for task in done:
            task.result()
        if done:
            logger.info("%d scenes encoded", SHARD * len(shards(folder)))
    for task in tasks:
        task.cancel()


class LatentScenes:
    """Scaled latents of scenes as they are and without the object whose turn it is, on a device;
    `refresh` adds what is new.

    Attributes:
        seeds: of the scenes, int64 [N].
        latents, bare: float16 [N, 4, 32, 64].
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.read = folder, set[Path]()
        self.seeds = np.zeros(0, np.int64)
        self.latents = self.bare = torch.zeros(0, 4, *GRID, dtype=torch.float16, device=device)
        self.refresh()

    def refresh(self) -> None:
        new = {path: read(path)[0] for path in shards(self.folder) if path not in self.read}
        if not new:
            return
        seeds = [int(path.stem) + np.arange(len(parts["bare"])) for path, parts in new.items()]
        self.seeds = np.concatenate([self.seeds, *seeds])
        self.latents, self.bare = (
            torch.cat([old, *(parts[name].to(old) for parts in new.values())])
            for old, name in ((self.latents, "latents"), (self.bare, "bare"))
        )
        self.read.update(new)

    def __len__(self) -> int:
        return len(self.seeds)

    def windows(
        self, rows: np.ndarray, corners: np.ndarray, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Windows with and without the object, [B, 4, *size] float32 each, channels last.

        Args:
            rows: which scenes, int64 [B].
            corners: their (top, left) in latents, int64 [B, 2].
        """
        device = self.latents.device
        index, first = (sent(numbers, device) for numbers in (rows, corners))
        down, right = (
            first[:, axis, None] + torch.arange(size[axis], device=device) for axis in (0, 1)
        )
        at = index[:, None, None], slice(None), down[:, :, None], right[:, None, :]
        # Indices around a slice: what they index comes first, and the channels last.
        z, bare = (part[at].permute(0, 3, 1, 2).float() for part in (self.latents, self.bare))
        return z, bare
