"""Sessions that keep what edits within a region read, with random tiny engines."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from sgm.errors import UserError
from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import FAST
from sgm.inference.region import REGION, Region, _levels, read_by
from sgm.inference.session import EditSession
from sgm.inference.stores import DeviceStore
from sgm.inference.track import DECODER, ENCODER
from sgm.io.checkpoint import build_model
from sgm.sparse.fill import masks_to_fill
from sgm.sparse.masks import cover
from sgm.sparse.pixels import DOUBLED
from sgm.sparse.recording import Recording
from sgm.sparse.sparsify import sparsify
from sgm.specs import MODELS, RecordingSettings, SamplingParams
from sgm.words import Precision, Preset, RecordingPrecision, RunType, Task
from tests.conftest import ROOT
from tests.inference.test_edits import drawn_on, networks_of, picture

SIZE = (128, 256)
PARAMS = SamplingParams("", seed=3, steps=3)


def rectangle(top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


CORNER = rectangle(0, 0, 60, 70)
INSIDE = {
    "all": CORNER,
    "at its end": rectangle(55, 60, 5, 10),
    "a line": rectangle(3, 0, 1, 70),
}
PART = rectangle(10, 20, 30, 25)


def pipeline(precision: RecordingPrecision, prompt_steps: int) -> Pipeline:
    settings = RecordingSettings(count=2, precision=precision, prompt_steps=prompt_steps)
    recipe = FAST.with_recordings(settings)
    return Pipeline(networks_of("fast"), Precision.FP32, sparse=True, recipe=recipe)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return pipeline(RecordingPrecision.FULL, 2)


# What a prompt changes has another scale as int8 where less of it is kept.
@pytest.mark.parametrize(
    ("precision", "prompt_steps"), [(RecordingPrecision.FULL, 2), (RecordingPrecision.INT8, 0)]
)
def test_edits_in_the_region_are_those_of_a_whole_recording(
    precision: RecordingPrecision, prompt_steps: int
) -> None:
    pipe = pipeline(precision, prompt_steps)
    stores = DeviceStore(), DeviceStore()
    whole, bounded = (
        EditSession(pipe, picture(SIZE), PARAMS, make_store=lambda size, s=store: s, region=region)
        for store, region in zip(stores, (None, CORNER), strict=True)
    )
    assert bounded.report.step_bytes < 0.8 * whole.report.step_bytes
    for name, mask in INSIDE.items():
        made = [s.inpaint(f"a horse, {name}", mask).image for s in (whole, bounded)]
        assert torch.equal(*made), name
        drawn = [s.sdedit("a sun", drawn_on(s.picture, mask), 0.7).image for s in (whole, bounded)]
        assert torch.equal(*drawn), name
    sizes = [sum(s.get(name).size_in_bytes() for name in s.names()) for s in stores]
    assert sizes[1] < 0.8 * sizes[0]
    again = EditSession.resume(pipe, picture(SIZE), PARAMS, stores[1])
    results = [s.inpaint("a horse, all", CORNER).image for s in (again, bounded)]
    assert torch.equal(*results)


def test_accepted_edits_are_seen_alike(pipe: Pipeline) -> None:
    sessions = [EditSession(pipe, picture(SIZE), PARAMS, region=r) for r in (None, CORNER)]
    for mask in (PART, INSIDE["at its end"]):
        results = [s.inpaint("a horse", mask) for s in sessions]
        assert torch.equal(*(r.image for r in results))
        for session, result in zip(sessions, results, strict=True):
            session.accept(result)
    assert torch.equal(*(s.inpaint("a house", CORNER).image for s in sessions))


def test_a_drawing_beyond_the_limit_of_repainting_is_accepted(pipe: Pipeline) -> None:
    """A drawing changes more around it than what repainting has recorded, so that is recorded
    anew."""
    bounded = EditSession(pipe, picture(SIZE), PARAMS, region=CORNER)
    bounded.inpaint("a horse", CORNER)
    drawn = drawn_on(bounded.picture, CORNER)
    bounded.accept(bounded.sdedit("a sun", drawn, 0.7))
    assert not bounded.is_recorded(Task.INPAINTING, 1.0)
    assert bounded.is_recorded(Task.SDEDIT, 0.7)
    result = bounded.inpaint("a horse", PART).image
    fresh = EditSession(pipe, bounded.picture, PARAMS).inpaint("a horse", PART).image
    assert (result - fresh).abs().max() < 0.2  # latents of a picture are not those of its edit


@pytest.mark.parametrize("mask", [rectangle(0, 0, 60, 90), rectangle(100, 200, 9, 9)])
def test_an_edit_outside_is_refused(pipe: Pipeline, mask: Tensor) -> None:
    store = DeviceStore()
    session = EditSession(pipe, picture(SIZE), PARAMS, make_store=lambda size: store, region=CORNER)
    before = store.names()
    with pytest.raises(UserError, match="edits within rows 0 to 61, columns 0 to 71 were recorded"):
        session.inpaint("a horse", mask)
    with pytest.raises(UserError, match="The edit spans rows"):
        session.sdedit("a sun", drawn_on(session.picture, mask), 0.7)
    assert store.names() == before and REGION in before
    with pytest.raises(ValueError, match="region is empty"):
        EditSession(pipe, picture(SIZE), PARAMS, region=torch.zeros(SIZE, dtype=torch.bool))
    with pytest.raises(ValueError, match="region"):
        EditSession(pipe, picture(SIZE), PARAMS, region=torch.ones(64, 64, dtype=torch.bool))


def test_the_encoder_is_recorded_when_a_drawing_comes(pipe: Pipeline) -> None:
    session = EditSession(pipe, picture(SIZE), PARAMS)
    session.inpaint("a horse", CORNER)
    assert ENCODER not in session.recordings.store.names()
    late = session.sdedit("a sun", drawn_on(session.picture, CORNER), 0.7).image
    assert ENCODER in session.recordings.store.names()
    params = SamplingParams("", seed=3, steps=3, strength=0.7)
    first = EditSession(pipe, picture(SIZE), params, Task.SDEDIT)
    assert ENCODER in first.recordings.store.names()
    assert torch.equal(first.sdedit("a sun", drawn_on(first.picture, CORNER), 0.7).image, late)


@cache
def left_out(size: tuple[int, int]) -> tuple[Recording, dict[str, Any]]:
    """What an int8 recording of the real decoder keeps, on shapes, and how its layers read."""
    config = ROOT / "configs" / MODELS["sdxl"].config_file(RunType.SIGE, preset=Preset.FAST)
    decoder = build_model(config).eval().first_stage_model.decoder
    handle, latents = sparsify(decoder, graphs=False), (size[0] // 8, size[1] // 8)
    with handle.recording(dtype=torch.int8, largest=size[0] * size[1] // 16) as recording:
        decoder(torch.empty(1, 4, *latents, device="meta"))
    return recording, {name: layer.geometries for name, layer in handle.layers.items()}


@pytest.mark.parametrize("size", [(128, 256), (192, 320)])
def test_what_is_computed_anew_reads_no_more_than_is_kept(size: tuple[int, int]) -> None:
    """For masks as wide as any edit's at every level, wherever they begin."""
    start = (size[0] // 4, size[1] // 4)
    for begin in range(8):
        limit = torch.zeros(size, dtype=torch.bool)
        limit[40 + begin : 60, 50 + begin : 110] = True
        region = Region(limit, FAST)
        masks = _levels(region.drawn_limit, FAST)
        wide = masks_to_fill(*left_out(size), masks)
        assert wide is not None
        read = DOUBLED.read(wide[size[0] // 2, size[1] // 2], start)
        assert not (read & ~region.read(DECODER)[start]).any()


@pytest.mark.parametrize("size", [(128, 256), (192, 320)])
def test_what_is_read_of_a_part_is_read_of_the_whole(size: tuple[int, int]) -> None:
    limit = torch.zeros(size, dtype=torch.bool)
    limit[21:87, 33:111] = True
    region = Region(limit, FAST)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        mask = (torch.rand(size, generator=generator) < 0.003) & limit
        top, left = torch.randint(21, 80, (2,), generator=generator).tolist()
        mask[top : top + 5, left : left + 40] = True
        mask &= limit
        for name, masks in {
            "inpainting-0000": cover(FAST.inpainting(mask), mask),
            "decoder": cover(FAST.inpainting_decoder(mask), mask),
            "sdedit-0.8-0000": FAST.sdedit_masks(mask),
            "prompt-0-sdedit-0.8-0000": FAST.sdedit_steps(mask, FAST.sdedit_masks(mask)).first,
        }.items():
            kept = region.read(name)
            for level, read in read_by(masks).items():
                assert not (read & ~kept[level]).any(), (name, level)
    kept = region.read("inpainting-0000")
    assert 0.1 < kept[size].float().mean() < 0.2
