"""Latents that stop being numbers: named with the step, in every kind of edit."""

import pytest
import torch
from torch import Tensor, nn

from sgm.errors import UserError
from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import FAST, PUBLISHED, Recipe
from sgm.inference.progress import NanCheck
from sgm.inference.session import EditSession
from sgm.specs import RecordingSettings, SamplingParams
from sgm.words import Precision
from tests.edits_here import inpaint_with, sdedit_with
from tests.inference.test_edits import drawn_on, networks_of, picture, rectangle

SIZE = (64, 64)
STEPS = 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_first_step_counts(value: float, dtype: torch.dtype) -> None:
    watch = NanCheck(torch.device("cpu"))
    good = torch.zeros(1, 4, 3, 5, dtype=dtype)
    bad = good.clone()
    bad[0, 3, 2, 4] = value
    for step, x in enumerate((good, good, bad, good, bad)):
        watch(step, x)
    with pytest.raises(UserError, match="no numbers from step 3 of 5 on, at fp32; use a smaller"):
        watch.check(Precision.FP32)


def test_numbers_pass_however_large() -> None:
    watch = NanCheck(torch.device("cpu"))
    watch.check(Precision.FP32)
    watch(0, torch.full((2, 2), torch.finfo(torch.float32).max))
    watch.check(Precision.FP32)


def test_shapes_without_data_pass() -> None:
    watch = NanCheck(torch.device("meta"))
    watch(0, torch.empty(1, 4, 8, 8, device="meta"))
    watch.check(Precision.FP32)


class Failing:
    """A hook of a UNet whose output has one bad value from some call on."""

    def __init__(self, first: int) -> None:
        self.first, self.calls = first, 0

    def __call__(self, network: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.calls += 1
        if self.calls < self.first:
            return output
        output = output.clone()
        output[-1, -1, -1, -1] = float("nan")
        return output


@pytest.mark.parametrize(
    ("kind", "recipe", "task", "first"),
    [
        ("original", PUBLISHED, "inpainting", 3),
        ("sige", PUBLISHED, "inpainting", 6),  # a recording before every step
        (
            "fast",
            FAST.with_recordings(RecordingSettings(every=2)),
            "sdedit",
            5,
        ),  # before the first step and the second
    ],
)
def test_an_edit_names_the_step(kind: str, recipe: Recipe, task: str, first: int) -> None:
    """`first` is the call of the network that makes the third step."""
    networks = networks_of(kind)
    pipe = Pipeline(networks, Precision.FP32, sparse=kind != "original", recipe=recipe)
    networks.unet.register_forward_hook(Failing(first))
    image, mask = picture(SIZE), rectangle(SIZE)
    with pytest.raises(UserError, match=f"no numbers from step 3 of {STEPS} on, at fp32"):
        if task == "inpainting":
            inpaint_with(pipe, image, mask, "a horse", steps=STEPS)
        else:
            edited = drawn_on(image, mask)
            sdedit_with(pipe, image, edited, "a horse", steps=STEPS, strength=1.0)


def test_half_precision_is_named_as_a_remedy() -> None:
    networks = networks_of("original")
    networks.engine.to(torch.bfloat16)
    networks.unet.register_forward_hook(Failing(1))
    pipe = Pipeline(networks, Precision.BF16, sparse=False)
    expected = r"from step 1 of 2 on, at bf16; .*, or use --precision fp32\.$"
    with pytest.raises(UserError, match=expected):
        inpaint_with(pipe, picture(SIZE), rectangle(SIZE), "a horse", steps=2)


def test_a_recording_of_no_numbers_is_refused() -> None:
    networks = networks_of("fast")
    networks.unet.register_forward_hook(Failing(2))
    pipe = Pipeline(
        networks,
        Precision.FP32,
        sparse=True,
        recipe=FAST.with_recordings(RecordingSettings(every=2)),
    )
    # The second that is recorded.
    with pytest.raises(UserError, match="no numbers from step 3 of 3 on"):
        EditSession(pipe, picture(SIZE), SamplingParams("", steps=3))


def test_an_overflow_while_recording_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipeline(networks_of("fast"), Precision.FP32, sparse=True, recipe=FAST)
    first_stage = pipe.networks.engine.first_stage_model
    monkeypatch.setattr(first_stage, "decode", lambda z: torch.full((1, 3, *SIZE), float("nan")))
    with pytest.raises(UserError, match=r"autoencoder overflowed in torch\.float32; check"):
        EditSession(pipe, picture(SIZE), SamplingParams("", steps=3))
