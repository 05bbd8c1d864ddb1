"""Training of the tiny autoencoder on crops of procedural scenes."""

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.config import instantiate_from_config, load_config
from sgm.models.autoencoder import AutoencoderKL
from tools.tiny.checkpoints import Ema, TrainingState
from tools.tiny.scenes import render, sample_scene

logger = logging.getLogger(__name__)

SIZE = (256, 512)
CROPS_PER_SCENE = 4
KL_WEIGHT = 1e-4
HELD_OUT_SEED = 10_000_000  # training seeds count up from 0 and never reach it


def picture(seed: int) -> Tensor:
    """The scene of a seed as a tensor [3, 256, 512] in [-1, 1]."""
    image = render(sample_scene(np.random.default_rng(seed)), *SIZE)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def crop_batch(step: int, batch: int, crop: int) -> Tensor:
    """Crops [batch, 3, crop, crop] of fresh scenes; a function of the step alone."""
    rng = np.random.default_rng([7, step])
    crops = []
    for index in range(batch // CROPS_PER_SCENE):
        scene = picture(step * batch // CROPS_PER_SCENE + index)
        for _ in range(CROPS_PER_SCENE):
            top, left = (int(rng.integers(0, size - crop + 1)) for size in SIZE)
            crops.append(scene[:, top : top + crop, left : left + crop])
    return torch.stack(crops)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a half cosine down to zero."""
    ramp = min(1.0, (step + 1) / warmup)
    return peak * ramp * 0.5 * (1 + np.cos(np.pi * min(1.0, step / steps)))


def loss_of(vae: AutoencoderKL, x: Tensor, freeze_encoder: bool) -> tuple[Tensor, Tensor]:
    """Training loss and reconstruction PSNR in dB of a batch."""
    with torch.set_grad_enabled(not freeze_encoder):
        posterior = vae.posterior(x)
        z = posterior.sample()
    reconstruction = vae.decode(z)
    mse = F.mse_loss(reconstruction, x)
    kl = 0.5 * (posterior.mean**2 + posterior.logvar.exp() - 1 - posterior.logvar).mean()
    loss = F.l1_loss(reconstruction, x) + 2 * mse + KL_WEIGHT * kl
    return loss, 10 * torch.log10(4 / mse.detach())


@torch.inference_mode()
def held_out_psnr(vae: AutoencoderKL, count: int = 8) -> float:
    """Mean reconstruction PSNR in dB on whole held-out scenes, as pictures in [0, 1]."""
    values = []
    for index in range(count):
        x = picture(HELD_OUT_SEED + index)[None]
        out = vae.decode(vae.posterior(x).mode()).clamp(-1, 1)
        values.append(10 * torch.log10(4 / F.mse_loss(out, x)).item())
    return float(np.mean(values))


def train(args: argparse.Namespace) -> None:
    """Run or resume the training of the autoencoder up to `args.steps` steps."""
    torch.manual_seed(args.seed)
    config = load_config(args.config)["model"]["params"]["first_stage_config"]
    vae = instantiate_from_config(config).to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0)
    ema = Ema(vae, 0.998)
    name = "decoder" if args.freeze_encoder else "vae"
    work = Path(args.work)
    state = TrainingState(work / f"{name}.safetensors", vae, optimizer, ema)
    start = state.resume()
    if args.freeze_encoder and start == 0:
        first = TrainingState(work / "vae.safetensors", vae, optimizer, ema)
        first.resume()
        vae.load_state_dict(vae.state_dict() | ema.values)
    began = time.time()
    for step in range(start, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        x = crop_batch(step + args.skip, args.batch, args.crop)
        x = x.to(args.device, memory_format=torch.channels_last)
        loss, psnr = loss_of(vae, x, args.freeze_encoder)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update(vae, step)
        if (step + 1) % 20 == 0:
            speed = (time.time() - began) / (step + 1 - start)
            logger.info("step %d loss %.4f psnr %.2f %.2f s/step", step + 1, loss, psnr, speed)
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            state.save(step + 1)
            live = {k: v.clone() for k, v in vae.state_dict().items()}
            vae.load_state_dict(live | ema.values)
            logger.info("step %d held-out PSNR %.2f dB", step + 1, held_out_psnr(vae))
            vae.load_state_dict(live)
