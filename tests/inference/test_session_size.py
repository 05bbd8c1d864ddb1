"""What a session will take, counted on shapes, against what one takes."""

import pytest
import torch

from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import FAST
from sgm.inference.session import EditSession
from sgm.inference.session_size import session_size, shapes_of
from sgm.inference.stores import DeviceStore
from sgm.specs import MODELS, RecordingSettings, SamplingParams
from sgm.words import Precision, Preset, RecordingPrecision, RunType, Task
from tests.conftest import ROOT
from tests.inference.test_edits import networks_of, picture

SIZE = (64, 128)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("bounded", [False, True])
def test_shapes_tell_what_a_session_takes(task: Task, bounded: bool) -> None:
    settings = RecordingSettings(count=2, prompt_steps=2, precision=RecordingPrecision.INT8)
    recipe, params = FAST.with_recordings(settings), SamplingParams("", seed=3, steps=3)
    region = torch.zeros(SIZE, dtype=torch.bool)
    region[:20, :30] = True
    given = region if bounded else None
    config = ROOT / "configs" / MODELS["tiny"].config_file(RunType.SIGE, preset=Preset.FAST)
    told = session_size(shapes_of(config, Precision.FP32, recipe), SIZE, params, task, given)
    asked, store = [], DeviceStore()
    pipe = Pipeline(networks_of("fast"), Precision.FP32, sparse=True, recipe=recipe)

    def make_store(size: int) -> DeviceStore:
        asked.append(size)
        return store

    session = EditSession(pipe, picture(SIZE), params, task, make_store, region=given)
    assert told.step == session.report.step_bytes and told.steps == session.report.steps == 2
    assert asked == [told.total] and told.prompt_steps == 2
    sizes = {name: store.get(name).size_in_bytes() for name in store.names()}
    kept = sum(size for name, size in sizes.items() if name != "region" and "latents" not in name)
    assert kept == told.recorded
    assert sizes.get("encoder", 0) == told.encoder and sizes["decoder"] == told.decoder


@pytest.mark.parametrize("task", Task)
def test_an_int8_session_of_the_real_model_fits_in_3_5_gb(task: Task) -> None:
    """50 steps at 512x1024; its encoder and decoder leave out their largest maps."""
    config = ROOT / "configs" / MODELS["sdxl"].config_file(RunType.SIGE, preset=Preset.FAST)
    recipe = FAST.with_recordings(RecordingSettings(precision=RecordingPrecision.INT8))
    params = SamplingParams("", steps=50)
    told = session_size(shapes_of(config, Precision.FP32, recipe), (512, 1024), params, task)
    assert told.recorded < 3.5e9
    assert recipe.recorded.largest((512, 1024)) == 128 * 256
    assert FAST.recorded.largest((512, 1024)) is None
