"""Training of the tiny UNet together with its two text towers, on latents of scenes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sgm.config import instantiate_from_config, load_config
from sgm.models.diffusion import DiffusionEngine
from tools.tiny.latents import LatentScenes
from tools.tiny.practice import FACTOR, GRID, practise

TEXT_DROPOUT = 0.1
ORIGINAL_SIZE = (1024, 1024)  # the constant that inference gives
TEXT_WIDTH_OF_VECTOR = 32
# Windows in latents, and samples a step: around an object, half a scene, and whole ones, as an edit
# has. Of the smaller ones there are more for the time.
CLOSE, HALF = (24, 24), (32, 32)
BATCH = {CLOSE: 16, HALF: 9, GRID: 5}
REGION_WEIGHT = 4.0  # of the error where the named object is, against that around it
# Weights of the noise levels, which grow with the noise's deviation. Where something stands is
# decided while a picture is mostly noise; there the prediction of noise is easy and its error
# small, so that without a weight next to nothing is learned of it.
LEAST_WEIGHT, LARGEST_WEIGHT = 0.1, 8.0
# An edit starts from a picture that lacks the object which its prompt names, and guidance makes too
# much of it at first. So what the network is given differs from a noised picture with the object.
# That is practised: in this share of the samples with an object there is less of it in what is
# noised, down to nothing, or more, so that the network learns to bring it and not to overdo it.
CHANGED_SHARE = 0.5
NOTHING_SHARE = 0.4  # of these; only where the text is kept, as without it nobody asks for it
MOST, LEAST = 0.5, 1.0  # how much more of it, and how much less, of the object
# Below the first level of noise it is there as it is; above the second it may be missing whole.
# In between the picture itself decides on its shape, as in any training.
CHANGED_LEVELS = (0.8, 5.0)
REFRESH = 200  # steps after which scenes that were encoded meanwhile join


def window_size(step: int, done: float) -> tuple[int, int]:
    """Which window a step trains on: what is around an object and halves of scenes at first, then
    whole scenes among them, at the end these alone."""
    if done >= 0.8:
        return GRID
    small, large = (CLOSE, HALF) if done < 0.45 else (HALF, GRID)
    return large if step % 2 else small


class Trainable(nn.Module):
    """UNet and text towers as one module, under the checkpoint's names."""

    def __init__(self, engine: DiffusionEngine) -> None:
        super().__init__()
        self.model = engine.model
        self.conditioner = engine.conditioner
        self.requires_grad_(True)

    def used(self) -> list[nn.Parameter]:
        """The parameters that an edit uses."""
        return [p for n, p in self.named_parameters() if "logit_scale" not in n]


def build(config: str) -> DiffusionEngine:
    """The engine of a configuration as it starts: residual branches are the identity."""
    engine = instantiate_from_config(load_config(config)["model"])
    for block in engine.model.modules():
        for name in ("out_layers", "proj_out"):
            layer = getattr(block, name, None)
            layer = layer[-1] if isinstance(layer, nn.Sequential) else layer
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
    return engine


