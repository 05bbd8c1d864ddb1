"""Passes caught from runs: their inputs, masks and recordings; random numbers on shapes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sgm.inference.inpainting import Inpainting
from sgm.inference.networks import Networks, table_of_preset
from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import RECIPES
from sgm.inference.sdedit import SDEdit
from sgm.io.checkpoint import build_model
from sgm.profiling.passes import Pass, catch, with_random_numbers
from sgm.sparse.sparsify import handle_of
from sgm.specs import MODELS, SamplingParams
from sgm.words import Precision, Preset, RunType
from tests.conftest import ROOT

PARAMS = SamplingParams("a horse", steps=1)
CPU = torch.device("cpu")


def blank(run_type: RunType, preset: Preset = Preset.PUBLISHED) -> Pipeline:
    """Networks of the tiny family without weights."""
    path = ROOT / "configs" / MODELS["tiny"].config_file(run_type, preset=preset)
    engine = build_model(path).eval().to(memory_format=torch.channels_last)
    networks = Networks(engine, table_of_preset(preset) if run_type.sparse else None)
    return Pipeline(networks, Precision.FP32, run_type.sparse, recipe=RECIPES[preset])


def inpainting() -> Inpainting:
    mask = torch.zeros(64, 128, dtype=torch.bool)
    mask[20:40, 50:90] = True
    return Inpainting(torch.zeros(3, 64, 128), mask)


def sdedit() -> SDEdit:
    edited = torch.zeros(3, 64, 128)
    edited[:, 20:40, 50:90] = 1
    return SDEdit(torch.zeros(3, 64, 128), edited, 1.0)


def caught(pipeline: Pipeline, edit: Inpainting | SDEdit, part: str) -> Pass:
    return catch(getattr(pipeline.networks, part), lambda: pipeline.edit(edit, PARAMS))


@pytest.mark.parametrize("part", ["unet", "decoder"])
@pytest.mark.parametrize("edit", [inpainting, sdedit])
@pytest.mark.parametrize("preset", list(Preset))
def test_a_sparse_pass_can_be_repeated_alone(
    part: str, edit: Callable[[], Inpainting | SDEdit], preset: Preset
) -> None:
    pipeline = blank(RunType.SIGE, preset)
    pipeline = pipeline.with_recipe(replace(pipeline.recipe, sparse_decode=True))
    with torch.inference_mode():
        one = caught(pipeline, edit(), part)
        shapes = {name: x.shape for name, x in one.inputs.items()}
        assert shapes[0] == ((2, 4, 8, 16) if part == "unet" else (1, 4, 8, 16))
        assert one.recorded is not None and one.recorded.keys() == one.inputs.keys()
        assert one.masks is not None and (8, 16) in one.masks and (64, 128) in one.masks
        real = with_random_numbers(one, CPU)
        with real.with_recording():
            first, second = real.run(), real.run()
            assert first.isfinite().all() and torch.equal(first, second)
        assert handle_of(real.network).masks is None  # the recording is freed


def test_the_encoder_runs_sparsely_in_sdedit_and_on_request() -> None:
    pipeline = blank(RunType.SIGE)
    assert caught(pipeline, sdedit(), "encoder").masks is not None
    dense = caught(pipeline, inpainting(), "encoder")
    assert dense.masks is None and dense.recorded is None
    masks = pipeline.recipe.inpainting(inpainting().mask)
    assert dense.on_mask(masks).masks is masks
    assert dense.on_mask(masks).recorded is dense.inputs


def test_a_dense_pass_and_the_same_call_of_another_network() -> None:
    with torch.inference_mode():
        sparse = with_random_numbers(caught(blank(RunType.SIGE), inpainting(), "unet"), CPU)
        dense = sparse.by(blank(RunType.ORIGINAL).networks.unet)
        assert dense.masks is None and dense.inputs == sparse.inputs  # the very same tensors
        assert dense.network.out[2].weight.data_ptr() == sparse.network.out[2].weight.data_ptr()
        assert torch.equal(dense.run(), sparse.network(*by_position(sparse)))


def test_a_pass_in_another_layout_has_the_same_result() -> None:
    with torch.inference_mode():
        one = with_random_numbers(caught(blank(RunType.SIGE), inpainting(), "unet"), CPU)
        with one.with_recording():
            expected = one.run()
        moved = one.laid_out(torch.contiguous_format)
        assert moved.recorded is not None and moved.inputs["context"] is one.inputs["context"]
        for x in (moved.inputs[0], moved.recorded[0], moved.network.out[2].weight):
            assert x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)
        with moved.with_recording():
            found = moved.run()
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
        dense = moved.by(blank(RunType.ORIGINAL).networks.unet)
        assert dense.network.out[2].weight.is_contiguous(memory_format=torch.channels_last)
        assert dense.inputs[0].is_contiguous(memory_format=torch.channels_last)


def by_position(one: Pass) -> list[Tensor]:
    return [one.inputs[name] for name in (0, "timesteps", "context", "y")]


def test_a_run_that_never_calls_the_network_is_an_error() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="does not call Linear"):
        catch(layer, lambda: None)
    assert not layer._forward_pre_hooks
