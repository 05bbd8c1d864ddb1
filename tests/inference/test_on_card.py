"""Whole edits on the CUDA device of the tests: pictures as on the CPU, no waits in the loop."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sgm.inference import loop
from sgm.inference.crop import EditRequest
from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import FAST
from sgm.inference.progress import NanCheck, Stopwatch
from sgm.inference.session import EditSession
from sgm.inference.window import window_around
from sgm.sparse.sparsify import handle_of
from sgm.specs import MODELS, Blend, SamplingParams
from sgm.words import Backend, Precision, Preset, RunType
from tests.conftest import ROOT, max_error
from tests.edits_here import inpaint_with, sdedit_with
from tests.pretend_cuda import PretendCuda

HEIGHT, WIDTH = 64, 128
KINDS = {
    "dense": (RunType.ORIGINAL, Preset.PUBLISHED),
    "published": (RunType.SIGE, Preset.PUBLISHED),
    "fast": (RunType.SIGE, Preset.FAST),
}


@pytest.fixture
def card() -> Iterator[PretendCuda]:
    with PretendCuda() as card:
        yield card


def picture() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, HEIGHT, WIDTH, generator=generator) * 2 - 1


def drawn() -> Tensor:
    edited = picture()
    edited[:, 16:30, 60:80] = 0.7
    return edited


def mask() -> Tensor:
    found = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    found[16:30, 50:80] = True
    return found


def load(kind: str, device: str) -> Pipeline:
    run_type, preset = KINDS[kind]
    folders = (ROOT / "configs", ROOT / "pretrained")
    where = (torch.device(device), Precision.FP32, Backend.TORCH)
    return Pipeline.load(MODELS["tiny"], run_type, *folders, *where, preset, progress=False)


def edit(pipeline: Pipeline, task: str, steps: int) -> Tensor:
    if task == "inpainting":
        return inpaint_with(pipeline, picture(), mask(), "a cat", steps=steps).image
    return sdedit_with(pipeline, picture(), drawn(), "a cat", steps=steps).image


def rounding(kind: str, task: str, steps: int) -> float:
    """What the order of sums makes in an edit: those of one and of three threads differ. The
    network is shown a grey picture in SDEdit, of whose encoding norms make much of a rounding; a
    pipeline keeps that encoding, so each has its own."""
    before, made = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            made.append(edit(load(kind, "cpu"), task, steps))
    finally:
        torch.set_num_threads(before)
    return max_error(*made)


@contextmanager
def watched(card: PretendCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts where the host waited or copied while the sampling loop ran."""
    found: Counter[str] = Counter()
    ordinary = Stopwatch.__call__

    @contextmanager
    def stage(self: Stopwatch, name: str) -> Iterator[None]:
        with ordinary(self, name):
            card.reset()
            yield
            if name == "sample":
                found.update(card.waits + card.uploads)

    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "__call__", stage)
        yield found


@pytest.mark.parametrize(
    ("kind", "task"),
    [("dense", "sdedit"), ("published", "inpainting"), ("fast", "inpainting"), ("fast", "sdedit")],
)
def test_an_edit_on_a_card(
    kind: str, task: str, card: PretendCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = edit(load(kind, "cpu"), task, 4)
    tolerance = max(1e-4, 4 * rounding(kind, task, 4))
    pipeline = load(kind, "cuda")
    if kind != "dense":
        assert handle_of(pipeline.networks.unet).graphs is not None  # by default
    with watched(card, monkeypatch) as few:
        assert max_error(edit(pipeline, task, 4), expected) < tolerance
    with watched(card, monkeypatch) as more:
        edit(pipeline, task, 6)
    # More steps, no more waits; only what is noised afresh for every step is copied there.
    fresh = kind == "published" and task == "inpainting"
    assert all(fresh and place.startswith("sgm/inference/unedited") for place in more - few), more
    assert not card.problems


@contextmanager
def watched_steps(card: PretendCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """As `watched`, from the first step of the last loop to its last, however many they are."""
    found: Counter[str] = Counter()
    make, after_step = loop._recordings, NanCheck.__call__

    def begin(*arguments: Any) -> Any:
        made = make(*arguments)
        card.reset()
        return made

    def step(self: NanCheck, number: int, x: Tensor) -> None:
        found.clear()
        found.update(card.waits + card.uploads)
        found.update(steps=number + 1, recordings_copied=card.kernels["_foreach_copy_"])
        after_step(self, number, x)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_recordings", begin)
        patch.setattr(NanCheck, "__call__", step)
        yield found


def test_sessions_on_a_card(card: PretendCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams("a cat", "", 2, 5, 6.0)
    results: dict[str, list[Tensor]] = {"cpu": [], "cuda": []}
    for device, made in results.items():
        session = EditSession(load("fast", device), picture(), params)
        inpaint = partial(session.inpaint, "a dog", mask())
        sdedit = partial(session.sdedit, "a dog", drawn(), 0.8)
        for edit, steps in ((inpaint, 5), (sdedit, 3)):
            with watched_steps(card, monkeypatch) as found:
                made.append(edit().image)
            # No waits, also where the wide masks of the first steps give way to the narrow ones.
            assert found == Counter(steps=steps)
    for right, image in zip(*results.values(), strict=True):
        assert max_error(image, right) < 1e-4
    session.sdedit("a dog", drawn(), 0.8)  # a kind of step is captured when it comes again
    captures = handle_of(session.recordings.networks.unet).graphs.captures
    for _ in range(2):
        session.sdedit("a dog", drawn(), 0.8)
    assert handle_of(session.recordings.networks.unet).graphs.captures == captures
    assert not card.problems


@pytest.mark.parametrize("task", ["inpainting", "sdedit"])
def test_an_edit_of_a_crop_is_finished_on_the_card(card: PretendCuda, task: str) -> None:
    """With border and grain matched, as on the CPU."""
    grain = torch.randn(3, 100, 150, generator=torch.Generator().manual_seed(1)) / 20
    image, drawing = grain.clamp(-1, 1), torch.zeros(100, 150, dtype=torch.bool)
    drawing[40:60, 50:90] = True
    window = window_around(drawing, (HEIGHT, WIDTH))
    edited = None if task == "inpainting" else image + 0.5 * drawing
    edit = EditRequest(image, edited, drawing, 0.5, Blend()).within(window)
    made = torch.rand(3, *edit.size, generator=torch.Generator().manual_seed(2))
    expected = edit.finish(made, FAST)
    moved = edit.on(torch.device("cuda"))
    found = moved.finish(made.to("cuda"), FAST)
    assert found.is_cuda and max_error(found.cpu(), expected) < 1e-6
    assert moved.weight(FAST).is_cuda
    assert not found.cpu().equal((image + 1) / 2)
