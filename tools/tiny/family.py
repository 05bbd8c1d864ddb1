"""The training of the tiny family, from nothing or from an older one: all stages in their order."""

import logging
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sgm.models.autoencoder import AutoencoderKL
from tools.tiny import autoencoder, refiner, unet
from tools.tiny.checkpoints import part, read, write
from tools.tiny.course import Course
from tools.tiny.export import export
from tools.tiny.latents import LatentScenes, Pictures, extend, normalise
from tools.tiny.practice import bare_scene

logger = logging.getLogger(__name__)

BASE_CONFIG, REFINER_CONFIG = "configs/tiny-original.yaml", "configs/tiny-refiner.yaml"
# Of the time, in the order in which they run. Encoding has no more than its share, and no less
# than the fewest scenes.
SHARES = {"autoencoder": 0.22, "latents": 0.08, "unet": 0.5, "decoder": 0.1, "refiner": 0.1}
STARTED_SHARES = {"latents": 0.06, "unet": 0.76, "decoder": 0.08, "refiner": 0.1}  # from a family
FEWEST_SCENES = 280


def processor_time() -> float:
    """Seconds that the cores of this process were busy for it. A course on a CPU is counted by
    these: on a busy machine it takes longer, and learns as much."""
    return time.process_time() / torch.get_num_threads()


@dataclass(frozen=True)
class Scale:
    """How much of a machine to use.

    Attributes:
        factor: batches are as many times larger.
        scenes: of which latents are made, at most.
        drawn: pictures that are drawn beforehand, by all cores; 0 to draw each when it is needed.
        half: whether networks run in bfloat16 where that is safe.
    """

    factor: int
    scenes: int
    drawn: int
    half: bool


CPU = Scale(factor=1, scenes=7_000, drawn=0, half=False)
GPU = Scale(factor=8, scenes=14_000, drawn=14_000, half=True)


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
        self.pictures = Pictures(scale.drawn)
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
        stages = (self.train_autoencoder, self.encode, self.train_unet, self.train_decoder)
        done = all(stage() for stage in stages)
        if (self.work / "unet.safetensors").exists():
            logger.info("wrote %s", export(self.work, "base", folder, note))
        if done and (done := self.train_refiner(folder / "tiny_base.safetensors")):
            logger.info("wrote %s", export(self.work, "refiner", folder, note))
        return done

    def ready(self, tensor: Tensor) -> Tensor:
        """A tensor on the device, pictures and latents with their channels last."""
        tensor = tensor.to(self.device, non_blocking=True)
        return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    def autocast(self) -> AbstractContextManager[object]:
        half = self.scale.half
        return torch.autocast(self.device, torch.bfloat16) if half else nullcontext()

    def course(self, name: str, lr: float, decay: float) -> Course:
        return Course(self.work / f"{name}.safetensors", self.seconds[name], lr, decay, self.clock)

    def first_stage(self) -> AutoencoderKL:
        """The autoencoder whose latents the UNet learns, on the device."""
        vae = autoencoder.build(BASE_CONFIG)
        vae.load_state_dict(read(self.work / "first_stage.safetensors")[0])
        return vae.eval().to(self.device, memory_format=torch.channels_last)

    def train_autoencoder(self) -> bool:
        """All of the autoencoder; or that of the family to start from."""
        path = self.work / "first_stage.safetensors"
        if path.exists():
            return True
        vae = autoencoder.build(BASE_CONFIG)
        if self.start is not None:
            tensors, metadata = read(self.start)
            steps, seconds = metadata["autoencoder_steps"], metadata["autoencoder_seconds"]
            kept = {"step": steps, "seconds": seconds}
            write(path, part(tensors, "first_stage_model"), kept)
            return True
        vae.to(self.device, memory_format=torch.channels_last)

        def loss_of(step: int, done: float) -> Tensor:
            size = autoencoder.crop_size(done)
            x = autoencoder.crop_batch(self.pictures, step, size, self.scale.factor)
            return autoencoder.loss_of(vae, self.ready(x))

        course = self.course("autoencoder", 2e-3, 0.998)
        if not course.run(vae, list(vae.parameters()), loss_of, self.stop):
            return False
        tensors, metadata = read(course.path)
        vae.load_state_dict(part(tensors, "ema"))
        normalise(vae.eval())
        write(path, {k: v.cpu() for k, v in vae.state_dict().items()}, metadata)
        return True

    def encode(self) -> bool:
        """Latents of scenes."""
        latest = self.clock() + self.seconds["latents"]
        folder = self.work / "latents"

        def stop() -> bool:
            enough = len(LatentScenes(folder)) >= FEWEST_SCENES
            return self.stop() or (enough and self.clock() > latest)

        batch = 28 if self.scale.drawn else 1
        if not (self.work / "unet.safetensors").exists():
            both = self.pictures, Pictures(self.scale.drawn, bare_scene)
            extend(folder, self.first_stage(), *both, self.scale.scenes, stop, batch)
        return len(LatentScenes(folder)) >= FEWEST_SCENES

    def train_unet(self) -> bool:
        """The UNet and its text towers."""
        engine = unet.build(BASE_CONFIG)
        if self.start is not None:
            engine = refiner.load_engine(BASE_CONFIG, self.start)
        trainable = unet.Trainable(engine).to(self.device, memory_format=torch.channels_last)
        data = LatentScenes(self.work / "latents")
        batches = unet.Batches(data, self.scale.factor)

        def loss_of(step: int, done: float) -> Tensor:
            batch = batches(step, unet.window_size(step, done)).to(self.ready)
            with self.autocast():
                return unet.loss_of(engine, batch)

        course = self.course("unet", 1e-3 if self.start is None else 8e-4, 0.999)
        return course.run(trainable, trainable.used(), loss_of, self.stop)

    def train_decoder(self) -> bool:
        """More of the decoder, on the latents that are in use."""
        data, vae = LatentScenes(self.work / "latents"), self.first_stage()
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)

        def loss_of(step: int, done: float) -> Tensor:
            z, x = autoencoder.decoder_batch(data, self.pictures, step, done, self.scale.factor)
            return autoencoder.difference(vae.decode(self.ready(z)), self.ready(x))

        trained = [p for p in vae.parameters() if p.requires_grad]
        done = self.course("decoder", 1e-3, 0.998).run(vae, trained, loss_of, self.stop)
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
        teacher = refiner.load_engine(BASE_CONFIG, base).eval().requires_grad_(False)
        student = refiner.build_student(REFINER_CONFIG, teacher)
        teacher.to(self.device, memory_format=torch.channels_last)
        trainable = unet.Trainable(student).to(self.device, memory_format=torch.channels_last)
        batches = unet.Batches(LatentScenes(self.work / "latents"), self.scale.factor)

        def loss_of(step: int, done: float) -> Tensor:
            number = refiner.FIRST_STEP + step
            batch = batches(number, unet.window_size(step, done)).to(self.ready)
            with self.autocast():
                return refiner.loss_of(teacher, student, batch)

        course = self.course("refiner", 5e-4, 0.995)
        return course.run(trainable, trainable.used(), loss_of, self.stop)
