"""An edit as the loops see it: what goes in, and what is prepared of it before the first step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor

from sgm.inference.networks import Networks
from sgm.inference.noise import Noise
from sgm.inference.recipes import Recipe
from sgm.modules.diffusionmodules.sampling import Denoise, Solver
from sgm.specs import SIZE_MULTIPLE

# Called as (step number, latents) after every sampler step.
OnStep = Callable[[int, Tensor], None]


class Plan(ABC):
    """Latents and masks of a run. Plans are immutable and hold no network, so one that a base
    model has worked on can be given to a refiner after the base is freed."""

    @abstractmethod
    def steps(self, networks: Networks, solver: Solver) -> int:
        """How many sampler steps `denoise` will make."""

    @abstractmethod
    def denoise(
        self,
        networks: Networks,
        denoise: Denoise,
        solver: Solver,
        noise: Noise,
        on_step: OnStep,
    ) -> "Plan":
        """The sampling loop; the plan with its latents denoised."""

    @abstractmethod
    def decode(self, networks: Networks) -> Tensor:
        """Picture [3, H, W] in [0, 1] of denoised latents, float32 on the CPU."""

    @abstractmethod
    def for_refiner(self) -> "Plan":
        """The denoised plan as a refiner begins: the result is its picture, as latents and not
        decoded in between (published), the masks are the same."""


class Edit(ABC):
    """What a person asks for, apart from the prompt: pictures and, for inpainting, a mask."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, multiples of 64."""

    @property
    @abstractmethod
    def ratio(self) -> float | None:
        """Share of the pixels in the mask or the difference; None where unknown."""

    @abstractmethod
    def prepare(self, networks: Networks, recipe: Recipe | None, noise: Noise) -> Plan:
        """Encode the pictures and make the masks.

        Args:
            recipe: which masks UNet and autoencoder run with; None for a dense run.
            noise: source of the posteriors' draws.

        Raises:
            ValueError: there is nothing to edit, or a sparse run lacks the unedited picture.
        """

    @abstractmethod
    def finish(self, picture: Tensor, recipe: Recipe) -> Tensor:
        """What the person gets: the network's picture [3, H, W] in [0, 1], or only its edited part
        put into the input where the recipe says so."""


def check_sizes(inputs: Mapping[str, Tensor | None]) -> None:
    """ValueError unless all have one height and width, both multiples of 64."""
    sizes = {name: tuple(x.shape[-2:]) for name, x in inputs.items() if x is not None}
    multiples = all(length % SIZE_MULTIPLE == 0 for size in sizes.values() for length in size)
    if len(set(sizes.values())) > 1 or not multiples:
        raise ValueError(
            f"Sizes (height, width) are {sizes}, but must be equal and multiples of "
            f"{SIZE_MULTIPLE}; see sgm.io.imageio.pad_to_multiple."
        )
