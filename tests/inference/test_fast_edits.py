"""Edits with preset `fast`: the input stands outside, and half precision survives overflow."""

import logging
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sgm.errors import UserError
from sgm.inference.composite import opacity
from sgm.inference.noise import NamedNoise
from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import FAST, Recorded
from sgm.io.checkpoint import build_model
from sgm.io.imageio import to_bytes, to_picture
from sgm.sparse.masks import difference_mask, dilate
from sgm.sparse.sparsify import handle_of
from sgm.sparse.state import Mode
from sgm.specs import MODELS, Blend
from sgm.words import Backend, Precision, Preset, RunType, Task
from tests.conftest import ROOT, tiny_weights
from tests.edits_here import inpaint_with, sdedit_with
from tests.inference.test_edits import PROMPT, drawn_on, networks_of, picture, rectangle

SIZE = (64, 128)


def pipeline(precision: Precision = Precision.FP32, dtype: torch.dtype = torch.float32) -> Pipeline:
    return Pipeline(networks_of("fast", dtype), precision, sparse=True, recipe=FAST)


@pytest.fixture(scope="module")
def fast() -> Pipeline:
    return pipeline()


def inpaint(pipe: Pipeline, image: Tensor, mask: Tensor, seed: int = 3) -> Tensor:
    return inpaint_with(pipe, image, mask, PROMPT, steps=2, noise=NamedNoise(seed)).image


def bytes_of(image: Tensor) -> Tensor:
    """uint8 [3, H, W] of a picture in [0, 1]."""
    return to_bytes(to_picture(image))


def touched_by(mask: Tensor) -> Tensor:
    """A mask and the ring around it, bool [H, W]."""
    return opacity(mask, Blend().width(SIZE)) > 0


def test_inpainting_changes_no_byte_beyond_the_ring(fast: Pipeline) -> None:
    image, mask = picture(SIZE), rectangle(SIZE)
    result = inpaint(fast, image, mask)
    outside = ~touched_by(mask)
    assert torch.equal(result[:, outside], ((image + 1) / 2)[:, outside])
    before, after = bytes_of((image + 1) / 2), bytes_of(result)
    assert torch.equal(before[:, outside], after[:, outside])
    assert not torch.equal(before[:, mask], after[:, mask])


def test_sdedit_changes_no_byte_beyond_the_ring_of_the_dilated_difference(fast: Pipeline) -> None:
    image, mask = picture(SIZE), rectangle(SIZE)
    edited = drawn_on(image, mask)
    result = sdedit_with(fast, image, edited, PROMPT, steps=2, noise=NamedNoise(3)).image
    region = touched_by(dilate(difference_mask(image, edited), FAST.sdedit))
    assert torch.equal(result[:, ~region], ((image + 1) / 2)[:, ~region])
    assert not torch.equal(result[:, mask], ((edited + 1) / 2)[:, mask])


def test_ten_edits_in_a_row_leave_the_rest_as_it_was(fast: Pipeline) -> None:
    first = image = picture(SIZE)
    touched = torch.zeros(SIZE, dtype=torch.bool)
    for number in range(10):
        mask = torch.zeros(SIZE, dtype=torch.bool)
        mask[number * 4 : number * 4 + 9, number * 9 : number * 9 + 20] = True
        touched |= touched_by(mask)
        image = inpaint(fast, image, mask, seed=number) * 2 - 1
        stored = to_picture((image + 1) / 2)  # as a person saves it and opens it again
        image = to_bytes(stored).float() / 127.5 - 1
    before, after = bytes_of((first + 1) / 2), bytes_of((image + 1) / 2)
    assert torch.equal(before[:, ~touched], after[:, ~touched])
    assert not torch.equal(before[:, touched], after[:, touched])


