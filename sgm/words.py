"""The words that the command line and the programs know: one enum for each choice."""

import re
from enum import StrEnum
from typing import TypeVar

from sgm.errors import UserError, suggestion

Word = TypeVar("Word", bound=StrEnum)


def chosen(kind: type[Word], word: str) -> Word:
    """A word as a member of its enum; UserError, with the nearest, if it is none."""
    known = [str(member) for member in kind]
    if word not in known:
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()
        raise UserError(
            f"{word!r} is not a {name}; choose one of {', '.join(known)}"
            f"{suggestion(str(word), known)}."
        )
    return kind(word)


class Task(StrEnum):
    """How the edit is described: a mask and a prompt, or strokes on the picture."""

    INPAINTING = "inpainting"
    SDEDIT = "sdedit"


class RunType(StrEnum):
    """Which network runs, dense or sparse."""

    ORIGINAL = "original"
    SIGE = "sige"
    TURBO = "turbo"
    SIGE_TURBO = "sige-turbo"

    @property
    def sparse(self) -> bool:
        """Whether only the edited part is computed."""
        return self in (RunType.SIGE, RunType.SIGE_TURBO)

    @property
    def turbo(self) -> bool:
        """Whether the few-step checkpoint is used."""
        return self in (RunType.TURBO, RunType.SIGE_TURBO)

    @property
    def dense(self) -> "RunType":
        """The run type with the same checkpoint that computes every pixel."""
        return RunType.TURBO if self.turbo else RunType.ORIGINAL


class Mode(StrEnum):
    """Make a picture, or count and time one network."""

    GENERATE = "generate"
    PROFILE_UNET = "profile_unet"
    PROFILE_ENCODER = "profile_encoder"
    PROFILE_DECODER = "profile_decoder"

    @property
    def profiles(self) -> bool:
        """Whether this mode measures a network instead of making a picture."""
        return self is not Mode.GENERATE

    @property
    def network(self) -> str:
        """What a profile mode measures: `unet`, `encoder` or `decoder`."""
        return self.value.removeprefix("profile_")


class Prediction(StrEnum):
    """What a network predicts: the noise, or the velocity (Salimans and Ho, 2022)."""

    EPSILON = "epsilon"
    V = "v"


class Sampler(StrEnum):
    """How a sampling step is made."""

    DPMPP2M = "dpmpp2m"
    EULER = "euler"
    LCM = "lcm"


class Spacing(StrEnum):
    """Which noise levels a run of n steps visits."""

    PUBLISHED = "published"
    TRAILING = "trailing"


class Preset(StrEnum):
    """How sparse the sparse networks are."""

    PUBLISHED = "published"
    FAST = "fast"


class Precision(StrEnum):
    """Arithmetic of the networks; fp32 is strict, without TF32."""

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"


class Backend(StrEnum):
    """Who runs the sparse operations."""

    AUTO = "auto"
    TORCH = "torch"
    TRITON = "triton"
    SIGE = "sige"


class RecordingPrecision(StrEnum):
    """In which numbers recordings are kept; they are computed in those of the networks."""

    FULL = "full"
    BF16 = "bf16"
    INT8 = "int8"


class RecordingMemory(StrEnum):
    """Where recordings are kept; the places after `auto` in order of their speed."""

    AUTO = "auto"
    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
