"""How fast a device trains: what a step of each window size takes, and what its workers supply."""

import itertools
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tools.tiny import refiner, unet, workers
from tools.tiny.checkpoints import Ema
from tools.tiny.course import adam, training_step
from tools.tiny.family import LAYOUTS, Scale, autocast
from tools.tiny.latents import CONFIG, LatentScenes
from tools.tiny.workers import AHEAD

logger = logging.getLogger(__name__)

WARM, MEASURED = 5, 16  # steps, of which a graph's first three run as they are
# A part of a course in which a window size comes, and the parity of its steps.
PLACES = {unet.CLOSE: (0.0, 0), unet.HALF: (0.0, 1), unet.GRID: (0.9, 0)}


def seconds_each(
    call: Callable[[], object], warm: int, measured: int, device: str
) -> tuple[float, float]:
    """What a call takes, once it is warm, and what it takes of this process."""
    for count in (warm, measured):
        began = time.monotonic()
        for _ in range(count):
            call()
        given = time.monotonic()
        if device != "cpu":
            torch.cuda.synchronize()
    return (time.monotonic() - began) / measured, (given - began) / measured


def say_speed(work: Path, start: Path, device: str, scale: Scale) -> None:
    """Log what a step takes in each memory layout, with views that are there, and how many samples
    the workers supply. Nothing is learned: the rate is zero."""
    data = LatentScenes(work / "latents", device)
    for layout in LAYOUTS:
        say_steps(data, start, device, scale, layout)
    if device != "cpu":
        logger.info("%.1f GiB at most", torch.cuda.max_memory_allocated() / 2**30)
    if scale.workers:
        say_supply(unet.Batches(data, scale.factor, pool := workers.start(scale.workers)), device)
        workers.abandon(pool)


def say_steps(data: LatentScenes, start: Path, device: str, scale: Scale, layout: str) -> None:
    """Log the steps of each window size kernel by kernel and, on a GPU, as graphs. Beside each
    stands the mean loss, which is to be the same."""
    engine = refiner.load_engine(CONFIG, start)
    trainable = unet.Trainable(engine).to(device, memory_format=LAYOUTS[layout])
    parameters, ema = trainable.used(), Ema(trainable, 0.999)
    optimizer = adam(parameters, 0.0, scale.graphs)

    def loss_of(batch: unet.Batch) -> Tensor:
        with autocast(device, scale.half):
            return unet.loss_of(engine, batch)

    for size, (done, step) in PLACES.items():
        seen = unet.Batches(data, scale.factor).task(step, done)()
        for graphs in (False, True)[: 1 + scale.graphs]:
            train = training_step(loss_of, parameters, optimizer, graphs)
            total = torch.zeros((), device=device)

            def call(
                seen: unet.Views = seen,
                train: Callable[[unet.Batch], Tensor] = train,
                total: Tensor = total,
            ) -> None:
                total.add_(train(unet.batch_of(data, seen, LAYOUTS[layout])))
                ema.update(0)

            taken, host = seconds_each(call, WARM, MEASURED, device)
            count, way = len(seen.rows), "as a graph" if graphs else "kernel by kernel"
            what = (*size, count, layout, way, 1000 * taken, 1000 * host, count / taken)
            mean = total.item() / (WARM + MEASURED)
            text = "%d x %d latents, %d a batch, %s, %s: %.1f ms a step (host %.1f), %.0f samples/s"
            logger.info(f"{text}, loss %.4f", *what, mean)


def say_supply(batches: unet.Batches, device: str) -> None:
    """Log what a batch of the workers takes, after as many as they make ahead."""
    steps = itertools.count()
    taken, _ = seconds_each(lambda: batches(next(steps), 0.0), AHEAD, AHEAD, device)
    count = batches.factor * (unet.BATCH[unet.CLOSE] + unet.BATCH[unet.HALF]) / 2
    logger.info("workers: %.1f ms a batch, %.0f samples/s", 1000 * taken, count / taken)
