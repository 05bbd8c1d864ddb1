"""Training of the tiny refiner: the tiny base made narrower, with a refiner's conditioning.

The base teaches it. The refiner of the published commands runs the whole task again from the first
noise level, so this one learns the whole schedule, and not only its end as SDXL's did.
It reads the mask as the base does.
"""

from pathlib import Path

import torch
from torch import Tensor

from sgm.inference.networks import AESTHETIC_SCORE
from sgm.models.diffusion import DiffusionEngine
from sgm.modules.encoders.tokenizer import END_TOKEN, START_TOKEN
from tools.tiny.checkpoints import read
from tools.tiny.shrink import narrowed
from tools.tiny.unet import UNPADDED, Batch, conditioning, inpainting_engine, random_levels

FIRST_STEP = 500_000_000  # of the batches' numbers, so that they differ from the base's training


def load_engine(config: str, path: Path) -> DiffusionEngine:
    """The base's networks with the weights of a file."""
    engine = inpainting_engine(config)
    engine.load_state_dict({k: v.float() for k, v in read(path)[0].items()})
    return engine


def build_student(config: str, teacher: DiffusionEngine) -> DiffusionEngine:
    """The refiner, started from the base: the UNet narrowed, the larger text tower as it is."""
    engine = inpainting_engine(config)
    unet = engine.model.diffusion_model
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    unet.load_state_dict(narrowed(teacher.model.diffusion_model.state_dict(), shapes))
    tower = teacher.conditioner.embedders[1].state_dict()
    engine.conditioner.embedders[0].load_state_dict(tower)
    return engine


def conditions(
    teacher: DiffusionEngine, student: DiffusionEngine, batch: Batch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the two are told of a batch. A dropped text is zeroed for the base, as in its training,
    and empty for the refiner, whose unconditional text is not zeroed."""
    with torch.no_grad():
        told = conditioning(teacher, batch)
    empty = torch.full_like(batch.tokens, UNPADDED)
    empty[:, 0], empty[:, 1] = START_TOKEN, END_TOKEN  # made where it is used: nothing waits
    shown = torch.where(batch.kept[:, None], batch.tokens, empty)
    score = torch.full((len(shown), 1), AESTHETIC_SCORE, device=batch.z.device)
    own = student.conditioner({"txt": shown, "aesthetic_score": score} | batch.sizes)
    return told, own | {"concat": batch.concat}


def loss_of(teacher: DiffusionEngine, student: DiffusionEngine, batch: Batch) -> Tensor:
    """Difference of the two noise predictions at random levels (distillation, Hinton et al., 2015):
    a far less noisy target than the noise itself."""
    levels = random_levels(len(batch.z), batch.z.device)
    sigma = teacher.denoiser.idx_to_sigma(levels)[:, None, None, None]
    scaled, _ = batch.noised(sigma, torch.randn_like(batch.z))
    told, shown = conditions(teacher, student, batch)
    with torch.no_grad():
        target = teacher.model(scaled, levels, told).float()
    difference = student.model(scaled, levels, shown).float() - target
    return (batch.weights * difference**2).mean()
