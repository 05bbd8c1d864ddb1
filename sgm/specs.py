"""Names and tables of a run: what can be asked for, and which files each model family has.

Nothing here imports torch, so that `--help` and every refused option answer at once.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from sgm.errors import UserError, suggestion
from sgm.words import (
    Backend,
    Mode,
    Precision,
    Prediction,
    Preset,
    RecordingMemory,
    RecordingPrecision,
    RunType,
    Sampler,
    Spacing,
    Task,
)

LATENT_CHANNELS = 4
LATENT_FACTOR = 8
# An inpainting checkpoint reads latents, a mask, and the latents of the masked picture.
MASKED_CHANNELS = LATENT_CHANNELS + 1 + LATENT_CHANNELS
# Pixels are padded to this: the VAE divides by 8, the deepest UNet (the refiner) by 8 again.
SIZE_MULTIPLE = 64
# Holds configs/ and pretrained/: the top of a checkout, or inside an installed package.
_PACKAGE = Path(__file__).resolve().parent
SHIPPED = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
# Published sampler steps of base and refiner, and of a turbo model.
DEFAULT_STEPS, TURBO_STEPS = 50, 4
# Published classifier-free guidance, and that of edits by the tiny model, which 6 overdoes.
DEFAULT_SCALE, TINY_SCALE = 6.0, 3.0
MAX_STEPS, MAX_SEED, MAX_SCALE = 1000, 2**64 - 1, 1000.0  # the first: of the whole schedule
# Of preset fast: how many steps of a run are recorded, and how these recordings are kept.
DEFAULT_RECORDED, DEFAULT_RECORDING_PRECISION = 6, RecordingPrecision.FULL
DEFAULT_PROMPT_STEPS = 3  # full passes by which recordings are corrected for another prompt
# Pixels of the ring in which an edit fades out, and the longer side of the picture it is for.
FEATHER, FEATHER_SIDE = 8, 1024
AUTO, WHOLE = "auto", "none"  # of `padding_mask_crop`, besides pixels
LCM_STEPS = 50  # of the teacher, in the distillation of latent consistency models


class Lora(NamedTuple):
    """A LoRA to merge: a `.safetensors` file, in kohya's names or those of diffusers and peft, and
    what its changes are multiplied by; negative numbers take it away."""

    path: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Weights:
    """The files of one model. The checkpoint is a `.safetensors` file in the published layout, or a
    folder as diffusers saves it (`unet/`, `vae/`, `text_encoder/`, `text_encoder_2/`)."""

    checkpoint: Path
    vae: Path | None = None  # with another autoencoder than the checkpoint's; None for its own
    loras: tuple[Lora, ...] = ()  # merged as the weights are loaded; their order does not matter
    prediction: Prediction | None = None  # of the network; None for what the files say

    @property
    def files(self) -> list[Path]:
        """The checkpoint, the VAE and the LoRAs, as far as they are given."""
        vae = [] if self.vae is None else [self.vae]
        return [self.checkpoint, *vae, *(lora.path for lora in self.loras)]


@dataclass(frozen=True)
class Turbo:
    """The few steps of a turbo run; the default is published.

    Attributes:
        levels: where in the schedule of 1000 steps they start, rising from 0.
    """

    levels: tuple[int, ...] = (0, 100, 200, 300)


@dataclass(frozen=True)
class ModelSpec:
    """The files of one model family.

    Attributes:
        weights: checkpoint file names by role: `base`, `refiner`, `turbo`.
        loras: names of the LoRAs that are merged into the checkpoint of a role.
        configs: YAML file names by role: `original`, `sige`, `refiner` and `sige-refiner`. Preset
            `fast` makes the networks of the dense files sparse.
        pages: web page of each checkpoint by role, for a person to download it from; empty where
            the files come with the repository.
        trained_size: (height, width) in pixels that the network was trained for.
    """

    name: str
    weights: Mapping[str, str]
    configs: Mapping[str, str]
    pages: Mapping[str, str]
    trained_size: tuple[int, int]
    turbo: Turbo = Turbo()
    loras: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def own(self, folder: Path, role: str) -> Weights:
        """The family's own files of a role, in a folder of weights."""
        loras = tuple(Lora(folder / name) for name in self.loras.get(role, ()))
        return Weights(folder / self.weights[role], loras=loras)

    def weight_role(self, run_type: RunType) -> str:
        """`turbo` or `base`: the checkpoint that a run of this type starts with."""
        return "turbo" if run_type.turbo else "base"

    def config_file(
        self, run_type: RunType, refiner: bool = False, preset: Preset = Preset.PUBLISHED
    ) -> str:
        """YAML file name of the base (or turbo: same network) or the refiner, dense or sparse."""
        role = "refiner" if refiner else "original"
        if run_type.sparse and preset is Preset.PUBLISHED:
            role = "sige-refiner" if refiner else "sige"
        return self.configs[role]


