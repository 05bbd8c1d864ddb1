"""The recordings of one way through the noise levels: their steps, and their names in a store.

Inpainting reads the picture with one noise at every level; SDEdit reads the picture noised once and
denoised for itself from the first level of its strength. So each has recordings of its own.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from sgm.inference.interpolate import spread
from sgm.inference.noise import Noise
from sgm.inference.presets import Recorded
from sgm.inference.unedited import KeptLatents, KnownNoise, SteppedAlong, Unedited, noised
from sgm.modules.diffusionmodules.sampling import Denoise, Solver
from sgm.sparse.recording import Recording

# Store keys of what all tracks of a session share; the encoder's is there only for SDEdit.
ENCODER, DECODER, LATENTS = "encoder", "decoder", "latents"
END = "end"
PROMPT = "prompt-"  # begins the names of what another prompt changes


@dataclass(eq=False)
class Track:
    """Which steps of a run are recorded, and of what.

    Attributes:
        name: what its names in a store begin with.
        sigmas: levels of the run [steps + 1], float32 on the CPU.
        recorded: which steps are recorded.
        stepped: whether the unedited picture is denoised for itself (SDEdit).
        made: the steps that are recorded, rising.
    """

    name: str
    sigmas: Tensor
    recorded: Recorded
    stepped: bool = False

    def __post_init__(self) -> None:
        self.made = self.recorded.steps(len(self.sigmas) - 1)

    def name_of(self, step: int) -> str:
        """Store key of the recording of a step."""
        return f"{self.name}-{step:04d}"

    def made_in(self, names: Collection[str]) -> list[int]:
        """The steps that are recorded in a store with these names. They may differ from `made` if
        the recordings were made with other settings."""
        return [step for step in range(len(self.sigmas) - 1) if self.name_of(step) in names]

    def steps_of_prompt(self) -> list[int]:
        """The recorded steps at which a full pass measures what another prompt changes; none if the
        recordings are used for any prompt as they are."""
        if not self.recorded.prompt_steps:
            return []
        chosen = spread(len(self.made), self.recorded.prompt_steps)
        return [self.made[number] for number in chosen]

    def name_of_prompt(self, prompt: str, negative_prompt: str, step: int) -> str:
        """Store key of what a prompt changes in the recording of a step."""
        words = f"{prompt}\0{negative_prompt}".encode()
        return f"{PROMPT}{hashlib.sha256(words).hexdigest()[:16]}-{self.name_of(step)}"

    @property
    def name_of_latents(self) -> str:
        """Store key of the latents at the recorded steps. It is put last: where it is, all are."""
        return f"{self.name}-latents"

    def unedited(self, z: Tensor, noise: Noise, denoise: Denoise, solver: Solver) -> Unedited:
        """The source of the unedited latents that is recorded, for a picture with scaled latents z
        [1, C, h, w]."""
        draw = noise("start", z.shape).to(z)
        if not self.stepped:
            return KnownNoise(z, lambda step: draw, self.sigmas, denoise)
        start = noised(z, draw, self.sigmas, solver)
        return SteppedAlong(start, self.made, self.sigmas, denoise, solver)

    def kept_latents(self, unedited: Unedited) -> Recording:
        """The latents of a source at the recorded steps, to be stored. Those with fixed noise are
        not needed: they follow from z and the seed."""
        if not self.stepped:
            return Recording(values={("", END): torch.zeros(1)})  # a file holds at least one tensor
        kept = {str(step): unedited.latents(step) for step in self.made} | {END: unedited.result()}
        return Recording(values={("", key): x for key, x in kept.items() if x is not None})

    def latents_of(self, kept: Recording) -> KeptLatents | None:
        """The stored latents as an edit reads them; None for fixed noise."""
        if not self.stepped:
            return None
        values = {key: value for (_, key), value in kept.values.items()}
        end = values.pop(END)
        assert isinstance(end, Tensor)
        at = {int(key): value for key, value in values.items() if isinstance(value, Tensor)}
        return KeptLatents(at, end)
