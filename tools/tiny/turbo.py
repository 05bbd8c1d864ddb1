"""Training of the tiny turbo: a LoRA with which four steps of the base do what many guided ones do.

The base teaches it, by progressive and guided distillation (Salimans and Ho, 2022; Meng et al.,
2023): between two of the four levels it makes several guided steps, and the network with the LoRA
is to come as far in one step without guidance. It practises on latents that it has made itself, so
that it also learns to go on from its own errors.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sgm.models.diffusion import DiffusionEngine
from sgm.modules.diffusionmodules.sampling import guidance_batch, guided
from sgm.modules.diffusionmodules.schedules import TRAINING_STEPS
from sgm.specs import MODELS, TINY_SCALE
from tools.tiny.practice import GRID
from tools.tiny.unet import (
    CLOSE,
    HALF,
    LARGEST_WEIGHT,
    LEAST_WEIGHT,
    Batch,
    conditioning,
    with_text,
)

FIRST_STEP = 700_000_000  # of the batches' numbers, so that they differ from the others' training
BATCH = {CLOSE: 6, HALF: 4, GRID: 2}  # samples a step, each of which takes all steps of a run
LEVELS = MODELS["tiny"].turbo.levels
SPAN = LEVELS[1] - LEVELS[0]  # from one level to the next
SUBSTEPS = 2  # of the base from one level to the next
# A strength below 1 shifts all levels; the last one then lies nearer to the end than a whole span.
LARGEST_SHIFT = SPAN - 5 * SUBSTEPS
RANK = 2  # all the weights of the family are to stay below 25 MB


class LowRank(nn.Module):
    """A change of low rank of every weight with at least two axes (LoRA, Hu et al., 2022), of
    convolutions too. It starts as none.

    Args:
        network: whose weights are changed; they are not trained.
    """

    def __init__(self, network: nn.Module, rank: int = RANK) -> None:
        super().__init__()
        self.weights = {n: p for n, p in network.named_parameters() if p.ndim > 1}
        for name, weight in self.weights.items():
            down = torch.empty(rank, *weight.shape[1:])
            nn.init.kaiming_uniform_(down, a=5**0.5)
            self.register_parameter(_flat(name, "down"), nn.Parameter(down))
            up = torch.zeros(weight.shape[0], rank)
            self.register_parameter(_flat(name, "up"), nn.Parameter(up))

    def used(self) -> list[nn.Parameter]:
        """The parameters that an edit uses: all."""
        return list(self.parameters())

    def changed(self) -> dict[str, Tensor]:
        """The changed weights by their names in the network."""
        parts = dict(self.named_parameters())
        return {
            name: weight
            + (parts[_flat(name, "up")] @ parts[_flat(name, "down")].flatten(1)).view(weight.shape)
            for name, weight in self.weights.items()
        }


def _flat(name: str, part: str) -> str:
    return f"{name.removesuffix('.weight').replace('.', '_')}_lora_{part}"


def lora_tensors(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a `LowRank` of `engine.model` as a LoRA's file names them (kohya's names;
    without alphas, which then are the rank)."""
    tensors = {}
    for name, value in parameters.items():
        module, _, role = name.removeprefix("diffusion_model_").rpartition("_lora_")
        is_conv = parameters[_flat(name.removesuffix(f"_lora_{role}"), "down")].ndim == 4
        shape = (*value.shape, 1, 1) if is_conv and role == "up" else value.shape
        tensors[f"lora_unet_{module}.lora_{role}.weight"] = value.view(shape)
    return tensors


