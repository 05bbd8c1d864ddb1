"""The training of the tiny family, from nothing or from an older one: all stages in their order."""

import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sgm.models.autoencoder import AutoencoderKL
from tools.tiny import autoencoder, refiner, turbo, unet, workers
from tools.tiny.checkpoints import part, read, write
from tools.tiny.course import Course
from tools.tiny.export import NETWORKS, export
from tools.tiny.latents import (
    CONFIG,
    SHARD,
    LatentScenes,
    extend,
    load_first_stage,
    normalise,
    sent,
    shards,
    to_input,
)

logger = logging.getLogger(__name__)

REFINER_CONFIG = "configs/tiny-refiner.yaml"
# Of the time, in the order in which they run. Encoding has no more than its share, and no less
# than the fewest scenes.
SHARES = {
    "autoencoder": 0.21,
    "latents": 0.08,
    "unet": 0.44,
    "decoder": 0.09,
    "refiner": 0.09,
    "turbo": 0.09,
}
# Where a family is there to start from.
STARTED_SHARES = {"latents": 0.04, "unet": 0.61, "decoder": 0.08, "refiner": 0.14, "turbo": 0.13}
FEWEST_SCENES = 280
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def processor_time() -> float:
    """Seconds that the cores of this process were busy for it. A course on a CPU is counted by
    these: on a busy machine it takes longer, and learns as much."""
    return time.process_time() / torch.get_num_threads()


@dataclass(frozen=True)
class Scale:
    """How much of a machine to use.

    Attributes:
        factor: batches of the networks in latents are as many times larger.
        pictures: those of the autoencoder and its decoder are.
        scenes: of which latents are made, at most.
        workers: processes that make batches and latents ahead; 0 to make them when needed.
        lr: learning rates of those networks are as many times higher.
        half: whether networks run in bfloat16 where that is safe.
        graphs: whether steps of those networks are CUDA graphs.
        layout: of those networks' weights and maps in memory, one of `LAYOUTS`.
    """

    factor: int
    pictures: int
    scenes: int
    workers: int
    lr: float
    half: bool
    graphs: bool = False
    layout: str = "channels_last"


CPU = Scale(factor=1, pictures=1, scenes=7_000, workers=0, lr=1.0, half=False)
# Batches with enough to do for the 3000 kernels of a step, most of which are small. Rates grow by
# less than the root of the factor: to be safe.
GPU = Scale(factor=32, pictures=8, scenes=14_000, workers=14, lr=1.5, half=True, graphs=True)


def scale_of(device: str) -> Scale:
    """What a device is used with; of the cores two are left to the process that trains."""
    spare = max(1, len(os.sched_getaffinity(0)) - 2)
    return replace(GPU, workers=spare) if device.startswith("cuda") else CPU


def autocast(device: str, half: bool) -> AbstractContextManager[object]:
    """The context in which networks run."""
    return torch.autocast(torch.device(device).type, torch.bfloat16) if half else nullcontext()


def take_first_stage(base: Path, path: Path) -> None:
    """Write the autoencoder of a family that is there as a training state."""
    tensors, metadata = read(base)
    spent = {"step": metadata["autoencoder_steps"], "seconds": metadata["autoencoder_seconds"]}
    write(path, part(tensors, "first_stage_model"), spent)


def make_latents(
    work: Path, start: Path, device: str, scenes: int, count: int, minutes: float
) -> None:
    """Make latents of scenes beforehand, with `count` worker processes and for so many minutes. It
    may be stopped at any moment, and goes on from the files that are there."""
    first_stage = work / "first_stage.safetensors"
    if not first_stage.exists():
        take_first_stage(start, first_stage)
    latest = time.monotonic() + 60 * minutes
    pool = workers.start(count)
    try:
        folder = work / "latents"
        extend(folder, first_stage, device, scenes, pool, lambda: time.monotonic() > latest)
    finally:
        workers.abandon(pool)