@pytest.mark.parametrize("task", Task)
def test_an_edit_without_recordings_decodes_once_and_in_full(
    fast: Pipeline, monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    first_stage, decoded = fast.networks.engine.first_stage_model, []
    decode = first_stage.decode

    def noted(z: Tensor) -> Tensor:
        decoded.append((z, decode(z)))
        return decoded[-1][1]

    monkeypatch.setattr(first_stage, "decode", noted)
    monkeypatch.setattr(fast, "recipe", replace(FAST, blend=None))
    if task is Task.INPAINTING:
        result = inpaint(fast, picture(SIZE), rectangle(SIZE))
    else:
        edited = drawn_on(picture(SIZE), rectangle(SIZE))
        noise = NamedNoise(3)
        result = sdedit_with(fast, picture(SIZE), edited, PROMPT, steps=2, noise=noise).image
    [(z, x)] = decoded
    with fast.scope():
        assert torch.equal(decode(z), x)
    assert torch.equal(result, (x[0].clamp(-1, 1) + 1) / 2)


def test_sdedit_makes_as_many_full_passes_as_its_recipe_says(
    fast: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(count=4, order=1, power=1.5)
    recipe = replace(FAST, sdedit_recorded=recorded, blend=None)
    monkeypatch.setattr(fast, "recipe", recipe)
    forward, modes = fast.networks.unet.forward, []

    def counted(*args: Tensor, **kwargs: Tensor) -> Tensor:
        modes.append(handle_of(fast.networks.unet).mode)
        return forward(*args, **kwargs)

    monkeypatch.setattr(fast.networks.unet, "forward", counted)
    edited = drawn_on(picture(SIZE), rectangle(SIZE))
    sdedit_with(fast, picture(SIZE), edited, PROMPT, steps=10, strength=0.8, noise=NamedNoise(3))
    full, sparse = Mode.RECORD, Mode.SPARSE
    # Of seven steps 0, 1, 3 and 6 are recorded, each before the first step that lies behind the
    # one before.
    assert modes == [full, sparse] * 3 + [sparse, full, sparse, sparse, sparse]


def test_bf16_makes_a_picture(fast: Pipeline) -> None:
    half = pipeline(Precision.BF16, torch.bfloat16)
    image, mask = picture(SIZE), rectangle(SIZE)
    result, exact = inpaint(half, image, mask), inpaint(fast, image, mask)
    assert result.isfinite().all()
    assert (result - exact).square().mean().sqrt() < 0.1


def test_an_overflow_of_the_autoencoder_is_repeated_in_fp32(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = pipeline(Precision.BF16, torch.bfloat16)
    first_stage = half.networks.engine.first_stage_model
    decode = first_stage.decode

    def overflowing(z: Tensor) -> Tensor:
        x = decode(z)
        if x.dtype is torch.bfloat16:
            x[0, 0, -1, -1] = float("inf")  # the last pixel alone
        return x

    monkeypatch.setattr(first_stage, "decode", overflowing)
    with caplog.at_level(logging.WARNING):
        assert inpaint(half, picture(SIZE), rectangle(SIZE)).isfinite().all()
    assert "overflowed in torch.bfloat16" in caplog.text and "float32" in caplog.text
    assert first_stage.post_quant_conv.weight.dtype is torch.float32


def test_a_result_of_nans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline()
    first_stage = pipe.networks.engine.first_stage_model
    monkeypatch.setattr(first_stage, "decode", lambda z: torch.full((1, 3, *SIZE), float("nan")))
    with pytest.raises(UserError, match="no numbers at fp32"):
        inpaint(pipe, picture(SIZE), rectangle(SIZE))


def test_fp16_keeps_the_autoencoder_in_fp32(tmp_path) -> None:
    spec = MODELS["tiny"]
    engine = build_model(ROOT / "configs" / spec.config_file(RunType.SIGE, preset=Preset.FAST))
    shapes = {name: list(tensor.shape) for name, tensor in engine.state_dict().items()}
    save_file(tiny_weights(shapes), tmp_path / spec.weights["base"])
    arguments = (spec, RunType.SIGE, ROOT / "configs", tmp_path, torch.device("cpu"))
    pipe = Pipeline.load(*arguments, Precision.FP16, Backend.AUTO, Preset.FAST, progress=False)
    kinds = {
        (name.split(".")[0], tensor.dtype)
        for name, tensor in pipe.networks.engine.state_dict().items()
        if name.startswith(("model.", "first_stage_model."))
    }
    assert kinds == {("model", torch.float16), ("first_stage_model", torch.float32)}


def test_the_first_steps_of_sdedit_compute_more() -> None:
    image = picture(SIZE)
    difference = difference_mask(image, drawn_on(image, rectangle(SIZE)))
    late = FAST.sdedit_masks(difference)
    steps = FAST.sdedit_steps(difference, late)
    assert [steps.at(i, 10) is late for i in range(10)] == [False] * 4 + [True] * 6
    assert steps.at(0, 2) is late  # a share of no whole step
    assert all((steps.first[size] | mask).equal(steps.first[size]) for size, mask in late.items())
    assert steps.first[SIZE].sum() > late[SIZE].sum()
    alike = replace(FAST, early=0.0).sdedit_steps(difference, late)
    assert alike.at(0, 10) is late and alike.first is late
