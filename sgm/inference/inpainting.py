"""Inpainting: repaint a masked region, everything else held to the picture at every step."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sgm.inference.composite import blended, opacity
from sgm.inference.edit import Edit, check_sizes
from sgm.inference.loop import Kept, Plan, Source
from sgm.inference.networks import Networks
from sgm.inference.noise import Noise
from sgm.inference.presets import Recipe, StepMasks
from sgm.sparse.masks import MaskPyramid, cover, inpainting_pyramid
from sgm.specs import Blend


@dataclass(frozen=True, eq=False)
class Inpainting(Edit):
    """A picture, and where to repaint it.

    Attributes:
        image: [3, H, W] in [-1, 1].
        mask: bool [H, W], True where to repaint; or float in [0, 1] with a soft border, whose upper
            half is the mask where nothing is blended.
        blend: how the edit is put into the picture; None leaves the network's picture everywhere.

    Raises:
        ValueError: they differ in size, or a side is no multiple of 64.
    """

    image: Tensor
    mask: Tensor
    blend: Blend | None = None

    def __post_init__(self) -> None:
        check_sizes({"image": self.image, "mask": self.mask})

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[1], self.image.shape[2]

    @property
    def marked(self) -> Tensor:
        """The mask as bool [H, W]."""
        return self.mask > 0.5

    def covered(self, pyramid: MaskPyramid) -> MaskPyramid:
        """A pyramid of the mask (bool by resolution), widened to hold the ring of the blend."""
        weight = self._opacity
        return pyramid if weight is None else cover(pyramid, weight > 0)

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        return self.image, self.mask.bool()

    def prepare(
        self, networks: Networks, recipe: Recipe | None, noise: Noise, kept: Kept | None = None
    ) -> Plan:
        z = networks.encode(self.image, noise, "init") if kept is None else kept.z
        sampled = self.covered(inpainting_pyramid(self.marked))
        inside = sampled[z.shape[2], z.shape[3]].to(z.device)
        if recipe is None:
            return Plan(Source.FRESH, z, inside=inside)
        sparse_decode = kept is not None or recipe.sparse_decode
        return Plan(
            Source.FIXED if recipe.hold else Source.FRESH,
            z,
            inside=inside,
            masks=StepMasks(self.covered(recipe.inpainting(self.marked))),
            recorded=recipe.recorded,
            kept=kept,
            decoder_masks=self.decoder_masks(recipe) if sparse_decode else None,
        )

    def decoder_masks(self, recipe: Recipe) -> MaskPyramid:
        """Masks of the decoder, bool by resolution; the ring of the blend is included."""
        return self.covered(recipe.inpainting_decoder(self.marked))

    def weight(self, recipe: Recipe) -> Tensor | None:
        """Float32 [H, W], 1 on the mask, falling to 0 in its ring."""
        return self._opacity

    def changed(self, recipe: Recipe) -> Tensor:
        touched = self.touched(recipe)
        return self.marked if touched is None else touched

    @cached_property
    def _opacity(self) -> Tensor | None:
        return self.blend and opacity(self.mask, self.blend.width(self.size))

    def finish(self, picture: Tensor, recipe: Recipe) -> Tensor:
        if self.blend is None:
            return picture
        return blended(picture, (self.image + 1) / 2, self.mask, self.blend)
