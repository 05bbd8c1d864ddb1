"""Training of the tiny UNet together with its two text towers, on latents of scenes."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sgm.config import instantiate_from_config, load_config
from sgm.models.diffusion import DiffusionEngine
from sgm.modules.encoders.tokenizer import tokenize
from sgm.specs import MASKED_CHANNELS
from tools.tiny.captions import NOUNS
from tools.tiny.latents import LatentScenes, sent
from tools.tiny.masks import drawn_masks
from tools.tiny.practice import FACTOR, GRID, practise
from tools.tiny.workers import Ahead

TEXT_DROPOUT = 0.1
UNPADDED = -1  # the mark of a token that each text tower pads with its own
ORIGINAL_SIZE = 1024  # height and width: the constant that inference gives
TEXT_WIDTH_OF_VECTOR = 32
# Windows in latents, and samples a step: around an object, half a scene, and whole ones, as an edit
# has. Of the smaller ones there are more for the time.
CLOSE, HALF = (24, 24), (32, 32)
BATCH = {CLOSE: 16, HALF: 9, GRID: 5}
REGION_WEIGHT = 4.0  # of the error where the named object is, against that around it
KNOWN_WEIGHT = 0.3  # of the error where nothing is masked, which needs no more than subtraction
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
# How often the scenes of an object are shown, against the others. A horse's head and legs are
# harder to learn than leaves.
TURNS = {"horse": 4, "tree": 1, "house": 2, "castle": 1, "palm": 1, "boat": 2, "sun": 1}
REFRESH = 200  # steps after which scenes that were encoded meanwhile join


def window_size(step: int, done: float) -> tuple[int, int]:
    """Which window a step trains on: what is around an object and halves of scenes at first, then
    whole scenes among them, at the end these alone."""
    if done >= 0.88:
        return GRID
    sizes = (CLOSE, HALF) if done < 0.45 else (CLOSE, HALF, CLOSE, GRID)
    return sizes[step % len(sizes)]


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


def inpainting_engine(config: str) -> DiffusionEngine:
    """The engine of a configuration, whose UNet also reads a mask and the masked picture."""
    options = load_config(config)["model"]
    options["params"]["network_config"]["params"]["in_channels"] = MASKED_CHANNELS
    return instantiate_from_config(options)


def build(config: str) -> DiffusionEngine:
    """The engine of a configuration as it starts: residual branches are the identity."""
    engine = inpainting_engine(config)
    for block in engine.model.modules():
        for name in ("out_layers", "proj_out"):
            layer = getattr(block, name, None)
            layer = layer[-1] if isinstance(layer, nn.Sequential) else layer
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
    return engine


@dataclass(frozen=True)
class Views:
    """Which windows of which scenes a batch shows, and what is said of them: all of a batch but
    its latents.

    Attributes:
        size: of the windows, in latents.
        rows: of the scenes in the data set, int64 [B].
        corners: (top, left) of the windows in latents, int64 [B, 2].
        regions: (top, left, bottom, right) of what matters within the window, int64 [B, 4].
        missing: the share of the named object that is missing, float32 [B].
        kept: bool [B], False where the text is dropped.
        tokens: of the captions, int64 [B, 77], -1 after the end mark.
        masks: the numbers of the scenes' masks, `WHOLE` or `NOTHING`, int64 [B].
    """

    size: tuple[int, int]
    rows: np.ndarray
    corners: np.ndarray
    regions: np.ndarray
    missing: np.ndarray
    kept: np.ndarray
    tokens: np.ndarray
    masks: np.ndarray


def views(step: int, size: tuple[int, int], rows: np.ndarray, seeds: np.ndarray) -> Views:
    """The views of a step, of windows of `size` latents of the scenes with these rows and seeds."""
    rng = np.random.default_rng([17, step])
    kept = rng.random(len(rows)) >= TEXT_DROPOUT
    masks = drawn_masks(rng, len(rows))
    seen = [
        practise(seed, size, rng, None if mask < 0 else mask)
        for seed, mask in zip(seeds.tolist(), masks.tolist(), strict=True)
    ]
    missing = [
        missing_share(rng, keeps) * one.named
        for one, keeps in zip(seen, kept.tolist(), strict=True)
    ]
    return Views(
        size,
        rows,
        np.array([one.window[:2] for one in seen]),
        np.array([one.region for one in seen]),
        np.array(missing, np.float32),
        kept,
        tokenize([one.text for one in seen], UNPADDED).numpy(),
        masks,
    )


class Batch(NamedTuple):
    """Windows of scenes.

    Attributes:
        z: scaled latents, [B, 4, h, w].
        absence: what they change by, where they are masked, without the object that the caption
            names, times the share of it that is missing (below 0: that there is too much of);
            [B, 4, h, w].
        weights: of the error, [B, 1, h, w].
        tokens: of the captions, int64 [B, 77], -1 after the end mark.
        kept: bool [B], False where the text is dropped.
        sizes: size conditioning, int64 [B, 2] each.
        concat: what the network reads beside latents: a mask, 1 where to repaint, and latents of
            the masked scenes, [B, 5, h, w].
    """

    z: Tensor
    absence: Tensor
    weights: Tensor
    tokens: Tensor
    kept: Tensor
    sizes: dict[str, Tensor]
    concat: Tensor

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


def batch_of(
    data: LatentScenes, seen: Views, layout: torch.memory_format = torch.channels_last
) -> Batch:
    """The batch of views, on the device of the data, its latents in a memory layout."""
    device, (height, width) = data.latents.device, seen.size
    z, bare = (
        part.contiguous(memory_format=layout)
        for part in data.windows(seen.rows, seen.corners, seen.size)
    )
    numbers = seen.corners, seen.regions, seen.missing, seen.kept, seen.tokens
    corners, regions, missing, kept, tokens = (sent(array, device) for array in numbers)
    top, left, bottom, right = regions[:, :, None].unbind(1)
    down, along = torch.arange(height, device=device), torch.arange(width, device=device)
    rows, columns = (top <= down) & (down < bottom), (left <= along) & (along < right)
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    shown = data.shown(seen.rows, seen.corners, seen.size, seen.masks)
    concat = shown.contiguous(memory_format=layout)
    masked = concat[:, :1]
    weights = 1 + (REGION_WEIGHT - 1) * inside.float()
    weights = weights * (KNOWN_WEIGHT + (1 - KNOWN_WEIGHT) * masked)
    ones = torch.ones_like(corners)
    target = torch.stack([FACTOR * height * ones[:, 0], FACTOR * width * ones[:, 1]], 1)
    sizes = {
        "original_size_as_tuple": ORIGINAL_SIZE * ones,
        "crop_coords_top_left": FACTOR * corners,
        "target_size_as_tuple": target,
    }
    weights = weights / weights.mean((1, 2, 3), keepdim=True)
    absence = (bare - z) * missing[:, None, None, None] * masked
    return Batch(z, absence, weights, tokens, kept, sizes, concat)


def drawn_rows(number: int, seeds: np.ndarray, count: int) -> np.ndarray:
    """Rows of the scenes of batch `number`, int64 [count], each drawn as often as its object's
    `TURNS` say.

    Args:
        seeds: of all scenes, int64 [N].
    """
    turns = np.array([TURNS[noun] for noun in NOUNS])[seeds % len(NOUNS)]
    return np.random.default_rng([11, number]).choice(len(seeds), count, p=turns / turns.sum())


class Batches:
    """Batches of windows of scenes, each a function of its number (and of the scenes there are).

    Args:
        factor: how many times larger they are than `counts`.
        pool: worker processes that make their views ahead; None to make them when needed.
        first: the number of the batch of step 0.
        layout: of the latents in memory.
        counts: how many samples there are of windows of each size; None for `BATCH`.
    """

    def __init__(
        self,
        data: LatentScenes,
        factor: int = 1,
        pool: ProcessPoolExecutor | None = None,
        first: int = 0,
        layout: torch.memory_format = torch.channels_last,
        counts: Mapping[tuple[int, int], int] | None = None,
    ) -> None:
        self.data, self.factor, self.first, self.layout = data, factor, first, layout
        self.counts = BATCH if counts is None else counts
        self.views = Ahead(pool, self.task)

    def task(self, step: int, done: float) -> Callable[[], Views]:
        """The call that makes the views of a step, with a part `done` of the course."""
        number = self.first + step
        if number % REFRESH == 0:
            self.data.refresh()
        size = window_size(number, done)
        count = self.factor * self.counts[size]
        rows = drawn_rows(number, self.data.seeds, count)
        return partial(views, number, size, rows, self.data.seeds[rows])

    def __call__(self, step: int, done: float) -> Batch:
        """The batch of a step; steps are asked for one after the other."""
        return batch_of(self.data, self.views(step, done), self.layout)


def conditioning(engine: DiffusionEngine, batch: Batch) -> dict[str, Tensor]:
    """Conditioning of the base with the text zeroed where it is dropped."""
    told = engine.conditioner({"txt": batch.tokens} | batch.sizes)
    return with_text(told | {"concat": batch.concat}, batch.kept)


def with_text(told: dict[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
    """Conditioning of the base with the text zeroed where it is not kept, bool [B]."""
    keep = kept.to(told["vector"])[:, None]
    pooled, rest = told["vector"].tensor_split([TEXT_WIDTH_OF_VECTOR], dim=1)
    return told | {
        "crossattn": told["crossattn"] * keep[:, :, None],
        "vector": torch.cat([pooled * keep, rest], dim=1),
    }


def random_levels(count: int, device: torch.device) -> Tensor:
    """Noise levels, int64 [count], one in each of as many equal parts of the 1000-step table."""
    places = torch.arange(count, device=device) + torch.rand(count, device=device)
    return (places * 1000 / count).long().clamp(max=999)


def loss_of(engine: DiffusionEngine, batch: Batch) -> Tensor:
    """Noise prediction error (Ho et al., 2020), weighted by the level: between that of the noise
    and that of the picture, whose square is the noise's times its variance."""
    levels = random_levels(len(batch.z), batch.z.device)
    sigma = engine.denoiser.idx_to_sigma(levels)[:, None, None, None]
    scaled, noise = batch.noised(sigma, torch.randn_like(batch.z))
    predicted = engine.model(scaled, levels, conditioning(engine, batch)).float()
    weights = batch.weights * sigma.clamp(LEAST_WEIGHT, LARGEST_WEIGHT)
    return (weights * (predicted - noise) ** 2).mean()
