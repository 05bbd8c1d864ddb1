"""Sessions: one recording, many edits, with random tiny engines."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sgm.errors import UserError
from sgm.inference import choose_store
from sgm.inference.choose_store import make_store
from sgm.inference.composite import opacity
from sgm.inference.noise import NamedNoise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.prefetch import Prefetch
from sgm.inference.presets import FAST
from sgm.inference.session import EditSession
from sgm.inference.stores import DeviceStore, DiskStore
from sgm.sparse.norm import Moments
from sgm.sparse.recording import Recording, tensors_of
from sgm.sparse.sparsify import handle_of
from sgm.sparse.state import Mode
from sgm.specs import Blend, RecordingSettings, SamplingParams
from sgm.words import Precision, RecordingMemory, RecordingPrecision, Task
from tests.conftest import max_error
from tests.edits_here import inpaint_with
from tests.inference.test_edits import drawn_on, networks_of, picture, rectangle

SIZE, CPU = (64, 128), torch.device("cpu")
PARAMS = SamplingParams("", seed=3, steps=3)


# Two of three steps are recorded, and both are made under every new prompt.
TWO = RecordingSettings(count=2, prompt_steps=2)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline(networks_of("fast"), Precision.FP32, sparse=True, recipe=FAST)


@pytest.fixture
def session(pipe: Pipeline) -> EditSession:
    return EditSession(pipe, picture(SIZE), PARAMS)


def corner() -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[40:, 90:] = True
    return mask


def edits(session: EditSession) -> dict[str, Tensor]:
    """Three edits of a session's picture, by name."""
    return {
        "horse": session.inpaint("a horse", rectangle(SIZE)).image,
        "house": session.inpaint("a house", corner()).image,
        "drawn": session.sdedit("a sun", drawn_on(session.picture, corner()), 0.7).image,
    }


def test_edits_are_the_same_again_in_any_order_and_in_another_session(
    pipe: Pipeline, session: EditSession
) -> None:
    first = edits(session)
    again = edits(session)
    assert all(torch.equal(again[name], first[name]) for name in first)
    other = EditSession(pipe, picture(SIZE), PARAMS)
    drawn = other.sdedit("a sun", drawn_on(other.picture, corner()), 0.7).image
    assert torch.equal(drawn, first["drawn"])
    assert torch.equal(other.inpaint("a house", corner()).image, first["house"])
    assert not torch.equal(first["house"], first["horse"])


def test_two_sessions_on_one_pipeline_do_not_mix(pipe: Pipeline, session: EditSession) -> None:
    before = session.inpaint("a horse", rectangle(SIZE)).image
    other = EditSession(pipe, picture(SIZE, seed=8), PARAMS)
    other.inpaint("a horse", rectangle(SIZE))
    other.accept(other.inpaint("a house", corner()))
    assert torch.equal(session.inpaint("a horse", rectangle(SIZE)).image, before)