_ROLES = ("original", "sige", "refiner", "sige-refiner")
_PAGES = "https://huggingface.co/stabilityai"

MODELS: Mapping[str, ModelSpec] = MappingProxyType(
    {
        "sdxl": ModelSpec(
            name="sdxl",
            weights={
                "base": "sd_xl_base_1.0.safetensors",
                "refiner": "sd_xl_refiner_1.0.safetensors",
                "turbo": "sd_xl_turbo_1.0.safetensors",
            },
            configs={role: f"{role}.yaml" for role in _ROLES},
            pages={
                "base": f"{_PAGES}/stable-diffusion-xl-base-1.0",
                "refiner": f"{_PAGES}/stable-diffusion-xl-refiner-1.0",
                "turbo": f"{_PAGES}/sdxl-turbo",
            },
            trained_size=(1024, 1024),
        ),
        "tiny": ModelSpec(
            name="tiny",
            weights={
                "base": "tiny_base.safetensors",
                "refiner": "tiny_refiner.safetensors",
                "turbo": "tiny_base.safetensors",
            },
            configs={role: f"tiny-{role}.yaml" for role in _ROLES},
            pages={},
            trained_size=(256, 512),
            turbo=Turbo(levels=(0, 250, 500, 750)),
            loras={"turbo": ("tiny_turbo_lora.safetensors",)},
        ),
    }
)


def model_spec(name: str) -> ModelSpec:
    """The spec of a model family by its name; UserError, with the nearest, if there is none."""
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise UserError(
            f"{name!r} is not a model; choose one of {known}{suggestion(name, MODELS)}."
        )
    return MODELS[name]


def folder_with(names: Mapping[str, str], given: str | PathLike[str]) -> Path:
    """A folder as given; where a relative one has no file of a model (its names by role), perhaps
    what is shipped has."""

    def holds_one(folder: Path) -> bool:
        # Unlike `Path.exists`, False for a folder that may not be entered.
        return any(os.path.exists(folder / name) for name in names.values())

    return next(filter(holds_one, (Path(given), SHIPPED / given)), Path(given))


def _check_number(
    name: str, value: object, low: float, high: float, kind: type[Real] = Real
) -> None:
    """UserError unless a value is a number of a kind from low to high."""
    if not (isinstance(value, kind) and low <= value <= high):
        whole = "a whole number" if kind is Integral else "a number"
        raise UserError(f"{name} is {value!r}; give {whole} from {low} to {high}.")


@dataclass(frozen=True)
class SamplingParams:
    """What decides the sampled picture, apart from the pictures that go in. Steps are 1 to 1000
    (turbo: 1 to 4), of the base and again of the refiner; None for the published 50 (turbo: 4)."""

    prompt: str
    negative_prompt: str = ""  # empty: zeroed unconditional text, as published for base and turbo
    seed: int = 2  # of the global CPU generator, 0 to 2**64 - 1
    steps: int | None = None
    scale: float = DEFAULT_SCALE  # classifier-free guidance, at least 0
    strength: float = 0.8  # share of the schedule that SDEdit runs, above 0 and at most 1
    sampler: Sampler = Sampler.DPMPP2M
    spacing: Spacing = Spacing.PUBLISHED  # which noise levels are visited; a turbo run has its own
    weighted: bool = False  # `(word:1.3)` weighs words, and prompts go on beyond 77 tokens

    def check(self) -> None:
        """UserError for a value outside of its range."""
        for name in ("prompt", "negative_prompt"):
            if not isinstance(getattr(self, name), str):
                raise UserError(f"{name} is {getattr(self, name)!r}; give a text.")
        if self.steps is not None:
            _check_number("steps", self.steps, 1, MAX_STEPS, Integral)
        _check_number("seed", self.seed, 0, MAX_SEED, Integral)
        _check_number("scale", self.scale, 0, MAX_SCALE)
        _check_number("strength", self.strength, 0, 1)

    def steps_of(self, run_type: RunType) -> int:
        """Sampler steps of a run: those asked for, else the published ones."""
        return self.steps or (TURBO_STEPS if run_type.turbo else DEFAULT_STEPS)


