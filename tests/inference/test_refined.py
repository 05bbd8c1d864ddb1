"""A refined edit with random engines: two checkpoints one after the other, never both at once."""

import weakref
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sgm.inference import loop
from sgm.inference.edit import Edit
from sgm.inference.inpainting import Inpainting
from sgm.inference.noise import NamedNoise, Noise
from sgm.inference.pipeline import Pipeline
from sgm.inference.refined import refined_edit
from sgm.inference.sdedit import SDEdit
from sgm.specs import SamplingParams, Turbo
from sgm.words import Precision, RunType
from tests.inference.test_edits import drawn_on, networks_of, picture, rectangle

SIZE = (64, 128)
PARAMS = SamplingParams("a horse", seed=3, steps=2)
EDITS: dict[str, Edit] = {
    "inpainting": Inpainting(picture(SIZE), rectangle(SIZE)),
    "sdedit": SDEdit(picture(SIZE), drawn_on(picture(SIZE), rectangle(SIZE))),
}


def pipeline(run_type: RunType, refiner: bool) -> Pipeline:
    """A tiny engine; the base's serves as a refiner, for what is tested here is the order."""
    name = "sige" if run_type.sparse else "original"
    turbo = Turbo() if run_type.turbo and not refiner else None
    return Pipeline(networks_of(name), Precision.FP32, run_type.sparse, turbo)


@pytest.mark.parametrize("task", EDITS)
@pytest.mark.parametrize("run_type", RunType)
def test_every_run_type_can_be_refined(run_type: RunType, task: str) -> None:
    edit = EDITS[task]
    alone = pipeline(run_type, False).edit(edit, PARAMS)
    result = refined_edit(lambda refiner: pipeline(run_type, refiner), edit, PARAMS)
    assert result.image.shape == (3, *SIZE) and result.image.isfinite().all()
    assert not torch.equal(result.image, alone.image)
    assert set(result.seconds) == {"encode", "sample", "decode"}


@pytest.mark.parametrize("run_type", [RunType.ORIGINAL, RunType.SIGE])
def test_the_base_is_freed_before_the_refiner_is_loaded(run_type: RunType) -> None:
    parts: list[weakref.ref] = []

    def load(refiner: bool) -> Pipeline:
        if refiner:
            assert parts and all(part() is None for part in parts)
        made = pipeline(run_type, refiner)
        engine = made.networks.engine
        weights = [p for p in engine.parameters()]
        parts.extend(weakref.ref(part) for part in (made, engine, *weights))
        return made

    refined_edit(load, EDITS["inpainting"], PARAMS)


def test_loading_does_not_disturb_the_draws() -> None:
    def load(refiner: bool, wasted: int) -> Pipeline:
        torch.randn(wasted)
        return pipeline(RunType.ORIGINAL, refiner)

    edit = EDITS["sdedit"]
    images = [refined_edit(lambda r, n=n: load(r, n), edit, PARAMS).image for n in (1, 999)]
    assert torch.equal(*images)


def test_the_two_stages_have_noise_of_their_own() -> None:
    names: list[str] = []

    def noise(name: str, shape: tuple[int, ...]) -> Tensor:
        names.append(name)
        return source(name, shape)

    source: Noise = NamedNoise(3)
    refined_edit(lambda r: pipeline(RunType.ORIGINAL, r), EDITS["inpainting"], PARAMS, noise)
    own = ["start", "step/0", "step/1"]
    assert names == ["posterior/init", *own, *(f"refiner/{name}" for name in own)]
    draws = [source(name, (8,)) for name in names]
    assert not any(torch.equal(a, b) for a, b in pairwise(sorted(draws, key=lambda t: t[0].item())))


def test_steps_of_the_two_stages() -> None:
    turbo, refiner = (pipeline(RunType.TURBO, flag) for flag in (False, True))
    schedule = turbo.networks.engine.denoiser.discretization
    for steps, expected in ((None, (4, 50)), (2, (2, 2))):
        counts = tuple(
            len(p.solver(SamplingParams("", steps=steps)).sigmas(schedule)) - 1
            for p in (turbo, refiner)
        )
        assert counts == expected
    with pytest.raises(ValueError, match="1 to 4 steps, not 5"):
        turbo.solver(SamplingParams("", steps=5))


def test_a_plan_without_a_result_is_refused() -> None:
    pipe = pipeline(RunType.ORIGINAL, False)
    with pipe.scope():
        plan = EDITS["inpainting"].prepare(pipe.networks, None, NamedNoise(0))
        for act in (plan.for_refiner, lambda: loop.decode(plan, pipe.networks)):
            with pytest.raises(ValueError, match="call run first"):
                act()
