"""The data set of UNet and decoder: latents of whole scenes, in files of `SHARD` each.

Beside each lie the latents of the same scene without the object whose turn it is, and with masks
on it.
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
from tools.tiny.masks import MASKS, NOTHING, WHOLE
from tools.tiny.practice import FACTOR, GRID, bare_scene, painted, practice_scene
from tools.tiny.scenes import SIZE, render

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


def encoded(vae: AutoencoderKL, pictures: np.ndarray, masks: np.ndarray | None = None) -> Tensor:
    """Scaled latents [N, 4, 32, 64] float16 of pictures uint8 [N, 256, 512, 3], with grey where
    `masks` (bool [N, 256, 512]) are True."""
    device = vae.quant_conv.weight.device
    x = to_input(sent(pictures, device))
    if masks is not None:
        x = x * ~sent(masks, device)[:, None]
    return (vae.posterior(x).mode() * SCALE_FACTOR).half().cpu()


def in_latents(masks: np.ndarray) -> Tensor:
    """Masks [..., 256, 512] in latents, bool [..., 32, 64]: those of which any pixel is masked."""
    blocks = masks.reshape(*masks.shape[:-2], GRID[0], FACTOR, GRID[1], FACTOR)
    return torch.from_numpy(blocks.any(axis=(-3, -1)))


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
    group = 1 if vae.quant_conv.weight.device.type == "cpu" else 14
    parts: dict[str, list[Tensor]] = {"latents": [], "bare": [], "masked": [], "masks": []}
    for seeds in torch.arange(int(path.stem), int(path.stem) + count).split(group):
        scenes = np.stack([drawn(n) for n in seeds.tolist()])
        masks = [[painted(n, i).mask for i in range(MASKS)] for n in seeds.tolist()]
        under = np.array(masks)  # [N, MASKS, 256, 512]
        masked = [encoded(vae, scenes, under[:, i]) for i in range(MASKS)]
        parts["latents"].append(encoded(vae, scenes))
        parts["bare"].append(encoded(vae, np.stack([drawn(n, bare_scene) for n in seeds.tolist()])))
        parts["masked"].append(torch.stack(masked, dim=1))
        parts["masks"].append(in_latents(under))
    tensors = {name: torch.cat(made) for name, made in parts.items()}
    hidden = np.full((1, *SIZE), True)
    write(path, tensors | {"grey": encoded(vae, scenes[:1], hidden)[0]}, {})


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
        masked: of the scenes with grey where a mask is, float16 [N, MASKS, 4, 32, 64].
        masks: the latents that are masked, bool [N, MASKS, 32, 64].
        grey: of a picture that is masked whole, float16 [4, 32, 64].
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.read = folder, set[Path]()
        self.seeds = np.zeros(0, np.int64)
        half = {"dtype": torch.float16, "device": device}
        self.latents = self.bare = torch.zeros(0, 4, *GRID, **half)
        self.masked = torch.zeros(0, MASKS, 4, *GRID, **half)
        self.grey = torch.zeros(4, *GRID, **half)
        self.masks = torch.zeros(0, MASKS, *GRID, dtype=torch.bool, device=device)
        self.refresh()

    def refresh(self) -> None:
        new = {path: read(path)[0] for path in shards(self.folder) if path not in self.read}
        if not new:
            return
        seeds = [int(path.stem) + np.arange(len(parts["bare"])) for path, parts in new.items()]
        self.seeds = np.concatenate([self.seeds, *seeds])
        self.latents, self.bare, self.masked, self.masks = (
            torch.cat([old, *(parts[name].to(old) for parts in new.values())])
            for old, name in (
                (self.latents, "latents"),
                (self.bare, "bare"),
                (self.masked, "masked"),
                (self.masks, "masks"),
            )
        )
        self.grey = next(iter(new.values()))["grey"].to(self.grey)
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
        index, down, right = self.places(rows, corners, size)
        # Indices around a slice: what they index comes first, and the channels last.
        at = index, slice(None), down, right
        z, bare = (part[at].permute(0, 3, 1, 2).float() for part in (self.latents, self.bare))
        return z, bare

    def places(
        self, rows: np.ndarray, corners: np.ndarray, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the latents of windows: rows of scenes [B, 1, 1], of latents [B, h, 1], and
        columns [B, 1, w]; arguments as of `windows`."""
        device = self.latents.device
        index, first = (sent(numbers, device) for numbers in (rows, corners))
        down, right = (
            first[:, axis, None] + torch.arange(size[axis], device=device) for axis in (0, 1)
        )
        return index[:, None, None], down[:, :, None], right[:, None, :]

    def shown(
        self, rows: np.ndarray, corners: np.ndarray, size: tuple[int, int], masks: np.ndarray
    ) -> Tensor:
        """What an inpainting network reads beside windows of latents: which are masked, and those
        of the masked scenes; [B, 5, *size] float32, channels last.

        Args:
            rows, corners: as of `windows`.
            masks: their numbers, `WHOLE` or `NOTHING`, int64 [B].
        """
        index, down, right = self.places(rows, corners, size)
        number = sent(masks, self.latents.device)[:, None, None]
        one = number.clamp(min=0)
        masked = self.masks[index, one, down, right] & (number != NOTHING) | (number == WHOLE)
        z = self.masked[index, one, :, down, right]  # [B, h, w, 4], as the others
        whole, known = self.grey[:, down, right].movedim(0, -1), self.latents[index, :, down, right]
        z = torch.where(number[..., None] == WHOLE, whole, z)
        z = torch.where(number[..., None] == NOTHING, known, z)
        return torch.cat([masked[..., None], z], dim=-1).permute(0, 3, 1, 2).float()