@dataclass(frozen=True)
class Batch:
    """Windows of scenes.

    Attributes:
        z: scaled latents, [B, 4, h, w].
        absence: what they change by without the object that the caption names, times the share of
            it that is missing (below 0: that there is too much of); [B, 4, h, w].
        weights: of the error, [B, 1, h, w].
        texts: captions.
        kept: bool [B], False where the text is dropped.
        sizes: size conditioning, int64 [B, 2] each.
    """

    z: Tensor
    absence: Tensor
    weights: Tensor
    texts: list[str]
    kept: Tensor
    sizes: dict[str, Tensor]

    def to(self, ready: Callable[[Tensor], Tensor]) -> "Batch":
        """With all tensors passed through a function."""
        tensors = (ready(value) for value in (self.z, self.absence, self.weights))
        sizes = {name: ready(value) for name, value in self.sizes.items()}
        return Batch(*tensors, self.texts, ready(self.kept), sizes)

    def noised(self, sigma: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is given at noise levels `sigma` [B, 1, 1, 1], and the noise that it is
        to find in it, so that without it `z` is left; both [B, 4, h, w]."""
        first, second = (math.log(level) for level in CHANGED_LEVELS)
        missing = self.absence * ((sigma.log() - first) / (second - first)).clamp(0, 1)
        noise = noise + missing / sigma
        return (self.z + sigma * noise) / (sigma**2 + 1).sqrt(), noise


def missing_share(rng: np.random.Generator, kept: bool) -> float:
    """How much of an object is missing in a sample: 0 for nothing, 1 for all of it, below 0 where
    there is too much of it."""
    changed, nothing, share = rng.random() < CHANGED_SHARE, rng.random(), rng.uniform(-MOST, LEAST)
    if not changed:
        return 0.0
    return 1.0 if kept and nothing < NOTHING_SHARE else float(share if kept else share / 2)


class Batches:
    """Batches of windows of scenes, each a function of its number (and of the scenes there are)."""

    def __init__(self, data: LatentScenes, factor: int = 1) -> None:
        self.data, self.factor = data, factor

    def __call__(self, step: int, size: tuple[int, int]) -> Batch:
        """The batch of a step, of windows of `size` latents."""
        if step % REFRESH == 0:
            self.data.refresh()
        rng = np.random.default_rng([11, step])
        count = self.factor * BATCH[size]
        crops, absences, texts, corners = [], [], [], []
        weights = torch.ones(count, 1, *size)
        kept = torch.from_numpy(rng.random(count) >= TEXT_DROPOUT)
        for row, seed in enumerate(rng.integers(0, len(self.data), count)):
            seen = practise(int(seed), size, rng)
            top, left, bottom, right = seen.window
            z, bare = (part[:, top:bottom, left:right] for part in self.data[seed])
            crops.append(z)
            absences.append((bare - z) * missing_share(rng, bool(kept[row])) * seen.named)
            corners.append((top * FACTOR, left * FACTOR))
            top, left, bottom, right = seen.region
            weights[row, :, top:bottom, left:right] = REGION_WEIGHT
            texts.append(seen.text)
        sizes = {
            "original_size_as_tuple": torch.tensor([ORIGINAL_SIZE] * count),
            "crop_coords_top_left": torch.tensor(corners),
            "target_size_as_tuple": torch.tensor([[n * FACTOR for n in size]] * count),
        }
        weights = weights / weights.mean((1, 2, 3), keepdim=True)
        return Batch(torch.stack(crops), torch.stack(absences), weights, texts, kept, sizes)


def conditioning(engine: DiffusionEngine, batch: Batch) -> dict[str, Tensor]:
    """Conditioning with the text zeroed where it is dropped."""
    told = engine.conditioner({"txt": batch.texts} | batch.sizes)
    keep = batch.kept.to(told["vector"])[:, None]
    pooled, rest = told["vector"].tensor_split([TEXT_WIDTH_OF_VECTOR], dim=1)
    return {
        "crossattn": told["crossattn"] * keep[:, :, None],
        "vector": torch.cat([pooled * keep, rest], dim=1),
    }


def random_levels(count: int) -> Tensor:
    """Noise levels, int64 [count], one in each of as many equal parts of the 1000-step table."""
    return ((torch.arange(count) + torch.rand(count)) * 1000 / count).long().clamp(max=999)


def loss_of(engine: DiffusionEngine, batch: Batch) -> Tensor:
    """Noise prediction error (Ho et al., 2020), weighted by the level: between that of the noise
    and that of the picture, whose square is the noise's times its variance."""
    levels = random_levels(len(batch.z)).to(batch.z.device)
    sigma = engine.denoiser.sigmas.to(batch.z.device)[levels][:, None, None, None]
    scaled, noise = batch.noised(sigma, torch.randn(batch.z.shape).to(batch.z))
    predicted = engine.model(scaled, levels, conditioning(engine, batch)).float()
    weights = batch.weights * sigma.clamp(LEAST_WEIGHT, LARGEST_WEIGHT)
    return (weights * (predicted - noise) ** 2).mean()
