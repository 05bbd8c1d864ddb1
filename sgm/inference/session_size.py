"""What the recordings of a session will take, counted on shapes alone: no weights are needed."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sgm import runtime
from sgm.inference.networks import Networks, table_of_preset
from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import Recipe
from sgm.inference.recordings import Recordings
from sgm.inference.region import Region, size_kept
from sgm.inference.track import DECODER, ENCODER
from sgm.io.checkpoint import build_model
from sgm.specs import LATENT_CHANNELS, LATENT_FACTOR, SamplingParams, Turbo
from sgm.words import Precision, Preset, Task

TEXT_TOKENS = 77


@dataclass(frozen=True)
class SessionSize:
    """Bytes of the recordings of a session.

    Attributes:
        encoder, decoder: bytes of each; 0 for the encoder in inpainting, which reads none.
        step: bytes of one step of the UNet.
        steps: how many steps are recorded.
        prompt_steps: how many more steps each prompt besides the base prompt adds.
    """

    encoder: int
    decoder: int
    step: int
    steps: int
    prompt_steps: int

    @property
    def recorded(self) -> int:
        """Bytes of all that is recorded when a session begins."""
        return self.encoder + self.decoder + self.steps * self.step

    @property
    def total(self) -> int:
        """Bytes with room for one other prompt."""
        return self.recorded + self.prompt_steps * self.step


def shapes_of(
    config: Path, precision: Precision, recipe: Recipe, turbo: Turbo | None = None
) -> Pipeline:
    """Networks of a configuration for sparse passes of preset `fast`, on the meta device."""
    engine = build_model(config).to(runtime.dtype_of(precision)).eval()
    return Pipeline(Networks(engine, table_of_preset(Preset.FAST)), precision, True, turbo, recipe)


def session_size(
    pipeline: Pipeline,
    size: tuple[int, int],
    params: SamplingParams,
    task: Task,
    region: Tensor | None = None,
) -> SessionSize:
    """What the recordings of an `EditSession` with these arguments take.

    Args:
        pipeline: sparse, with preset `fast`; its networks on the meta device.
        size: (height, width) of the picture, multiples of 64.
        region: where edits may be, bool [H, W]; None for anywhere.
    """
    networks, sdedit = pipeline.networks, task is Task.SDEDIT
    bound = None if region is None else Region.around(region, pipeline.recipe)
    dtype = next(networks.decoder.parameters()).dtype
    picture = torch.empty(3, *size, dtype=dtype, device="meta")
    latents = tuple(side // LATENT_FACTOR for side in size)
    z = torch.empty(1, LATENT_CHANNELS, *latents, dtype=dtype, device="meta")
    recordings = Recordings(pipeline, picture, params, None)
    track = recordings.track(task, params.strength)

    def kept(name: str, network: nn.Module, *inputs: Tensor) -> int:
        with torch.inference_mode(), recordings.recording_of(network, track) as record:
            network(*inputs)
        return size_kept(bound, name, record)

    return SessionSize(
        encoder=kept(ENCODER, networks.encoder, picture[None]) if sdedit else 0,
        decoder=kept(DECODER, networks.decoder, z),
        step=kept(task, networks.unet, *unet_inputs(networks.unet, size, 1 + (params.scale > 1))),
        steps=len(track.made),
        prompt_steps=len(track.steps_of_prompt()),
    )


def unet_inputs(unet: nn.Module, size: tuple[int, int], batch: int = 2) -> list[Tensor]:
    """What a UNet is called with for a picture of a size (height, width), on the meta device:
    latents [B, 4, h, w], time steps [B], text [B, 77, C] and the vector [B, D]."""
    latents = (batch, LATENT_CHANNELS, *(side // LATENT_FACTOR for side in size))
    context = next(m.to_k.in_features for n, m in unet.named_modules() if n.endswith("attn2"))
    vector = unet.label_emb[0][0].in_features
    shapes = (latents, (batch,), (batch, TEXT_TOKENS, context), (batch, vector))
    dtype = next(unet.parameters()).dtype
    return [torch.empty(shape, device="meta", dtype=dtype) for shape in shapes]
