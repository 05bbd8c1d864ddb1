"""The tiny turbo: what its LoRA changes, and what the base teaches it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sgm.io.checkpoint import build_model, load_weights
from sgm.io.sources import kind_of, read_contents
from sgm.modules.diffusionmodules.sampling import Solver, SolverState, dpmpp_2m_step
from sgm.modules.diffusionmodules.schedules import turbo_steps
from sgm.specs import MODELS, Lora, Weights
from tests.conftest import ROOT
from tools.tiny import turbo, unet
from tools.tiny.latents import CONFIG
from tools.tiny.turbo import LowRank, Walk, lora_tensors
from tools.tiny.unet import Batch

SPEC = MODELS["tiny"]
SIZE = (16, 24)


@pytest.fixture(scope="module")
def engine():
    torch.manual_seed(0)
    return unet.inpainting_engine(CONFIG).eval().requires_grad_(False)


def a_batch(masks: list[float]) -> Batch:
    """Latents of which the right half, all or nothing is masked."""
    torch.manual_seed(1)
    count = len(masks)
    masked = torch.zeros(count, 1, *SIZE)
    for row, share in enumerate(masks):
        masked[row, :, :, SIZE[1] - int(share * SIZE[1]) :] = 1
    tokens = torch.full((count, 77), unet.UNPADDED)
    tokens[:, :3] = torch.tensor([49406, 4558, 49407])
    ones = torch.ones(count, 2, dtype=torch.int64)
    sizes = {
        "original_size_as_tuple": 1024 * ones,
        "crop_coords_top_left": 0 * ones,
        "target_size_as_tuple": 256 * ones,
    }
    z = torch.randn(count, 4, *SIZE)
    concat = torch.cat([masked, torch.randn(count, 4, *SIZE)], 1)
    weights, kept = torch.ones(count, 1, *SIZE), torch.ones(count, dtype=torch.bool)
    return Batch(z, 0.3 * masked.expand_as(z), weights, tokens, kept, sizes, concat)


def loaded(weights: Weights) -> dict[str, Tensor]:
    model = build_model(ROOT / CONFIG, kind_of(read_contents(weights)))
    load_weights(model, weights, torch.device("cpu"), torch.float32, progress=False)
    return {k: v for k, v in model.state_dict().items() if k.startswith("model.")}


def test_the_lora_as_a_file_changes_what_it_changed_in_training(engine, tmp_path: Path) -> None:
    change = LowRank(engine.model)
    for name, weight in change.changed().items():
        assert torch.equal(weight, engine.model.get_parameter(name)), name  # it starts as none
    with torch.no_grad():
        for parameter in change.parameters():
            parameter.normal_(std=0.1)
    base, lora = tmp_path / "base.safetensors", tmp_path / "lora.safetensors"
    save_file({k: v.contiguous() for k, v in engine.state_dict().items()}, base)
    parameters = {k: v.detach() for k, v in change.named_parameters()}
    tensors = lora_tensors(parameters)
    assert all(v.shape[2:] == (1, 1) for k, v in tensors.items() if "conv.lora_up" in k)
    save_file({k: v.contiguous() for k, v in tensors.items()}, lora)
    before, after = loaded(Weights(base)), loaded(Weights(base, loras=(Lora(lora),)))
    expected = {f"model.{k}": v for k, v in change.changed().items()}
    assert len(expected) == 135
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, expected.get(name, before[name]), rtol=1e-5, atol=1e-6)
        assert torch.equal(tensor, before[name]) is (name not in expected)


def test_places_are_those_of_a_turbo_run(engine) -> None:
    walk = Walk(engine, a_batch([0.5, 1.0, 0.25, 1.0]))
    walk.shift[:] = torch.tensor([0, 0, 0, 201])  # what a strength of 0.8 cuts off
    schedule = turbo_steps((*SPEC.turbo.levels, -1))
    for row, strength in ((0, 1.0), (3, 0.8)):
        sigmas = schedule.sigmas(engine.denoiser.discretization, strength)
        places = [walk.place(stage) for stage in range(4)] + [walk.place(3, turbo.SUBSTEPS)]
        found = torch.stack([walk.sigma(place)[row, 0, 0, 0] for place in places])
        torch.testing.assert_close(found, sigmas)


def test_only_an_edit_without_a_mask_starts_lower(engine) -> None:
    first, shift = [], []
    for seed in range(40):
        batch = a_batch([0.5, 1.0])
        torch.manual_seed(seed)
        walk = Walk(engine, batch)
        first.append(walk.first.tolist())
        shift.append(walk.shift.tolist())
    first, shift = np.array(first), np.array(shift)
    assert not first[:, 0].any() and not shift[:, 0].any()
    assert set(first[:, 1].tolist()) == {0, 1, 2, 3}
    assert shift[:, 1].mean() > 0 and shift.max() <= turbo.LARGEST_SHIFT


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_base_teaches_by_guided_steps_of_dpmpp_2m(engine, stage: int) -> None:
    """One sample at a time against the sampler of edits; what is not masked is held."""
    batch = a_batch([0.5, 1.0])
    walk = Walk(engine, batch)
    walk.shift[:] = torch.tensor([0, 100])
    x = torch.randn_like(batch.z)
    with torch.no_grad():
        reached = walk.taught(x, stage)
        for row in range(2):
            y, state = x.clone(), None
            for part in range(turbo.SUBSTEPS):
                place, following = walk.place(stage, part), walk.place(stage, part + 1)
                sigma, sigma_next = (float(walk.sigma(p)[row]) for p in (place, following))
                now = SolverState(walk.guided(y, place), sigma)
                y = dpmpp_2m_step(y, now, sigma_next, state)
                y = torch.where(walk.masked > 0, y, batch.z + sigma_next * walk.noise)
                state = now
            torch.testing.assert_close(reached[row], y[row], rtol=1e-4, atol=1e-4)


def test_guidance_is_that_of_an_edit(engine) -> None:
    walk = Walk(engine, a_batch([0.5]))
    x, place = torch.randn_like(walk.batch.z), walk.place(1)
    weights = LowRank(engine.model).changed()
    with torch.no_grad():
        told = walk.denoised(x, place, weights)
        zeroed = dict(walk.told)
        zeroed["crossattn"] = torch.zeros_like(zeroed["crossattn"])
        zeroed["vector"] = zeroed["vector"].clone()
        zeroed["vector"][:, : unet.TEXT_WIDTH_OF_VECTOR] = 0
        walk.told = zeroed
        without = walk.denoised(x, place, weights)
        expected = without + turbo.TINY_SCALE * (told - without)
        torch.testing.assert_close(walk.guided(x, place), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ratio", [0.0, 0.7])
def test_what_is_wanted_leads_to_what_was_reached(ratio: float) -> None:
    """By the step that an edit makes, after another one."""
    x, reached, estimate = torch.randn(3, 1, 4, 5, 6)
    sigma, sigma_next = 4.0, 1.5
    before = SolverState(estimate, sigma * (sigma / sigma_next) ** (0.5 / ratio)) if ratio else None
    known = (estimate, torch.tensor(before.sigma)) if before else None
    shrunk = torch.tensor(sigma_next / sigma)
    target = turbo.wanted(x, reached, shrunk, torch.tensor(ratio), known)
    after = dpmpp_2m_step(x, SolverState(target, sigma), sigma_next, before)
    torch.testing.assert_close(after, reached)
    torch.testing.assert_close(turbo.moved(x, target, shrunk, torch.tensor(ratio), known), reached)


def test_it_practises_on_the_latents_of_a_turbo_run(engine, monkeypatch) -> None:
    """Those that an edit's sampler makes with the network's own estimates."""
    batch, seen = a_batch([0.5]), []

    def estimate(x: Tensor, sigma: Tensor) -> Tensor:
        return batch.z / (1 + sigma)

    def denoised(self: Walk, x: Tensor, place: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return estimate(x, self.sigma(place))

    def taught(self: Walk, x: Tensor, stage: int) -> Tensor:
        seen.append((self, x))
        return x

    monkeypatch.setattr(Walk, "denoised", denoised)
    monkeypatch.setattr(Walk, "taught", taught)
    turbo.loss_of(engine, LowRank(engine.model), batch)
    walk, solver = seen[0][0], Solver(turbo_steps((*SPEC.turbo.levels, -1)))
    sigmas = solver.sigmas(engine.denoiser.discretization)
    x, state = batch.z + batch.absence + sigmas[0] * walk.noise, None
    for stage, (_, found) in enumerate(seen):
        torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)
        x, state = solver.step(estimate, x, stage, sigmas, state)
        x = torch.where(walk.masked > 0, x, batch.z + sigmas[stage + 1] * walk.noise)


def test_the_loss_is_zero_for_whom_has_nothing_to_learn(engine, monkeypatch) -> None:
    """A base that always sees the same picture comes as far in one step as in several; any change
    of it does not. Gradients reach the change alone."""
    batch, change = a_batch([0.5, 1.0]), LowRank(engine.model)
    picture = torch.randn(batch.z.shape)

    def guided(self: Walk, x: Tensor, place: Tensor) -> Tensor:
        return picture

    def denoised(self: Walk, x: Tensor, place: Tensor, weights: dict[str, Tensor]) -> Tensor:
        shift = sum(weight.sum() for weight in weights.values())
        return picture + (shift - start) * self.masked

    start = sum(weight.sum() for weight in change.changed().values())
    monkeypatch.setattr(Walk, "guided", guided)
    monkeypatch.setattr(Walk, "denoised", denoised)
    # Where nothing is masked the steps are not free: the error there is that of the holding.
    weights = batch.weights * batch.concat[:, :1]
    loss = turbo.loss_of(engine, change, batch._replace(weights=weights))
    assert loss.item() < 1e-6
    start = start.detach() + 1
    loss = turbo.loss_of(engine, change, batch._replace(weights=weights))
    assert loss.item() > 1e-2
    loss.backward()
    ups = [p.grad for n, p in change.named_parameters() if n.endswith("_up")]
    assert all(grad is not None and grad.isfinite().all() for grad in ups)
    assert not any(p.requires_grad for p in engine.parameters())
