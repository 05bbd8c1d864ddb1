"""Seeds of the edits of one session: each its own noise inside, that of the recordings around."""

import pytest
import torch
from torch import Tensor

import sgm
from sgm.inference.noise import NamedNoise, noise_inside
from sgm.inference.pipeline import Pipeline
from sgm.inference.session import EditSession
from sgm.specs import SamplingParams

HEIGHT, WIDTH = 64, 128
PARAMS = SamplingParams("", seed=2, steps=3)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return sgm.load("tiny", preset="fast", device="cpu").pipeline


@pytest.fixture(scope="module")
def picture() -> Tensor:
    across = torch.linspace(-1, 1, WIDTH).expand(HEIGHT, WIDTH)
    return torch.stack((across, across.flip(1), torch.zeros(HEIGHT, WIDTH)))


@pytest.fixture(scope="module")
def mask() -> Tensor:
    marked = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    marked[20:44, 40:90] = True
    return marked


@pytest.fixture(scope="module")
def drawn(picture: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, torch.tensor([1.0, 0.6, -1.0])[:, None, None], picture)


def test_noise_inside_and_around() -> None:
    inside = torch.zeros(3, 5, dtype=torch.bool)
    inside[1, 2:4] = True
    mixed = noise_inside(inside, 1, NamedNoise(2))("start", (1, 4, 3, 5))
    own, other = (NamedNoise(seed)("start", (1, 4, 3, 5)) for seed in (1, 2))
    assert torch.equal(mixed[..., inside], own[..., inside])
    assert torch.equal(mixed[..., ~inside], other[..., ~inside])


@pytest.mark.parametrize("task", ["inpainting", "sdedit"])
def test_every_seed_is_another_edit_and_none_depends_on_those_before(
    task: str, pipeline: Pipeline, picture: Tensor, mask: Tensor, drawn: Tensor
) -> None:
    def edits(seeds: list[int | None]) -> dict[int | None, Tensor]:
        session = EditSession(pipeline, picture, PARAMS)
        if task == "inpainting":
            return {seed: session.inpaint("a horse", mask, seed=seed).image for seed in seeds}
        return {seed: session.sdedit("a horse", drawn, 0.8, seed=seed).image for seed in seeds}

    made = edits([None, 2, 7, 8])
    assert torch.equal(made[None], made[2])  # the session's own
    assert not torch.equal(made[7][:, mask], made[8][:, mask])
    assert torch.equal(edits([7])[7], made[7]) and torch.equal(edits([8, 7])[7], made[7])


def test_around_the_edit_are_the_recorded_latents(
    pipeline: Pipeline, picture: Tensor, mask: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    denoise = Pipeline.denoise

    def watched(self: Pipeline, plan, params, size, noise, stage, progress):  # type: ignore[no-untyped-def]
        draw = noise("start", plan.unedited.shape)
        seen.append((plan.inside, draw))
        return denoise(self, plan, params, size, noise, stage, progress)

    monkeypatch.setattr(Pipeline, "denoise", watched)
    session = EditSession(pipeline, picture, PARAMS)
    session.inpaint("a horse", mask, seed=7)
    [(inside, draw)] = seen
    recorded, own = (NamedNoise(seed)("start", draw.shape) for seed in (2, 7))
    assert torch.equal(draw[..., ~inside], recorded[..., ~inside])
    assert torch.equal(draw[..., inside], own[..., inside])
