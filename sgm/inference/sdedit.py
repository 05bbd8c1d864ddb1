"""SDEdit (Meng et al., 2022): noise a picture that was drawn on, and denoise it again."""

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from sgm.inference.composite import blended, opacity_of_drawing
from sgm.inference.drawing import where_drawn
from sgm.inference.edit import Edit, check_sizes
from sgm.inference.loop import Kept, Plan, Source
from sgm.inference.networks import Networks, recording, sparse, use_kept
from sgm.inference.noise import Noise
from sgm.inference.presets import Recipe
from sgm.sparse.masks import MaskPyramid, cover, dilate
from sgm.specs import Blend

Thing = TypeVar("Thing")


def source_of(init: Thing | None, edited: Thing | None, blended: bool) -> Thing:
    """Which of two pictures (or of what belongs to them) the edit is made to: a blended edit is put
    into the unedited one, where there is one; else it is the one that was drawn on that changes.
    Inpainting has only the first; one of them there always is."""
    drawn_on = init is None if blended else edited is not None
    source = edited if drawn_on else init
    assert source is not None
    return source


@dataclass(frozen=True, eq=False)
class SDEdit(Edit):
    """A picture that was drawn on, and the picture before.

    Attributes:
        init: the unedited picture [3, H, W] in [-1, 1]; a dense run does without it.
        edited: the picture that was drawn on, same shape.
        strength: share of the schedule that is run, above 0 to 1.
        drawing: where it was drawn on, bool [H, W]; None to look for it (see `where_drawn`).
        blend: how the edit is put into the unedited picture; None leaves the network's picture
            everywhere, and so does a dense run without that picture.

    Raises:
        ValueError: the pictures differ in size, or a side is no multiple of 64.
    """

    init: Tensor | None
    edited: Tensor
    strength: float = 0.8
    drawing: Tensor | None = None
    blend: Blend | None = None

    def __post_init__(self) -> None:
        check_sizes({"init": self.init, "edited": self.edited, "drawing": self.drawing})

    @property
    def size(self) -> tuple[int, int]:
        return self.edited.shape[1], self.edited.shape[2]

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        """The edited picture, and a mask of all of it."""
        return self.edited, torch.ones(self.size, dtype=torch.bool, device=self.edited.device)

    def prepare(
        self, networks: Networks, recipe: Recipe | None, noise: Noise, kept: Kept | None = None
    ) -> Plan:
        """A dense run encodes the edited picture alone; a sparse one the unedited in full, unless
        that was recorded, and then the edited sparsely (published order)."""
        if recipe is None:
            edited = networks.encode(self.edited, noise, "edited")
            return Plan(Source.NONE, None, start=edited, strength=self.strength)
        if self.init is None:
            raise ValueError("A sparse SDEdit run needs the unedited picture too.")
        masks = recipe.sdedit_masks(self.marked)
        if kept is None:
            with recording(networks.encoder, masks):
                z = networks.encode(self.init, noise, "init")
        else:
            assert kept.encoder is not None  # of a track of SDEdit
            unedited = partial(networks.posterior, self.init)
            use_kept(networks.encoder, kept.encoder, masks, unedited)
            z = kept.z
        with sparse(networks.encoder, masks):
            edited = networks.encode(self.edited, noise, "edited")
        if kept is None:
            networks.forget()  # of the encoder, before the UNet needs the memory
        steps = recipe.sdedit_steps(self.marked, masks)
        size = (edited.shape[2], edited.shape[3])
        sparse_decode = kept is not None or recipe.sparse_decode
        return Plan(
            Source.STEPPED,
            z,
            start=edited,
            inside=steps.first[size].to(edited.device) if recipe.hold else None,
            masks=steps,
            recorded=recipe.sdedit_recorded,
            strength=self.strength,
            kept=kept,
            decoder_masks=self.decoder_masks(recipe) if sparse_decode else None,
        )

    @cached_property
    def marked(self) -> Tensor:
        """Where it was drawn on, bool [H, W]; not known without a drawing or a picture before."""
        if self.drawing is not None:
            return self.drawing
        return where_drawn(self.init, self.edited, self.blend is not None)

    def region(self, recipe: Recipe) -> Tensor:
        """The drawing grown by what is sampled around it until the last step, bool [H, W]. The ring
        of a blend lies outside of it."""
        return dilate(self.marked, recipe.sdedit)

    def decoder_masks(self, recipe: Recipe) -> MaskPyramid:
        """Masks of the decoder, bool by resolution; with a blend they hold its ring too."""
        masks, touched = recipe.sdedit_decoder_masks(self.marked), self.touched(recipe)
        return masks if touched is None else cover(masks, touched)

    def weight(self, recipe: Recipe) -> Tensor | None:
        """Float32 [H, W], 1 on the drawing, falling to 0 at the end of the blend's ring."""
        if self.blend is None or (self.init is None and self.drawing is None):
            return None
        margin, width = recipe.sdedit, self.blend.width(self.size)
        if margin not in self._weights:
            region = self.region(recipe)
            self._weights[margin] = opacity_of_drawing(self.marked, region, margin, width)
        return self._weights[margin]

    @cached_property
    def _weights(self) -> dict[int, Tensor]:
        """Weights by the pixels sampled around the drawing. An edit needs one three times, and it
        takes as long as a pass of a small network."""
        return {}

    def changed(self, recipe: Recipe) -> Tensor | None:
        """Without a blend the dilated drawing."""
        if self.blend is not None or (self.init is None and self.drawing is None):
            return self.touched(recipe)
        return recipe.sdedit_region(self.marked)

    def finish(self, picture: Tensor, recipe: Recipe) -> Tensor:
        """The edited part is put into the unedited picture, if there is one."""
        weight = self.weight(recipe)
        if self.blend is None or weight is None:
            return picture
        source = source_of(self.init, self.edited, blended=True)
        return blended(picture, (source + 1) / 2, self.region(recipe), self.blend, weight)
