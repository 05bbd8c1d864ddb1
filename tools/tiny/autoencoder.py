"""Training of the tiny autoencoder: all of it on crops of scenes, its decoder on whole ones too."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.config import instantiate_from_config, load_config
from sgm.models.autoencoder import AutoencoderKL
from sgm.modules.diffusionmodules.model import AttnBlock, Downsample, ResnetBlock, Upsample
from tools.tiny.latents import SCALE_FACTOR, LatentScenes, drawn, sent, to_input
from tools.tiny.practice import FACTOR, GRID, HELD_OUT_SEED, practise
from tools.tiny.scenes import SIZE, render, sample_scene
from tools.tiny.workers import Ahead

PIXELS = 2**16  # a step of the whole autoencoder
KL_WEIGHT = 1e-4
HALF = (32, 32)  # latents of a window of the decoder's training
DECODER_PARTS = ("decoder.", "post_quant_conv.")
# Deviation of what is added to scaled latents: those that an edit makes are not exact.
LATENT_NOISE = 0.03


def build(config: str) -> AutoencoderKL:
    """The autoencoder of a configuration, as `initialise` starts it."""
    vae = instantiate_from_config(load_config(config)["model"]["params"]["first_stage_config"])
    initialise(vae)
    return vae


def initialise(vae: AutoencoderKL) -> None:
    """Start as an autoencoder of mean colours: residual branches at zero, resampling by identity
    kernels, little posterior noise. From the usual random start training takes many times longer.
    """
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, ResnetBlock):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
                if module.shortcut() is not None:
                    _add_identity(module.nin_shortcut.weight, slice(0, 1))
            elif isinstance(module, AttnBlock):
                nn.init.zeros_(module.proj_out.weight)
                nn.init.zeros_(module.proj_out.bias)
            elif isinstance(module, Upsample):
                _add_identity(module.conv.weight, slice(1, 2))
            elif isinstance(module, Downsample):
                _add_identity(module.conv.weight, slice(0, 2))
        half = vae.quant_conv.out_channels // 2
        vae.quant_conv.weight[half:] *= 0.1
        vae.quant_conv.bias[half:] = -6.0


def _add_identity(weight: Tensor, taps: slice) -> None:
    """Mix a kernel that averages each channel over `taps` into a damped random one."""
    weight.mul_(0.3)
    for channel in range(min(weight.shape[:2])):
        window = weight[channel, channel, taps, taps]
        window += 1 / window.numel()


def crop_size(done: float) -> tuple[int, int]:
    """Small crops first, for variety; whole pictures last, for their normalisation statistics."""
    return (64, 64) if done < 0.5 else (128, 128) if done < 0.8 else SIZE


def crops(step: int, size: tuple[int, int], factor: int = 1) -> np.ndarray:
    """Crops of scenes, uint8 [N, *size, 3], PIXELS * factor in all, most of them around objects."""
    rng = np.random.default_rng([7, step])
    count = factor * max(1, PIXELS // (size[0] * size[1]))
    window = (size[0] // FACTOR, size[1] // FACTOR)
    made: list[np.ndarray] = []
    while len(made) < count:
        seed = int(rng.integers(HELD_OUT_SEED))
        picture = drawn(seed)
        for _ in range(min(4, count - len(made))):
            top, left, bottom, right = (FACTOR * n for n in practise(seed, window, rng).window)
            made.append(picture[top:bottom, left:right])
    return np.stack(made)


def loss_of(vae: AutoencoderKL, x: Tensor) -> Tensor:
    """Reconstruction error and a little of the posterior's divergence from a normal one."""
    posterior = vae.posterior(x)
    kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).mean()
    return difference(vae.decode(posterior.sample()), x) + KL_WEIGHT * kl


def difference(made: Tensor, x: Tensor) -> Tensor:
    """The error of a reconstruction."""
    return F.l1_loss(made, x) + 2 * F.mse_loss(made, x)


def decoder_crops(
    step: int, size: tuple[int, int], rows: np.ndarray, seeds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A window of `size` latents of each of the scenes with these rows and seeds.

    Returns:
        The rows; (top, left) in latents, int64 [N, 2]; the pictures, uint8 [N, 8 h, 8 w, 3].
    """
    rng = np.random.default_rng([19, step])
    windows = [practise(seed, size, rng).window for seed in seeds.tolist()]
    pictures = [
        drawn(seed)[FACTOR * top : FACTOR * bottom, FACTOR * left : FACTOR * right]
        for seed, (top, left, bottom, right) in zip(seeds.tolist(), windows, strict=True)
    ]
    return rows, np.array([window[:2] for window in windows]), np.stack(pictures)


class DecoderBatches:
    """Latents and their pictures: halves of scenes, and whole ones in every third step and at the
    end.

    Args:
        factor: whole scenes in a step; of halves there are twice as many.
        pool: worker processes that draw ahead; None to draw when needed.
    """

    def __init__(
        self, data: LatentScenes, factor: int = 1, pool: ProcessPoolExecutor | None = None
    ) -> None:
        self.data, self.factor = data, factor
        self.drawn = Ahead(pool, self.task)

    def task(
        self, step: int, done: float
    ) -> Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The call that draws the pictures of a step, with a part `done` of the course."""
        size = GRID if step % 3 == 2 or done > 0.85 else HALF
        count = self.factor * GRID[1] // size[1]
        rows = np.random.default_rng([23, step]).integers(0, len(self.data), count)
        return partial(decoder_crops, step, size, rows, self.data.seeds[rows])

    def __call__(self, step: int, done: float) -> tuple[Tensor, Tensor]:
        """Unscaled latents [N, 4, h, w] and pictures [N, 3, 8 h, 8 w] of a step."""
        rows, corners, pictures = self.drawn(step, done)
        size = pictures.shape[1] // FACTOR, pictures.shape[2] // FACTOR
        z, _ = self.data.windows(rows, corners, size)
        z = z + LATENT_NOISE * torch.randn_like(z)
        return z / SCALE_FACTOR, to_input(sent(pictures, z.device))


@torch.inference_mode()
def held_out_psnr(vae: AutoencoderKL, count: int = 8) -> float:
    """Mean reconstruction PSNR in dB on whole held-out scenes, as pictures in [0, 1]."""
    device, values = vae.quant_conv.weight.device, []
    for index in range(count):
        scene = sample_scene(np.random.default_rng(HELD_OUT_SEED + index))
        x = to_input(torch.from_numpy(np.array(render(scene, *SIZE)))[None]).to(device)
        made = vae.decode(vae.posterior(x).mode()).clamp(-1, 1)
        values.append(10 * torch.log10(4 / F.mse_loss(made, x)).item())
    return float(np.mean(values))
