"""An edit of a crop, at the size that the network was trained for, put back at full resolution."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sgm.inference.border import match_border
from sgm.inference.composite import composite, grained, opacity, opacity_of_drawing
from sgm.inference.edit import Edit
from sgm.inference.inpainting import Inpainting
from sgm.inference.loop import Kept, Plan
from sgm.inference.networks import Networks
from sgm.inference.noise import Noise
from sgm.inference.presets import Recipe
from sgm.inference.sdedit import SDEdit, source_of
from sgm.inference.window import Window, is_larger, window_around
from sgm.io.imageio import pad_to_multiple
from sgm.specs import AUTO, Blend, ModelSpec


@dataclass(frozen=True, eq=False)
class Cropped(Edit):
    """An edit of a window of a picture.

    Attributes:
        inner: the edit of what the network sees.
        window: where that is in the picture.
        source: the whole picture [3, H, W] in [0, 1], sides of any length.
        levels: where to edit in the whole picture, bool or float [H, W].
        blend: how the result is put into the picture.
    """

    inner: Inpainting | SDEdit
    window: Window
    source: Tensor
    levels: Tensor
    blend: Blend

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what the network sees, multiples of 64."""
        return self.inner.size

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        """Picture [3, h, w] and mask [h, w] of the window, at the size that the network sees."""
        return self.inner.shown

    def prepare(
        self, networks: Networks, recipe: Recipe | None, noise: Noise, kept: Kept | None = None
    ) -> Plan:
        return self.inner.prepare(networks, recipe, noise, kept)

    def _seen_region(self, recipe: Recipe) -> Tensor:
        """Where the last steps edit, at the size that the network sees: bool or float [h, w]."""
        return self.inner.region(recipe) if isinstance(self.inner, SDEdit) else self.inner.mask

    def _weight(self, recipe: Recipe) -> Tensor:
        """Opacity of the edit in the window, [height, width]."""
        levels = self.window.of(self.levels)
        width = self.blend.width(levels.shape)
        if not isinstance(self.inner, SDEdit):
            return opacity(levels, width)
        region = self._seen_region(recipe)[None, None].float()
        grown = F.interpolate(region, size=levels.shape, mode="nearest")[0, 0] > 0
        margin = round(recipe.sdedit * self.window.height / self.window.size[0])
        return opacity_of_drawing(levels, levels | grown, margin, width)

    def weight(self, recipe: Recipe) -> Tensor:
        """Opacity of the edit in the whole picture, float32 [H, W]; 0 outside of the window."""
        weight = torch.zeros(self.levels.shape, device=self.levels.device)
        self.window.of(weight)[:] = self._weight(recipe)
        return weight

    def finish(self, picture: Tensor, recipe: Recipe) -> Tensor:
        """The whole picture [3, H, W] in [0, 1], with the result [3, h, w] in its window."""
        weight, put_in = self._weight(recipe), composite
        if self.blend.match_border:
            # Colours at the size that the network sees, grain at full resolution.
            width = _sampled(self.window, self.blend).width(self.size)
            around = opacity(self._seen_region(recipe), width)
            source, put_in = self.window.seen(self.source), grained
            picture = match_border(picture, source, around, width)
        result, patch = self.source.clone(), self.window.back(picture).clamp(0, 1)
        self.window.of(result)[:] = put_in(patch, self.window.of(self.source), weight)
        return result


def _sampled(window: Window, blend: Blend) -> Blend:
    """A blend for the size that the network sees: its ring covers that of the picture."""
    width = blend.width((window.height, window.width))
    return replace(blend, feather=math.ceil(width * window.size[0] / window.height))


@dataclass(frozen=True, eq=False)
class EditRequest:
    """The edit that a person asks for, of pictures of any size; makes the `Edit` that is run.

    Attributes:
        init: the unedited picture [3, H, W] in [-1, 1]; None for SDEdit without one.
        edited: the picture that was drawn on, same shape; None for inpainting.
        levels: where the edit is, bool or float [H, W] in [0, 1]; None where that is not known.
        strength: of SDEdit.
        blend: how the edit is put into the picture, with the soft border of the levels; None
            leaves the network's picture everywhere.
    """

    init: Tensor | None
    edited: Tensor | None
    levels: Tensor | None
    strength: float
    blend: Blend | None

    def edit(self, spec: ModelSpec, crop: int | str | None) -> Edit:
        """The edit of a crop where one is asked for and is of use, else of the whole picture.

        Args:
            spec: of the model, which sees a crop with about the pixels of its `trained_size`.
            crop: pixels around the edit; `auto` for a crop if the picture is larger than the
                model's size; None for the whole picture. A crop needs a blend.
        """
        mask = None if self.levels is None else self.levels > 0.5
        whole = crop is None or mask is None or not mask.any() or mask.all()
        if whole or (crop == AUTO and not is_larger(mask.shape, spec.trained_size)):
            return self.whole()
        margin = None if crop == AUTO else max(crop, self.blend.width(mask.shape))
        return self.within(window_around(self.levels > 0, spec.trained_size, margin))

    def whole(self) -> Inpainting | SDEdit:
        """The edit of the whole pictures, padded to multiples of 64."""
        init, edited, levels = (
            None if x is None else pad_to_multiple(x) for x in (self.init, self.edited, self.levels)
        )
        mask = None if levels is None else levels > 0.5
        if edited is None:
            return Inpainting(init, mask if self.blend is None else levels, self.blend)
        return SDEdit(init, edited, self.strength, mask, self.blend)

    def within(self, window: Window) -> Cropped:
        """The edit of a window of the pictures; `levels` and `blend` are not None."""
        blend, levels = _sampled(window, self.blend), self.levels
        before = None if self.init is None else window.seen(self.init)
        if self.edited is None:
            inner: Inpainting | SDEdit = Inpainting(before, window.seen_levels(levels), blend)
        else:
            levels = levels > 0.5
            drawn = window.seen(self.edited)
            inner = SDEdit(before, drawn, self.strength, window.seen_levels(levels), blend)
        source = source_of(self.init, self.edited, blended=True)
        return Cropped(inner, window, (source + 1) / 2, levels, self.blend)