@dataclass(frozen=True)
class RecordingSettings:
    """What a person says about recordings of the unedited picture; None leaves it to the preset."""

    every: int | None = None  # steps from one recording to the next, at most
    count: int | None = None  # how many steps are recorded, at least 2; others are interpolated
    precision: RecordingPrecision | None = None  # in which recordings are kept
    prompt_steps: int | None = None  # full passes to follow a new prompt with, 0 or at least 2


@dataclass(frozen=True)
class Blend:
    """How an edit is put into the picture.

    Attributes:
        feather: width in pixels of the ring around the edit in which it fades into the picture, and
            which is sampled with it; 0 for a hard edge; None for the default, 8 for a picture of
            1024 pixels (its longer side) and others in proportion.
        match_border: whether the edit takes on the colours and the grain of its surroundings.
    """

    feather: int | None = None
    match_border: bool = True

    def width(self, size: Sequence[int]) -> int:
        """Of the ring in pixels, for a picture of `size` (height, width)."""
        if self.feather is not None:
            return self.feather
        return max(1, round(FEATHER * max(size) / FEATHER_SIDE))


@dataclass(frozen=True)
class PhotoOptions:
    """Options of a run about pictures, masks and seeds. What has no comment is what the flag of its
    name says."""

    mask_grow: int = 0  # pixels, in all directions
    invert_mask: bool = False
    blend: Blend | None = None  # None leaves the network's picture everywhere
    padding_mask_crop: int | str | None = None  # None for the whole picture
    seeds: tuple[int, ...] = ()  # empty for the one of `SamplingParams`
    metadata: bool = True  # whether a PNG says how it was made
    overwrite: bool = False


@dataclass(frozen=True)
class RunOptions:
    """Every option of a run, checked and resolved: nothing here is left to be found out. What has
    no comment is what the flag of its name says; a file or folder that was not given is None."""

    task: Task
    run_type: RunType
    mode: Mode
    model: str  # key of `MODELS`
    preset: Preset
    precision: Precision
    backend: Backend
    device: str  # a torch device that exists on this machine, such as `cpu` or `cuda:0`
    sampling: SamplingParams
    height: int | None  # pixels to resize to; None keeps the picture's own
    width: int | None
    init_img: Path | None
    edited_img: Path | None
    mask_path: Path | None
    refined: bool
    output_path: Path
    config_path: Path  # folder of YAML files
    weight_path: Path  # folder of checkpoints
    json_path: str | None  # file for the run's figures, `-` for stdout, None for none
    random_weights: bool  # this and the next two: profile modes only
    macs_only: bool
    compare: bool
    recordings: RecordingSettings = RecordingSettings()  # of the unedited picture
    graphs: bool | None = None  # CUDA graphs of sparse UNet passes; None for the device's own way
    record: Path | None = None  # folder to record into
    recording: Path | None = None  # folder to edit from
    recording_memory: RecordingMemory = RecordingMemory.AUTO  # where `recording` is meanwhile
    checkpoint: Path | None = None  # file or folder; None for the family's in `weight_path`
    refiner_checkpoint: Path | None = None
    vae: Path | None = None  # of base and refiner; None for the checkpoint's own
    loras: tuple[Lora, ...] = ()  # of the base or turbo
    prediction: Prediction | None = None  # of the base or turbo; None for what its files say
    photo: PhotoOptions = field(default_factory=PhotoOptions)

    @property
    def spec(self) -> ModelSpec:
        """The files of the model family."""
        return MODELS[self.model]

    def weights(self, refiner: bool = False) -> Weights:
        """The files of the base or turbo model, or of the refiner."""
        role = "refiner" if refiner else self.spec.weight_role(self.run_type)
        given = self.refiner_checkpoint if refiner else self.checkpoint
        files = self.spec.own(self.weight_path, role) if given is None else Weights(given)
        if refiner:
            return replace(files, vae=self.vae)
        loras = (*files.loras, *self.loras)
        return Weights(files.checkpoint, self.vae, loras, self.prediction)

    @property
    def steps(self) -> int:
        """Sampler steps: those asked for, else the published ones."""
        return self.sampling.steps_of(self.run_type)