class Family:
    """The training of a family within a number of minutes, over as many sittings as it takes.

    Args:
        work: folder of the states. A stage goes on from its state.
        minutes: of training in all; the stages share them. On a CPU they are minutes of its cores,
            which in the background come by slowly.
        sitting: minutes after which to stop, whatever is left; None for as long as it takes.
        start: an older family's base. Its encoder stays, so that its latents do, and its decoder
            and its UNet are trained on.
    """

    def __init__(
        self,
        work: Path,
        minutes: float,
        device: str,
        scale: Scale,
        sitting: float | None = None,
        start: Path | None = None,
    ) -> None:
        self.work, self.device, self.scale, self.start = work, device, scale, start
        shares = SHARES if start is None else STARTED_SHARES
        self.seconds = {name: 60 * minutes * share for name, share in shares.items()}
        self.deadline = None if sitting is None else time.monotonic() + 60 * sitting
        self.pool: ProcessPoolExecutor | None = None
        self.clock = processor_time if device == "cpu" else time.monotonic
        self.interrupted = False

    def stop(self) -> bool:
        """Whether this sitting is to end."""
        return self.interrupted or (self.deadline is not None and time.monotonic() > self.deadline)

    def interrupt(self, *_: object) -> None:
        """End the sitting after the present step; the state is saved."""
        self.interrupted = True

    def train(self, folder: Path, note: str) -> bool:
        """Go on with the stages, and export what there is at the end of the sitting.

        Returns:
            Whether all of it is done.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.interrupt)
        self.pool = workers.start(self.scale.workers) if self.scale.workers else None
        try:
            return self.run_stages(folder, note)
        finally:
            if self.pool is not None:
                workers.abandon(self.pool)

    def run_stages(self, folder: Path, note: str) -> bool:
        """As `train`."""
        stages = (self.train_autoencoder, self.encode, self.train_unet, self.train_decoder)
        done = all(stage() for stage in stages)
        self.export("base", folder, note)
        base = folder / "tiny_base.safetensors"
        done = done and self.train_refiner(base)
        self.export("refiner", folder, note)
        done = done and self.train_turbo(base)
        self.export("turbo", folder, note)
        return done

    def export(self, name: str, folder: Path, note: str) -> None:
        """Write a file of the family, if its network has been trained."""
        if (self.work / f"{NETWORKS[name]}.safetensors").exists():
            logger.info("wrote %s", export(self.work, name, folder, note))

    def course(self, name: str, lr: float, decay: float, graphs: bool = False) -> Course:
        path, seconds = self.work / f"{name}.safetensors", self.seconds[name]
        return Course(path, seconds, lr, decay, self.clock, graphs)

    def first_stage(self) -> AutoencoderKL:
        """The autoencoder whose latents the UNet learns, on the device."""
        return load_first_stage(self.work / "first_stage.safetensors", self.device)

    def train_autoencoder(self) -> bool:
        """All of the autoencoder; or that of the family to start from."""
        path = self.work / "first_stage.safetensors"
        if not path.exists() and self.start is not None:
            take_first_stage(self.start, path)
        if path.exists():
            return True
        vae = autoencoder.build(CONFIG)
        vae.to(self.device, memory_format=torch.channels_last)

        def task(step: int, done: float) -> Callable[[], np.ndarray]:
            size = autoencoder.crop_size(done)
            return partial(autoencoder.crops, step, size, self.scale.pictures)

        crops = workers.Ahead(self.pool, task)

        def batches(step: int, done: float) -> Tensor:
            return to_input(sent(crops(step, done), torch.device(self.device)))

        course, trained = self.course("autoencoder", 2e-3, 0.998), list(vae.parameters())
        if not course.run(vae, trained, batches, partial(autoencoder.loss_of, vae), self.stop):
            return False
        tensors, metadata = read(course.path)
        vae.load_state_dict(part(tensors, "ema"))
        normalise(vae.eval())
        write(path, {k: v.cpu() for k, v in vae.state_dict().items()}, metadata)
        return True

    def encode(self) -> bool:
        """Latents of scenes."""
        latest = self.clock() + self.seconds["latents"]
        folder, scale = self.work / "latents", self.scale

        def stop() -> bool:
            enough = SHARD * len(shards(folder)) >= FEWEST_SCENES
            return self.stop() or (enough and self.clock() > latest)

        if not (self.work / "unet.safetensors").exists():
            first_stage = self.work / "first_stage.safetensors"
            extend(folder, first_stage, self.device, scale.scenes, self.pool, stop)
        return SHARD * len(shards(folder)) >= FEWEST_SCENES

    def train_unet(self) -> bool:
        """The UNet and its text towers."""
        engine = unet.build(CONFIG)
        if self.start is not None:
            engine = refiner.load_engine(CONFIG, self.start)
        trainable = unet.Trainable(engine).to(self.device, memory_format=LAYOUTS[self.scale.layout])

        def loss_of(batch: unet.Batch) -> Tensor:
            with autocast(self.device, self.scale.half):
                return unet.loss_of(engine, batch)

        lr = self.scale.lr * (1e-3 if self.start is None else 8e-4)
        course, batches = (
            self.course("unet", lr, 0.999, self.scale.graphs),
            self.batches(0),
        )
        return course.run(trainable, trainable.used(), batches, loss_of, self.stop)

    def batches(
        self, first: int, counts: Mapping[tuple[int, int], int] | None = None
    ) -> unet.Batches:
        """Those of a network in latents, from a number on."""
        data = LatentScenes(self.work / "latents", self.device)
        layout = LAYOUTS[self.scale.layout]
        return unet.Batches(data, self.scale.factor, self.pool, first, layout, counts)

    def train_decoder(self) -> bool:
        """More of the decoder, on the latents that are in use."""
        data, vae = LatentScenes(self.work / "latents", self.device), self.first_stage()
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)

        batches = autoencoder.DecoderBatches(data, self.scale.pictures, self.pool)

        def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
            z, x = batch
            return autoencoder.difference(vae.decode(z), x)

        trained = [p for p in vae.parameters() if p.requires_grad]
        done = self.course("decoder", 1e-3, 0.998).run(vae, trained, batches, loss_of, self.stop)
        logger.info("held-out PSNR %.2f dB", self.held_out_psnr())
        return done

    def held_out_psnr(self) -> float:
        """Of the autoencoder as it would be exported, in dB."""
        vae = self.first_stage()
        trained = part(read(self.work / "decoder.safetensors")[0], "ema")
        vae.load_state_dict(vae.state_dict() | trained)
        return autoencoder.held_out_psnr(vae)

    def train_refiner(self, base: Path) -> bool:
        """The refiner, taught by the exported base."""
        teacher = refiner.load_engine(CONFIG, base).eval().requires_grad_(False)
        student = refiner.build_student(REFINER_CONFIG, teacher)
        teacher.to(self.device, memory_format=LAYOUTS[self.scale.layout])
        trainable = unet.Trainable(student).to(
            self.device, memory_format=LAYOUTS[self.scale.layout]
        )

        def loss_of(batch: unet.Batch) -> Tensor:
            with autocast(self.device, self.scale.half):
                return refiner.loss_of(teacher, student, batch)

        course = self.course("refiner", self.scale.lr * 5e-4, 0.995, self.scale.graphs)
        batches = self.batches(refiner.FIRST_STEP)
        return course.run(trainable, trainable.used(), batches, loss_of, self.stop)

    def train_turbo(self, base: Path) -> bool:
        """The LoRA for few steps, taught by the exported base."""
        engine = refiner.load_engine(CONFIG, base).eval().requires_grad_(False)
        engine.to(self.device, memory_format=LAYOUTS[self.scale.layout])
        change = turbo.LowRank(engine.model).to(self.device)

        def loss_of(batch: unet.Batch) -> Tensor:
            with autocast(self.device, self.scale.half):
                return turbo.loss_of(engine, change, batch)

        course = self.course("turbo", self.scale.lr * 2e-3, 0.995, self.scale.graphs)
        batches = self.batches(turbo.FIRST_STEP, turbo.BATCH)
        return course.run(change, change.used(), batches, loss_of, self.stop)
