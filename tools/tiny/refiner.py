"""Training of the tiny refiner: the tiny base made narrower, with a refiner's conditioning, and
taught by the base.

The refiner of the published commands runs the whole task again from the first noise level, so this
one learns the whole schedule, and not only its end as SDXL's did.
"""

from pathlib import Path

import torch
from torch import Tensor

from sgm.config import instantiate_from_config, load_config
from sgm.inference.networks import AESTHETIC_SCORE
from sgm.models.diffusion import DiffusionEngine
from tools.tiny.checkpoints import read
from tools.tiny.shrink import narrowed
from tools.tiny.unet import random_levels

FIRST_STEP = 500_000_000  # of the batches' numbers, so that they differ from the base's training
TEXT_DROPOUT = 0.1


def load_engine(config: str, path: Path) -> DiffusionEngine:
    """The networks of a configuration with the weights of a file."""
    engine = instantiate_from_config(load_config(config)["model"])
    engine.load_state_dict({k: v.float() for k, v in read(path)[0].items()})
    return engine


def build_student(config: str, teacher: DiffusionEngine) -> DiffusionEngine:
    """The refiner, started from the base: the UNet narrowed, the larger text tower as it is."""
    engine = instantiate_from_config(load_config(config)["model"])
    unet = engine.model.diffusion_model
    shapes = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    unet.load_state_dict(narrowed(teacher.model.diffusion_model.state_dict(), shapes))
    tower = teacher.conditioner.embedders[1].state_dict()
    engine.conditioner.embedders[0].load_state_dict(tower)
    return engine


def conditions(
    teacher: DiffusionEngine, student: DiffusionEngine, texts: list[str], sizes: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the two are told of a batch. A part of the texts is dropped: zeroed for the base, as in
    its training, and empty for the refiner, whose unconditional text is not zeroed."""
    keep = torch.rand(len(texts)) >= TEXT_DROPOUT
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
    weights: Tensor,
    texts: list[str],
    sizes: dict[str, Tensor],
) -> Tensor:
    """Difference of the two noise predictions at random levels (distillation, Hinton et al., 2015):
    a far less noisy target than the noise itself."""
    levels = random_levels(len(z)).to(z.device)
    sigma = teacher.denoiser.sigmas.to(z.device)[levels][:, None, None, None]
    scaled = (z + sigma * torch.randn(z.shape).to(z)) / (sigma**2 + 1).sqrt()
    told, shown = conditions(teacher, student, texts, sizes)
    with torch.no_grad():
        target = teacher.model(scaled, levels, told).float()
    return (weights * (student.model(scaled, levels, shown).float() - target) ** 2).mean()
