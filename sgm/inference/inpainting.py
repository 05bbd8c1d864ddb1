"""Inpainting: repaint a masked region, everything else held to the picture at every step."""

from dataclasses import dataclass, replace

from torch import Tensor

from sgm.inference.composite import composite
from sgm.inference.edit import Edit, check_sizes
from sgm.inference.loop import Kept, Plan, Source
from sgm.inference.networks import Networks
from sgm.inference.noise import Noise
from sgm.inference.presets import Recipe, StepMasks
from sgm.sparse.masks import MaskPyramid, inpainting_pyramid


@dataclass(frozen=True, eq=False)
class Inpainting(Edit):
    """A picture [3, H, W] in [-1, 1] and a mask, bool [H, W], True where to repaint.

    Raises:
        ValueError: they differ in size, or a side is no multiple of 64.
    """

    image: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        check_sizes({"image": self.image, "mask": self.mask})

    @property
    def size(self) -> tuple[int, int]:
        """See `Edit.size`."""
        return self.image.shape[1], self.image.shape[2]

    @property
    def ratio(self) -> float:
        """See `Edit.ratio`."""
        return self.mask.float().mean().item()

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        """See `Edit.shown`."""
        return self.image, self.mask.bool()

    def prepare(self, networks: Networks, recipe: Recipe | None, noise: Noise) -> Plan:
        """Encode the picture and bring the mask to the size of its latents; see `Edit.prepare`.

        Raises:
            ValueError: the mask is empty.
        """
        z = networks.encode(self.image, noise, "init")
        if recipe is None:
            return Plan(Source.FRESH, z, inside=self._inside(z))
        decoder_masks = recipe.inpainting_decoder(self.mask.bool())
        return self._plan(z, recipe, decoder_masks if recipe.sparse_decode else None)

    def from_recording(self, z: Tensor, recipe: Recipe, kept: Kept) -> Plan:
        """The plan of an edit of a picture whose latents z and recordings were kept."""
        plan = self._plan(z, recipe, recipe.inpainting_decoder(self.mask.bool()))
        return replace(plan, kept=kept)

    def _plan(self, z: Tensor, recipe: Recipe, decoder_masks: MaskPyramid | None) -> Plan:
        return Plan(
            Source.FIXED if recipe.hold else Source.FRESH,
            z,
            inside=self._inside(z),
            masks=StepMasks(recipe.inpainting(self.mask.bool())),
            recorded=recipe.recorded,
            decoder_masks=decoder_masks,
        )

    def _inside(self, z: Tensor) -> Tensor:
        """What is sampled of the latents z: bool [h, w]."""
        return inpainting_pyramid(self.mask.bool())[z.shape[2], z.shape[3]].to(z.device)

    def finish(self, picture: Tensor, recipe: Recipe) -> Tensor:
        """See `Edit.finish`; the edited part is the mask."""
        if recipe.feather is None:
            return picture
        return composite(picture, (self.image + 1) / 2, self.mask.bool(), recipe.feather)