class Walk:
    """Latents of a batch on their way from noise to a picture, and what surrounds an edit.

    Args:
        engine: the base, whose weights are not trained.
        batch: whose scenes are edited: what is masked lacks some of what the caption names.
    """

    def __init__(self, engine: DiffusionEngine, batch: Batch) -> None:
        self.engine, self.batch = engine, batch
        device, count = batch.z.device, len(batch.z)
        levels = engine.denoiser.idx_to_sigma(torch.arange(TRAINING_STEPS, device=device))
        self.table = torch.cat([levels.flip(0), torch.zeros(1, device=device)])
        self.noise = torch.randn_like(batch.z)
        self.masked = batch.concat[:, :1]
        # All is masked: an SDEdit, which starts from the picture at any level.
        whole = self.masked.mean((1, 2, 3)) == 1
        draw = torch.rand(2, count, device=device)
        self.first = torch.where(whole, (draw[0] * (len(LEVELS) + 1)).long() - 1, 0).clamp(min=0)
        self.shift = torch.where(whole, (draw[1] * LARGEST_SHIFT).long(), 0)
        self.told = conditioning(engine, batch._replace(kept=torch.ones_like(batch.kept)))
        nothing = with_text(self.told, torch.zeros_like(batch.kept))
        self.both = guidance_batch(self.told, nothing, TINY_SCALE)

    def place(self, stage: int, part: int = 0) -> Tensor:
        """Places in the schedule, int64 [B]: of a stage, or so many substeps after it."""
        first = LEVELS[stage] + self.shift
        last = (first + SPAN).clamp(max=TRAINING_STEPS)
        return first + (last - first) * part // SUBSTEPS

    def sigma(self, place: Tensor) -> Tensor:
        """Noise levels of places in the schedule, [B, 1, 1, 1]."""
        return self.table[place][:, None, None, None]

    def held(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The latents with what is not masked as the picture has it at this level."""
        return torch.where(self.masked > 0, x, self.batch.z + sigma * self.noise)

    def start(self, sigma: Tensor) -> Tensor:
        """Latents at the level of a first step, made from the picture."""
        return self.batch.z + self.batch.absence + sigma * self.noise

    def denoised(self, x: Tensor, place: Tensor, weights: dict[str, Tensor]) -> Tensor:
        """The estimate of the network with changed weights, without guidance, [B, 4, h, w]."""

        def network(*inputs: object) -> Tensor:
            return functional_call(self.engine.model, weights, inputs)

        return self.engine.denoiser(network, x, self.table[place], self.told)

    def guided(self, x: Tensor, place: Tensor) -> Tensor:
        """The base's guided estimate, [B, 4, h, w]."""
        estimate = guided(self.engine.denoiser, self.engine.model, self.both, TINY_SCALE)
        return estimate(x, self.table[place])

    def taught(self, x: Tensor, stage: int) -> Tensor:
        """The latents at the next level, as the base makes them of `x` at a stage's."""
        before, place = None, self.place(stage)
        for part in range(1, SUBSTEPS + 1):
            following = self.place(stage, part)
            sigma, sigma_next = self.sigma(place), self.sigma(following)
            estimate, ratio = self.guided(x, place), torch.zeros_like(sigma)
            ends = stage == len(LEVELS) - 1 and part == SUBSTEPS
            if before is not None and not ends:
                ratio = extrapolation(before[1], sigma, sigma_next)
            x = self.held(moved(x, estimate, sigma_next / sigma, ratio, before), sigma_next)
            before, place = (estimate, sigma), following
        return x


Before = tuple[Tensor, Tensor] | None  # the estimate [B, 4, h, w] and level of the step before


def extrapolation(before: Tensor, now: Tensor, following: Tensor) -> Tensor:
    """The weight of the last two estimates' difference in a step of DPM++ 2M between levels above
    0: half the ratio of the two steps' lengths in log sigma."""
    return 0.5 * (now / following).log() / (before / now).log()


def moved(x: Tensor, estimate: Tensor, shrunk: Tensor, ratio: Tensor, before: Before) -> Tensor:
    """Latents after a step of DPM++ 2M, [B, 4, h, w].

    Args:
        shrunk: the next level by this one, [B, 1, 1, 1].
        ratio: of `extrapolation`, [B, 1, 1, 1]; 0 for a first-order step.
    """
    slope = estimate if before is None else estimate + ratio * (estimate - before[0])
    return slope + shrunk * (x - slope)


def wanted(x: Tensor, reached: Tensor, shrunk: Tensor, ratio: Tensor, before: Before) -> Tensor:
    """The estimate with which `moved` goes from `x` to `reached`, [B, 4, h, w]."""
    slope = (reached - shrunk * x) / (1 - shrunk)
    return slope if before is None else (slope + ratio * before[0]) / (1 + ratio)


def loss_of(engine: DiffusionEngine, change: LowRank, batch: Batch) -> Tensor:
    """Difference between one step and the base's several, over all four steps of a run, with the
    weights of the base's training."""
    with torch.no_grad():
        walk = Walk(engine, batch)
        x = walk.start(walk.sigma(walk.place(0)))
    weights, loss, before = change.changed(), torch.zeros((), device=x.device), None
    for stage in range(len(LEVELS)):
        place = walk.place(stage)
        sigma, sigma_next = walk.sigma(place), walk.sigma(walk.place(stage, SUBSTEPS))
        starts = (walk.first >= stage)[:, None, None, None]
        x = torch.where(starts, walk.start(sigma), x)
        found = walk.denoised(x, place, weights)
        with torch.no_grad():
            shrunk, ratio = sigma_next / sigma, torch.zeros_like(sigma)
            if before is not None and stage < len(LEVELS) - 1:
                ratio = extrapolation(before[1], sigma, sigma_next) * ~starts
            target = wanted(x, walk.taught(x, stage), shrunk, ratio, before)
            begun = (walk.first <= stage)[:, None, None, None]
            # The square of an estimate's error is the noise's times the level's square.
            scale = begun * sigma.clamp(LEAST_WEIGHT, LARGEST_WEIGHT) / sigma**2
            x = walk.held(moved(x, found, shrunk, ratio, before), sigma_next)
            before = found.detach(), sigma
        loss = loss + (batch.weights * scale * (found - target) ** 2).mean()
    return loss
