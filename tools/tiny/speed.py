"""How fast a device trains: what a step of each window size takes, and what its workers supply."""

import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tools.tiny import refiner, unet, workers
from tools.tiny.course import adam, descend
from tools.tiny.family import Scale, autocast
from tools.tiny.latents import CONFIG, LatentScenes
from tools.tiny.workers import AHEAD

logger = logging.getLogger(__name__)

WARM, MEASURED = 4, 20  # steps
# A part of a course in which a window size comes, and the parity of its steps.
PLACES = {unet.CLOSE: (0.0, 0), unet.HALF: (0.0, 1), unet.GRID: (0.9, 0)}


def seconds_each(call: Callable[[], object], warm: int, measured: int, device: str) -> float:
    """What a call takes, once it is warm."""
    for count in (warm, measured):
        began = time.monotonic()
        for _ in range(count):
            call()
        if device != "cpu":
            torch.cuda.synchronize()
    return (time.monotonic() - began) / measured


def say_speed(work: Path, start: Path, device: str, scale: Scale) -> None:
    """Log what a step takes on a batch that is there, and how many samples the workers supply."""
    engine = refiner.load_engine(CONFIG, start)
    trainable = unet.Trainable(engine).to(device, memory_format=torch.channels_last)
    parameters = trainable.used()
    optimizer = adam(parameters, 0.0)
    data = LatentScenes(work / "latents", device)
    for size, (done, step) in PLACES.items():
        batch = unet.batch_of(data, unet.Batches(data, scale.factor).task(step, done)())

        def train(batch: unet.Batch = batch) -> None:
            with autocast(device, scale.half):
                loss = unet.loss_of(engine, batch)
            descend(loss, parameters, optimizer)

        taken = seconds_each(train, WARM, MEASURED, device)
        said = (*size, len(batch.z), 1000 * taken, len(batch.z) / taken)
        logger.info("%d x %d latents: %d a batch, %.1f ms a step, %.0f samples/s", *said)
    if device != "cpu":
        logger.info("%.1f GiB at most", torch.cuda.max_memory_allocated() / 2**30)
    if scale.workers:
        say_supply(unet.Batches(data, scale.factor, pool := workers.start(scale.workers)), device)
        workers.abandon(pool)


def say_supply(batches: unet.Batches, device: str) -> None:
    """Log what a batch of the workers takes, after as many as they make ahead."""
    steps = itertools.count()
    taken = seconds_each(lambda: batches(next(steps), 0.0), AHEAD, AHEAD, device)
    count = batches.factor * (unet.BATCH[unet.CLOSE] + unet.BATCH[unet.HALF]) / 2
    logger.info("workers: %.1f ms a batch, %.0f samples/s", 1000 * taken, count / taken)
