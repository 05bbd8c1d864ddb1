"""Training of the tiny refiner: the tiny base made narrower, with a refiner's conditioning, and
taught by the base.

The refiner of the published commands runs the whole task again from the first noise level, so this
one learns the whole schedule, and not only its end as SDXL's did.
"""

import argparse
import logging
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.config import instantiate_from_config, load_config
from sgm.inference.networks import AESTHETIC_SCORE
from sgm.models.diffusion import DiffusionEngine
from tools.tiny.autoencoder import learning_rate
from tools.tiny.checkpoints import Ema, TrainingState, read
from tools.tiny.latents import load_latents
from tools.tiny.shrink import narrowed
from tools.tiny.unet import MEDIUM, SMALL, WHOLE, Trainable, make_batch

logger = logging.getLogger(__name__)

LOW_SHARE, LOW_LEVELS = 0.25, 300  # of the samples, this share has a level below that
FIRST_STEP = 500_000  # of the batches' numbers, so that they differ from the base's training


def load_teacher(config: str, path: Path) -> DiffusionEngine:
    """The base with its weights, frozen."""
    teacher = instantiate_from_config(load_config(config)["model"])
    teacher.load_state_dict({k: v.float() for k, v in read(path)[0].items()})
    return teacher.eval().requires_grad_(False)


def build_student(config: str, teacher: DiffusionEngine) -> tuple[DiffusionEngine, Trainable]:
    """The refiner, started from the base: the UNet narrowed, the larger text tower as it is."""
    engine = instantiate_from_config(load_config(config)["model"])
    unet = engine.model.diffusion_model
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    unet.load_state_dict(narrowed(teacher.model.diffusion_model.state_dict(), shapes))
    tower = teacher.conditioner.embedders[1].state_dict()
    engine.conditioner.embedders[0].load_state_dict(tower)
    trainable = Trainable(engine)
    trainable.requires_grad_(True)
    return engine, trainable


def window_size(step: int, steps: int) -> tuple[int, int]:
    """Which window a step trains on: crops of two sizes, and whole scenes more and more."""
    whole = step % 4 == 3 or (step >= 0.6 * steps and step % 2)
    return WHOLE if whole else SMALL if step % 4 == 0 else MEDIUM


def conditions(
    teacher: DiffusionEngine,
    student: DiffusionEngine,
    texts: list[str],
    sizes: dict[str, Tensor],
    dropout: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the two are told of a batch. A part of the texts is dropped: zeroed for the base, as in
    its training, and empty for the refiner, whose unconditional text is not zeroed."""
    keep = torch.rand(len(texts)) >= dropout
    with torch.no_grad():
        told = teacher.conditioner({"txt": texts} | sizes)
        blank = teacher.conditioner({"txt": texts} | sizes, force_zero_embeddings=["txt"])
        keep = keep.to(told["vector"].device)
        chosen = {
            key: torch.where(keep.view(-1, *[1] * (value.ndim - 1)), value, blank[key])
            for key, value in told.items()
        }
    shown = [text if kept else "" for text, kept in zip(texts, keep.tolist(), strict=True)]
    score = torch.full((len(texts), 1), AESTHETIC_SCORE, device=keep.device)
    return chosen, student.conditioner({"txt": shown, "aesthetic_score": score} | sizes)


def loss_of(
    teacher: DiffusionEngine,
    student: DiffusionEngine,
    z: Tensor,
    texts: list[str],
    sizes: dict[str, Tensor],
    dropout: float,
) -> Tensor:
    """Difference of the two noise predictions at random levels (distillation, Hinton et al., 2015):
    a far less noisy target than the noise itself."""
    top = torch.where(torch.rand(len(z)) < LOW_SHARE, LOW_LEVELS, 1000)
    levels = (torch.rand(len(z)) * top).long().clamp(max=999)
    sigma = teacher.denoiser.sigmas[levels].to(z.device)[:, None, None, None]
    scaled = (z + sigma * torch.randn(z.shape).to(z)) / (sigma**2 + 1).sqrt()
    told, shown = conditions(teacher, student, texts, sizes, dropout)
    levels = levels.to(z.device)
    with torch.no_grad():
        target = teacher.model(scaled, levels, told)
    return F.mse_loss(student.model(scaled, levels, shown), target)


def train(args: argparse.Namespace) -> None:
    """Run or resume the training of the refiner up to `args.steps` steps."""
    torch.manual_seed(args.seed)
    work = Path(args.work)
    data = load_latents(work / "latents.safetensors")
    teacher = load_teacher(args.config, Path(args.base))
    engine, trainable = build_student(args.refiner_config, teacher)
    teacher.to(args.device, memory_format=torch.channels_last)
    trainable.to(args.device, memory_format=torch.channels_last)
    used = [p for n, p in trainable.named_parameters() if "logit_scale" not in n]
    optimizer = torch.optim.AdamW(used, lr=args.lr, betas=(0.9, 0.99), weight_decay=0.0)
    state = TrainingState(work / "refiner.safetensors", trainable, optimizer, Ema(trainable, 0.995))
    start, began, total = state.resume(), time.time(), 0.0
    last = min(args.steps, args.stop or args.steps)
    for step in range(start, last):
        cycle = step - args.cycle_start
        for group in optimizer.param_groups:
            done = cycle / (args.steps - args.cycle_start)
            group["lr"] = learning_rate(cycle, done, args.lr, warmup=40)
        size = window_size(step, args.steps)
        z, texts, sizes = make_batch(data, FIRST_STEP + step, size)
        z = z.to(args.device, memory_format=torch.channels_last)
        sizes = {key: value.to(args.device) for key, value in sizes.items()}
        loss = loss_of(teacher, engine, z, texts, sizes, args.text_dropout)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(used, 1.0)
        optimizer.step()
        state.ema.update(trainable, step)
        total += loss.item()
        if (step + 1) % 20 == 0:
            speed = (time.time() - began) / (step + 1 - start)
            logger.info("step %d loss %.5f %.2f s/step", step + 1, total / 20, speed)
            total = 0.0
        if (step + 1) % 25 == 0 or step + 1 == last:
            state.save(step + 1)