def test_a_session_under_the_edits_own_prompt_is_the_cold_edit(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of itself a cold edit decodes in full.
    monkeypatch.setattr(pipe, "recipe", replace(pipe.recipe, sparse_decode=True))
    mask, params = rectangle(SIZE), SamplingParams("a horse", seed=3, steps=3)
    warm = EditSession(pipe, picture(SIZE), params).inpaint("a horse", mask).image
    noise = NamedNoise(3)
    cold = inpaint_with(pipe, picture(SIZE), mask, "a horse", seed=3, steps=3, noise=noise).image
    assert max_error(warm, cold) < 1e-4


def test_accepted_edits_leave_the_rest_and_later_edits_see_them(session: EditSession) -> None:
    first = session.picture
    touched = torch.zeros(SIZE, dtype=torch.bool)
    for number in range(10):
        mask = torch.zeros(SIZE, dtype=torch.bool)
        mask[number * 4 : number * 4 + 9, number * 9 : number * 9 + 20] = True
        session.accept(session.inpaint("a horse", mask))
        touched |= opacity(mask, Blend().width(SIZE)) > 0
    assert torch.equal(session.picture[:, ~touched], first[:, ~touched])
    assert not torch.equal(session.picture[:, touched], first[:, touched])


def test_accepting_an_edit_of_everything_is_recording_anew(pipe: Pipeline) -> None:
    """With all pixels active nothing is approximated, so both recordings agree to rounding."""
    # Of drawings, so that the encoder is recorded too.
    session = EditSession(pipe, picture(SIZE), PARAMS, Task.SDEDIT)
    result = session.inpaint("a horse", rectangle(SIZE))
    result = type(result)((picture(SIZE, seed=4) + 1) / 2, result.seconds)
    session.accept(result)
    fresh = EditSession(pipe, result.image * 2 - 1, PARAMS, Task.SDEDIT)
    fresh.inpaint("a horse", rectangle(SIZE))
    assert max_error(session.recordings.z, fresh.recordings.z) < 1e-4
    for name in ("inpainting-0000", "inpainting-0002", "encoder", "decoder"):
        updated, recorded = session.recordings.store.get(name), fresh.recordings.store.get(name)
        assert updated.values.keys() == recorded.values.keys()
        for key, value in recorded.values.items():
            for a, b in zip(tensors_of(updated.values[key]), tensors_of(value), strict=True):
                assert max_error(a, b) < 1e-3 * max(1.0, b.abs().max().item()), (name, key)


def test_every_strength_is_recorded_when_it_is_first_asked_for(pipe: Pipeline) -> None:
    params = replace(PARAMS, strength=0.6)
    session = EditSession(pipe, picture(SIZE), params, Task.SDEDIT)
    assert session.is_recorded(Task.SDEDIT, 0.6)
    assert not session.is_recorded(Task.SDEDIT, 0.9)
    assert not session.is_recorded(Task.INPAINTING, 1.0)
    drawing = drawn_on(session.picture, corner())
    before = session.recordings.store.names()
    session.sdedit("", drawing, 0.6)
    assert session.recordings.store.names() == before
    session.sdedit("a sun", drawing, 0.9)
    assert session.is_recorded(Task.SDEDIT, 0.9)
    session.inpaint("a horse", rectangle(SIZE))
    assert {"inpainting-0000", "inpainting-latents"} <= session.recordings.store.names()


def test_a_strength_of_no_step_is_refused(session: EditSession) -> None:
    with pytest.raises(UserError, match=r"Strength 0\.1 leaves no step; take a larger one"):
        session.sdedit("a sun", drawn_on(session.picture, corner()), 0.1)


def test_a_prompt_followed_at_every_recorded_step_is_the_recordings_own(pipe: Pipeline) -> None:
    """What the new prompt changes is then added where it was found, so nothing else is left."""
    following = pipe.with_recipe(FAST.with_recordings(TWO))
    mask = rectangle(SIZE)
    own = replace(PARAMS, prompt="a horse")
    expected = EditSession(following, picture(SIZE), own).inpaint("a horse", mask).image
    session = EditSession(following, picture(SIZE), PARAMS)
    assert max_error(session.inpaint("a horse", mask).image, expected) < 1e-4
    deaf = pipe.with_recipe(FAST.with_recordings(replace(TWO, prompt_steps=0)))
    session = EditSession(deaf, picture(SIZE), PARAMS)
    assert max_error(session.inpaint("a horse", mask).image, expected) > 1e-2


def test_what_a_prompt_changes_is_made_once_and_forgotten_when_the_picture_changes(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = EditSession(pipe, picture(SIZE), PARAMS)
    counts = []
    full_pass = pipe.networks.unet.forward

    def counted(*args: Tensor, **named: Tensor) -> Tensor:
        counts.append(handle_of(pipe.networks.unet).mode)
        return full_pass(*args, **named)

    monkeypatch.setattr(pipe.networks.unet, "forward", counted)

    def full_passes(run: Callable[[], EditResult]) -> int:
        counts.clear()
        run()
        return counts.count(Mode.RECORD)

    horse = partial(session.inpaint, "a horse", rectangle(SIZE))
    house = partial(session.inpaint, "a house", corner())
    assert [full_passes(run) for run in (horse, house, horse, house)] == [3, 3, 0, 0]
    assert full_passes(partial(session.inpaint, "", corner())) == 0  # the base prompt
    assert full_passes(partial(session.inpaint, "a horse", corner(), "blurry")) == 3
    session.sdedit("a sun", drawn_on(session.picture, corner()), 0.7)
    session.accept(horse())
    assert not any(name.startswith("prompt-") for name in session.recordings.store.names())
    assert full_passes(horse) == 3 and full_passes(house) == 3


@pytest.mark.parametrize("precision", [RecordingPrecision.INT8, RecordingPrecision.BF16])
@pytest.mark.parametrize("memory", ["device", "disk"])
def test_small_recordings_give_nearly_the_same_edit(
    pipe: Pipeline, precision: RecordingPrecision, memory: str, tmp_path: Path
) -> None:
    place = RecordingMemory(memory)
    params = replace(PARAMS, prompt="a field")
    edited = {}
    for kind in (RecordingPrecision.FULL, precision):
        small = pipe.with_recipe(FAST.with_recordings(RecordingSettings(precision=kind)))
        folder = tmp_path / kind
        folder.mkdir()
        session = EditSession(
            small,
            picture(SIZE),
            params,
            make_store=lambda size, folder=folder: make_store(size, CPU, place, folder),
        )
        drawing = drawn_on(session.picture, corner())
        found = [
            session.inpaint("a horse", rectangle(SIZE)).image,
            session.sdedit("a sun", drawing, 0.9).image,
        ]
        session.accept(session.inpaint("a house", corner()))
        found.append(session.inpaint("a horse", rectangle(SIZE)).image)
        edited[kind] = found, session.report.step_bytes
    (full, size), (narrow, narrow_size) = edited.values()
    assert narrow_size < size * (0.35 if precision is RecordingPrecision.INT8 else 0.6)
    for a, b in zip(narrow, full, strict=True):
        assert 0 < (a - b).square().mean().sqrt() < 0.01


def test_a_dense_or_published_pipeline_is_refused() -> None:
    published = Pipeline(networks_of("sige"), Precision.FP32, sparse=True)
    with pytest.raises(ValueError, match="preset fast"):
        EditSession(published, picture(SIZE), PARAMS)


def test_recordings_on_disk_give_the_same_edit(
    pipe: Pipeline, session: EditSession, tmp_path: Path
) -> None:
    stored = EditSession(
        pipe, picture(SIZE), PARAMS, make_store=lambda size: DiskStore(tmp_path, CPU)
    )
    assert stored.report.place == "disk" and stored.report.steps == 3
    assert len(list(tmp_path.glob("inpainting-0*"))) == 3
    expected = session.inpaint("a horse", rectangle(SIZE)).image
    assert torch.equal(stored.inpaint("a horse", rectangle(SIZE)).image, expected)
    later = DiskStore(tmp_path, CPU)
    later.checksums = stored.recordings.store.checksums
    resumed = EditSession.resume(pipe, picture(SIZE), PARAMS, later)
    assert torch.equal(resumed.inpaint("a horse", rectangle(SIZE)).image, expected)
    drawing = drawn_on(session.picture, corner())
    expected = session.sdedit("a sun", drawing, 0.9).image
    for _ in range(2):  # the first records, on disk
        assert torch.equal(resumed.sdedit("a sun", drawing, 0.9).image, expected)
    assert len(list(tmp_path.glob("sdedit-0.9-*"))) == 3  # two steps and the latents


@pytest.mark.parametrize("damage", ["bytes", "missing", "cut"])
def test_a_damaged_recording_is_named(damage: str, tmp_path: Path) -> None:
    store = DiskStore(tmp_path, CPU)
    recording = Recording()
    recording.values["a", "b"] = torch.arange(64.0)
    store.put("inpainting-0001", recording)
    assert torch.equal(store.get("inpainting-0001").values["a", "b"], torch.arange(64.0))
    path = tmp_path / "inpainting-0001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if damage == "bytes" else content[:-50])
    later = DiskStore(tmp_path, CPU)
    later.checksums = store.checksums
    with pytest.raises(UserError, match=r"inpainting-0001\.safetensors is .*damaged; record again"):
        later.get("inpainting-0001")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("memory", ["device", "host", "disk"])
def test_recordings_come_back_as_they_were(memory: str, tmp_path: Path) -> None:
    store = make_store(1000, CPU, RecordingMemory(memory), tmp_path)
    assert store.place is RecordingMemory(memory)
    recording, shared = Recording(), torch.arange(6.0)
    recording.values["a", "rows"] = shared
    recording.values["b", "rows"] = shared
    recording.values["b", "size"] = (2, 3)
    recording.values["c", "moments"] = Moments(torch.ones(2), torch.zeros(2))
    store.put("x", recording)
    shared.mul_(0)  # as the next step of a network that runs as a graph does
    found = store.get("x").values
    assert found["b", "size"] == (2, 3) and found.keys() == recording.values.keys()
    assert torch.equal(found["a", "rows"], torch.arange(6.0))
    assert torch.equal(found["b", "rows"], torch.arange(6.0))
    assert torch.equal(found["c", "moments"].mean, torch.ones(2))


def test_the_place_depends_on_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_store(1000, CPU).place is RecordingMemory.DEVICE
    monkeypatch.setattr(choose_store, "free_host_memory", lambda: 1000)
    assert make_store(1000, CPU, folder=tmp_path).place is RecordingMemory.DISK
    with pytest.raises(UserError, match=r"room for 0\.0 GB on device, 0\.0 GB on host"):
        make_store(1000, CPU)
    with pytest.raises(UserError, match=r"0\.0 GB on host; make room"):
        make_store(1000, CPU, RecordingMemory.HOST)
    with pytest.raises(UserError, match="GB on disk"):
        make_store(10**18, CPU, RecordingMemory.DISK, tmp_path)


class Slow(DeviceStore):
    """A store that says what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def get(self, name: str) -> Recording:
        self.asked.append(name)
        if name == "bad":
            raise UserError("damaged")
        return super().get(name)


def test_the_next_recording_is_fetched_ahead() -> None:
    store, names = Slow(), ["c", "b", "a"]
    for name in names:
        recording = Recording()
        recording.values["name", name] = torch.zeros(1)
        store.put(name, recording)
    with Prefetch(store, names, CPU) as prefetch:
        for name in ["b", "a", "c"]:  # from the middle on, and back
            assert list(prefetch.get(name).values) == [("name", name)]
    assert store.asked[:3] == ["b", "a", "c"]
    with Prefetch(store, ["b", "bad"], CPU) as prefetch:
        prefetch.get("b")
        with pytest.raises(UserError, match="damaged"):
            prefetch.get("bad")
