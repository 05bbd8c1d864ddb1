"""What a dense edit would take: measured when the device is idle, and given up for any edit."""

import time
from collections.abc import Callable

import torch

import sgm
from sgm.app.studio import MEASURED_STEPS, Studio
from sgm.app.worker import Job
from sgm.specs import SamplingParams
from tests.app.ears import PATIENCE, heard

SIZE = (64, 128)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_dense_is_measured_once_when_idle() -> None:
    pipeline = sgm.load("tiny", device="cpu").pipeline
    studio = Studio(pipeline, SamplingParams(""), "tiny", 10**10, 256 * 512)
    assert studio.dense_seconds(SIZE, 10) is None
    begun = []
    unet = pipeline.networks.unet
    hook = unet.register_forward_pre_hook(lambda *_: begun.append(time.monotonic()))
    studio.measure_dense(SIZE)
    wait_for(lambda: len(begun) == 1)
    # An edit comes: the measurement is given up at its next step, and made anew after it.
    heard(lambda emit: studio.worker.submit(lambda job: begun.clear(), emit))
    wait_for(lambda: studio.dense_seconds(SIZE, 10) is not None)
    assert len(begun) == MEASURED_STEPS
    studio.measure_dense(SIZE)
    heard(lambda emit: studio.worker.submit(lambda job: None, emit))
    hook.remove()
    assert len(begun) == MEASURED_STEPS
    ten, twenty = (studio.dense_seconds(SIZE, steps) for steps in (10, 20))
    assert ten is not None and twenty is not None and 0 < ten < twenty < 2 * ten


def test_what_is_measured_is_a_dense_edit() -> None:
    pipeline = sgm.load("tiny", device="cpu").pipeline
    studio = Studio(pipeline, SamplingParams(""), "tiny", 10**10, 256 * 512)
    seen = list[torch.Size]()
    pipeline.networks.unet.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    studio._measure(SIZE, Job(lambda job: None, lambda event: None))
    # Every pixel, with guidance, and no pass beside those of the steps.
    assert seen == [(2, 9, SIZE[0] // 8, SIZE[1] // 8)] * MEASURED_STEPS
