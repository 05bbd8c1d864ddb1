"""What a person asks for, apart from the prompt."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Self

import torch
from torch import Tensor

from sgm.inference.loop import Kept, Plan
from sgm.inference.networks import Networks
from sgm.inference.noise import Noise
from sgm.inference.presets import Recipe
from sgm.specs import SIZE_MULTIPLE


class Edit(ABC):
    """What a person asks for, apart from the prompt: pictures and, for inpainting, a mask. Each
    kind of edit is a frozen dataclass."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, multiples of 64."""

    def on(self, device: torch.device) -> Self:
        """The same edit with its pictures and masks on a device, where they are then worked on;
        itself where they are there."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {n: x.to(device) for n, x in parts.items() if isinstance(x, Tensor)}
        moved |= {n: x.on(device) for n, x in parts.items() if isinstance(x, Edit)}
        return self if all(x is parts[n] for n, x in moved.items()) else replace(self, **moved)

    @property
    @abstractmethod
    def shown(self) -> tuple[Tensor, Tensor]:
        """What an inpainting network is shown: a picture [3, H, W] and which of its pixels are to
        be repainted, bool [H, W]."""

    def concat(self, networks: Networks, noise: Noise) -> Tensor | None:
        """What an inpainting network reads beside its latents: mask and latents of the masked
        picture, [1, 1 + C, h, w]; None for other networks."""
        return networks.masked(*self.shown, noise) if networks.reads_mask else None

    @abstractmethod
    def prepare(
        self, networks: Networks, recipe: Recipe | None, noise: Noise, kept: Kept | None = None
    ) -> Plan:
        """Encode the pictures, with the posteriors' draws from `noise`, and make the masks.

        Args:
            recipe: which masks UNet and autoencoder run with; None for a dense run.
            kept: what was recorded of the unedited picture before, to be used instead.

        Raises:
            ValueError: there is nothing to edit, or a sparse run lacks the unedited picture.
        """

    @abstractmethod
    def weight(self, recipe: Recipe) -> Tensor | None:
        """Opacity of the edit in the input, float [H, W]; None where the network's picture is taken
        as it is."""

    def touched(self, recipe: Recipe) -> Tensor | None:
        """Where `finish` may change the input, bool [H, W]; None for anywhere."""
        weight = self.weight(recipe)
        return None if weight is None else weight > 0

    def changed(self, recipe: Recipe) -> Tensor | None:
        """Where the result is to differ from the input, bool [H, W]: where it is `touched`; without
        a blend, where a change was asked for. None where that is not known."""
        return self.touched(recipe)

    @abstractmethod
    def finish(self, picture: Tensor, recipe: Recipe) -> Tensor:
        """What the person gets: the network's picture [3, H, W] in [0, 1], or only its edited part
        put into the input where a blend was asked for. The picture is on the device of the
        edit, as is the result."""


def check_sizes(inputs: Mapping[str, Tensor | None]) -> None:
    """ValueError unless all tensors [..., H, W] have one height and width, multiples of 64."""
    sizes = {name: tuple(x.shape[-2:]) for name, x in inputs.items() if x is not None}
    multiples = all(length % SIZE_MULTIPLE == 0 for size in sizes.values() for length in size)
    if len(set(sizes.values())) > 1 or not multiples:
        raise ValueError(
            f"Sizes (height, width) are {sizes}, but must be equal and multiples of "
            f"{SIZE_MULTIPLE}; see sgm.io.imageio.pad_to_multiple."
        )
