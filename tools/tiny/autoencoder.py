"""Training of the tiny autoencoder on crops of procedural scenes."""

import argparse
import logging
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgm.config import instantiate_from_config, load_config
from sgm.models.autoencoder import AutoencoderKL
from sgm.modules.diffusionmodules.model import AttnBlock, Downsample, ResnetBlock, Upsample
from tools.tiny.checkpoints import Ema, TrainingState, read
from tools.tiny.scenes import Scene, object_box, render, sample_scene

logger = logging.getLogger(__name__)

SIZE = (256, 512)
CROPS_PER_SCENE = 4
PIXELS = 2**16  # a step
KL_WEIGHT = 1e-4
DECODER_STREAM = 1_000_000  # its scenes differ from those of the first training
HELD_OUT_SEED = 10_000_000  # training seeds count up from 0 and never reach it


def picture(seed: int) -> Tensor:
    """The scene of a seed as a tensor [3, 256, 512] in [-1, 1]."""
    image = render(sample_scene(np.random.default_rng(seed)), *SIZE)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def crop_size(done: float) -> tuple[int, int]:
    """Small crops first, for variety; whole pictures last, for their normalisation statistics."""
    return (64, 64) if done < 0.55 else (128, 128) if done < 0.85 else SIZE


def corner(
    rng: np.random.Generator, scene: Scene, size: tuple[int, int], focus: float
) -> tuple[int, int]:
    """Top left of a crop; a share `focus` of the crops is centred on a point of an object."""
    centre = [int(rng.integers(0, n)) for n in SIZE]
    if scene.objects and rng.random() < focus:
        chosen = scene.objects[int(rng.integers(len(scene.objects)))]
        top, left, bottom, right = object_box(chosen, *SIZE)
        centre = [int(rng.integers(top, bottom)), int(rng.integers(left, right))]
    top, left = (min(max(c - k // 2, 0), n - k) for c, n, k in zip(centre, SIZE, size, strict=True))
    return top, left


def crop_batch(step: int, size: tuple[int, int], focus: float) -> Tensor:
    """Crops [N, 3, *size] of fresh scenes, about PIXELS in all; a function of its arguments."""
    rng = np.random.default_rng([7, step])
    count = max(1, PIXELS // (size[0] * size[1]))
    per_scene = min(count, CROPS_PER_SCENE)
    crops = []
    for index in range(count // per_scene):
        seed = step * CROPS_PER_SCENE + index
        scene, pixels = sample_scene(np.random.default_rng(seed)), picture(seed)
        for _ in range(per_scene):
            top, left = corner(rng, scene, size, focus)
            crops.append(pixels[:, top : top + size[0], left : left + size[1]])
    return torch.stack(crops)


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


def learning_rate(step: int, done: float, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a half cosine down to zero; `done` runs from 0 to 1."""
    ramp = min(1.0, (step + 1) / warmup)
    return peak * ramp * 0.5 * (1 + np.cos(np.pi * min(1.0, done)))


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
    vae = instantiate_from_config(config)
    initialise(vae)
    vae.to(args.device, memory_format=torch.channels_last)
    work = Path(args.work)
    if args.freeze_encoder:
        vae.load_state_dict(read(work / "first_stage.safetensors")[0])
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0)
    ema = Ema(vae, 0.998)
    name = "decoder" if args.freeze_encoder else "vae"
    state = TrainingState(work / f"{name}.safetensors", vae, optimizer, ema)
    start = state.resume()
    began = time.time()
    for step in range(start, args.steps):
        done = (step - args.cycle_start) / (args.steps - args.cycle_start)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - args.cycle_start, done, args.lr)
        if args.freeze_encoder:
            x = crop_batch(DECODER_STREAM + step, SIZE, args.focus)
        else:
            x = crop_batch(step, crop_size(done), args.focus)
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
