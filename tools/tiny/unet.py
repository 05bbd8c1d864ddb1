"""Training of the tiny UNet together with its two text towers, on latents of scenes."""

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.config import instantiate_from_config, load_config
from sgm.models.diffusion import DiffusionEngine
from tools.tiny.autoencoder import SIZE, learning_rate
from tools.tiny.checkpoints import Ema, TrainingState
from tools.tiny.latents import LatentScenes, load_latents

logger = logging.getLogger(__name__)

FACTOR = 8  # pixels per latent
TEXT_DROPOUT = 0.1
ORIGINAL_SIZE = (1024, 1024)  # the constant that inference gives
TEXT_WIDTH_OF_VECTOR = 32
# Windows in latents, and samples a step: first small crops around the object, for many steps in
# little time, then larger ones, with whole scenes among them at the end.
SMALL, MEDIUM, WHOLE = (16, 24), (24, 32), tuple(n // FACTOR for n in SIZE)
BATCH = {SMALL: 24, MEDIUM: 14, WHOLE: 6}


def window_size(step: int, steps: int) -> tuple[int, int]:
    """Which window a step trains on."""
    if step < 0.4 * steps:
        return SMALL
    return WHOLE if step >= 0.6 * steps and step % 4 == 3 else MEDIUM


class Trainable(nn.Module):
    """UNet and text towers as one module, under the checkpoint's names."""

    def __init__(self, engine: DiffusionEngine) -> None:
        super().__init__()
        self.model = engine.model
        self.conditioner = engine.conditioner


def build(config: str) -> tuple[DiffusionEngine, Trainable]:
    """The engine of a configuration; its towers made trainable, for this is their only training."""
    engine = instantiate_from_config(load_config(config)["model"])
    trainable = Trainable(engine)
    trainable.requires_grad_(True)
    for block in trainable.modules():  # residual branches start as the identity
        for name in ("out_layers", "proj_out"):
            layer = getattr(block, name, None)
            layer = layer[-1] if isinstance(layer, nn.Sequential) else layer
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
    return engine, trainable


def window(
    rng: np.random.Generator, box: tuple[int, int, int, int] | None, size: tuple[int, int]
) -> tuple[int, int]:
    """Top left corner, in latents, of a window that holds the middle of `box` (pixels)."""
    corner = []
    for axis in (0, 1):
        length = SIZE[axis] // FACTOR
        low, high = 0, length - size[axis]
        if box is not None:
            first, last = box[axis] / FACTOR, box[axis + 2] / FACTOR
            # Whole if it fits, and else its middle.
            first, last = (first, last) if last - first <= size[axis] else 2 * [(first + last) / 2]
            low = min(max(low, int(np.ceil(last)) - size[axis]), high)
            high = max(min(high, int(first)), low)
        corner.append(int(rng.integers(low, high + 1)))
    return corner[0], corner[1]


def make_batch(
    data: LatentScenes, step: int, size: tuple[int, int]
) -> tuple[Tensor, list[str], dict[str, Tensor]]:
    """Latents [B, 4, h, w], captions and size conditioning; a function of the step alone."""
    rng = np.random.default_rng([11, step])
    count = BATCH[size]
    crops, texts, corners = [], [], []
    for index in rng.integers(0, len(data.latents), count):
        top, left = window(rng, data.boxes[index], size)
        crops.append(data.latents[index, :, top : top + size[0], left : left + size[1]].float())
        texts.append(str(rng.choice(data.captions[index])))
        corners.append((top * FACTOR, left * FACTOR))
    sizes = {
        "original_size_as_tuple": torch.tensor([ORIGINAL_SIZE] * count),
        "crop_coords_top_left": torch.tensor(corners),
        "target_size_as_tuple": torch.tensor([[n * FACTOR for n in size]] * count),
    }
    return torch.stack(crops), texts, sizes


def conditioning(
    engine: DiffusionEngine, texts: list[str], sizes: dict[str, Tensor], device: str
) -> dict[str, Tensor]:
    """Conditioning with the text dropped (zeroed) for a part of the samples."""
    unique = sorted(set(texts))
    rows = torch.tensor([unique.index(text) for text in texts])
    first = {k: v[:1].expand(len(unique), 2).to(device) for k, v in sizes.items()}
    text = engine.conditioner({"txt": unique} | first)
    every = engine.conditioner(
        {"txt": [""] * len(texts)} | {k: v.to(device) for k, v in sizes.items()},
        force_zero_embeddings=["txt"],
    )
    keep = (torch.rand(len(texts)) >= TEXT_DROPOUT).float().to(device)
    pooled = text["vector"][rows, :TEXT_WIDTH_OF_VECTOR] * keep[:, None]
    return {
        "crossattn": text["crossattn"][rows] * keep[:, None, None],
        "vector": torch.cat([pooled, every["vector"][:, TEXT_WIDTH_OF_VECTOR:]], dim=1),
    }


def loss_of(engine: DiffusionEngine, z: Tensor, cond: dict[str, Tensor]) -> Tensor:
    """Noise prediction error at uniform levels of the 1000-step table (Ho et al., 2020)."""
    levels = torch.randint(0, 1000, (len(z),))
    sigma = engine.denoiser.sigmas[levels].to(z.device)[:, None, None, None]
    noise = torch.randn(z.shape).to(z)
    scaled = (z + sigma * noise) / (sigma**2 + 1).sqrt()
    predicted = engine.model(scaled, levels.to(z.device), cond)
    return F.mse_loss(predicted, noise)


def train(args: argparse.Namespace) -> None:
    """Run or resume the training of UNet and towers up to `args.steps` steps."""
    torch.manual_seed(args.seed)
    work = Path(args.work)
    data = load_latents(work / "latents.safetensors")
    engine, trainable = build(args.config)
    trainable.to(args.device, memory_format=torch.channels_last)
    used = [p for n, p in trainable.named_parameters() if "logit_scale" not in n]
    optimizer = torch.optim.AdamW(used, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    state = TrainingState(work / "unet.safetensors", trainable, optimizer, Ema(trainable, 0.9985))
    start, began, total = state.resume(), time.time(), 0.0
    for step in range(start, args.steps):
        for group in optimizer.param_groups:
            cycle = step - args.cycle_start
            done = cycle / (args.steps - args.cycle_start)
            group["lr"] = learning_rate(cycle, done, args.lr)
        z, texts, sizes = make_batch(data, step, window_size(step, args.steps))
        z = z.to(args.device, memory_format=torch.channels_last)
        loss = loss_of(engine, z, conditioning(engine, texts, sizes, args.device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(used, 1.0)
        optimizer.step()
        state.ema.update(trainable, step)
        total += loss.item()
        if (step + 1) % 50 == 0:
            speed = (time.time() - began) / (step + 1 - start)
            logger.info("step %d loss %.4f %.2f s/step", step + 1, total / 50, speed)
            total = 0.0
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            state.save(step + 1)
