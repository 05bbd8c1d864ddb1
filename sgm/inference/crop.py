"""An edit of a crop: the network sees the edit and its surroundings at the size that it was trained
for, and the result is put back into the picture at full resolution."""

import logging
import math
from collections.abc import Sequence
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
from sgm.inference.sdedit import SDEdit
from sgm.io.imageio import pad_to_multiple
from sgm.specs import AUTO, SIZE_MULTIPLE, Blend, ModelSpec

logger = logging.getLogger(__name__)

# Around the edit without a number given: a share of its longer side, and at least so many pixels.
MARGIN, LEAST_MARGIN = 0.25, 32
# Times the pixels of the model's size from which a picture counts as larger, and as far larger.
LARGER, FAR_LARGER = 1.25, 2.0


@dataclass(frozen=True)
class Window:
    """A rectangle of a picture in pixels, and the `size` at which the network sees it: (height,
    width), multiples of 64."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]

    def of(self, x: Tensor) -> Tensor:
        """The rectangle of [..., H, W]; a view."""
        rows = slice(self.top, self.top + self.height)
        return x[..., rows, self.left : self.left + self.width]

    def seen(self, picture: Tensor) -> Tensor:
        """The rectangle of a picture [3, H, W] as the network sees it."""
        return _resized(self.of(picture), self.size)

    def seen_levels(self, levels: Tensor) -> Tensor:
        """The rectangle of a mask, bool or float [H, W]: nothing that is marked gets lost."""
        values = self.of(levels)[None, None].float()
        return F.adaptive_max_pool2d(values, self.size)[0, 0].to(levels.dtype)

    def back(self, picture: Tensor) -> Tensor:
        """A picture [3, h, w] of the network at the size of the rectangle."""
        return _resized(picture, (self.height, self.width))


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture [3, h, w] at another size; itself at its own."""
    if tuple(picture.shape[1:]) == size:
        return picture
    return F.interpolate(picture[None], size=size, mode="bicubic", antialias=True)[0]


def is_larger(size: Sequence[int], trained: Sequence[int]) -> bool:
    """Whether a picture of `size` is larger than what a model was trained for."""
    return math.prod(size) > LARGER * math.prod(trained)


def advise_on_size(size: Sequence[int], spec: ModelSpec, advice: str) -> None:
    """Warn where a whole picture of `size` (height, width) is far larger than what a model was
    trained for; `advice` is the end of the sentence."""
    if math.prod(size) >= FAR_LARGER * math.prod(spec.trained_size):
        logger.warning(
            "The %s model was trained at %dx%d (width x height) and the picture is %dx%d; %s.",
            *(spec.name, *spec.trained_size[::-1], *size[::-1], advice),
        )


def window_around(marked: Tensor, trained: tuple[int, int], margin: int | None = None) -> Window:
    """The crop for an edit, of the proportions of its `size` where the picture allows.

    Args:
        marked: bool [H, W], where the edit is; not empty.
        trained: (height, width) of the model's size; the network gets about as many pixels.
        margin: pixels around the edit; None for a share of it, and at least the model's size, so
            that the crop is never enlarged.
    """
    rows, columns = torch.nonzero(marked.any(1)), torch.nonzero(marked.any(0))
    spans = [(int(found[0]), int(found[-1]) + 1) for found in (rows, columns)]
    around = margin
    if around is None:
        around = max(LEAST_MARGIN, round(MARGIN * max(high - low for low, high in spans)))
    lengths = [high - low + 2 * around for low, high in spans]
    if margin is None:
        lengths = [max(length, least) for length, least in zip(lengths, trained, strict=True)]
    lengths = [min(length, whole) for length, whole in zip(lengths, marked.shape, strict=True)]
    ratio = math.sqrt(lengths[1] / lengths[0])
    side = math.sqrt(math.prod(trained))
    size = tuple(
        max(1, round(length / SIZE_MULTIPLE)) * SIZE_MULTIPLE
        for length in (side / ratio, side * ratio)
    )
    # Widen the side that is short for these proportions, as far as the picture goes.
    height = min(marked.shape[0], max(lengths[0], round(lengths[1] * size[0] / size[1])))
    width = min(marked.shape[1], max(lengths[1], round(lengths[0] * size[1] / size[0])))
    starts = [
        min(max(0, (low + high - length) // 2), whole - length)
        for (low, high), length, whole in zip(spans, (height, width), marked.shape, strict=True)
    ]
    return Window(starts[0], starts[1], height, width, (size[0], size[1]))


@dataclass(frozen=True, eq=False)
class Cropped(Edit):
    """An edit of a window of a picture.

    Attributes:
        inner: the edit of what the network sees.
        window: where that is.
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
        """Of what the network sees."""
        return self.inner.size

    @property
    def ratio(self) -> float:
        """Of the whole picture."""
        return (self.levels > 0.5).float().mean().item()

    @property
    def shown(self) -> tuple[Tensor, Tensor]:
        """Of the window."""
        return self.inner.shown

    def prepare(
        self, networks: Networks, recipe: Recipe | None, noise: Noise, kept: Kept | None = None
    ) -> Plan:
        return self.inner.prepare(networks, recipe, noise, kept)

    def _seen_region(self, recipe: Recipe) -> Tensor:
        """Where the edit is to the end, as the network sees it: bool or float [h, w]."""
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
        """Of the whole picture."""
        weight = torch.zeros(self.levels.shape, device=self.levels.device)
        self.window.of(weight)[:] = self._weight(recipe)
        return weight

    def finish(self, picture: Tensor, recipe: Recipe) -> Tensor:
        """The whole picture."""
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


def crop_inpainting(image: Tensor, levels: Tensor, window: Window, blend: Blend) -> Cropped:
    """Inpainting in a window of a picture [3, H, W] in [-1, 1], sides of any length; the mask is
    bool or float [H, W] in [0, 1]."""
    inner = Inpainting(window.seen(image), window.seen_levels(levels), _sampled(window, blend))
    return Cropped(inner, window, (image + 1) / 2, levels, blend)


def crop_sdedit(
    init: Tensor | None,
    edited: Tensor,
    drawing: Tensor,
    window: Window,
    blend: Blend,
    strength: float,
) -> Cropped:
    """SDEdit in a window of pictures [3, H, W] in [-1, 1], sides of any length; `drawing` is where
    it was drawn on, bool [H, W]."""
    inner = SDEdit(
        None if init is None else window.seen(init),
        window.seen(edited),
        strength,
        window.seen_levels(drawing),
        _sampled(window, blend),
    )
    source = edited if init is None else init
    return Cropped(inner, window, (source + 1) / 2, drawing, blend)


def _sampled(window: Window, blend: Blend) -> Blend:
    """A blend whose ring, in pixels of the network, is that of the window."""
    width = blend.width((window.height, window.width))
    return replace(blend, feather=math.ceil(width * window.size[0] / window.height))


def whole_edit(
    init: Tensor | None,
    edited: Tensor | None,
    levels: Tensor | None,
    strength: float,
    blend: Blend | None,
) -> Inpainting | SDEdit:
    """The edit of whole pictures, padded to multiples of 64.

    Args:
        init: the unedited picture [3, H, W] in [-1, 1]; None for SDEdit without one.
        edited: the picture that was drawn on, same shape; None for inpainting.
        levels: where the edit is, bool or float [H, W] in [0, 1]; None where that is not known.
        strength: of SDEdit.
        blend: how the edit is put into the picture, a soft border of the levels included.
    """
    mask = None if levels is None else pad_to_multiple(levels > 0.5)
    if edited is None:
        image = pad_to_multiple(init)
        return Inpainting(image, mask if blend is None else pad_to_multiple(levels), blend)
    before = None if init is None else pad_to_multiple(init)
    return SDEdit(before, pad_to_multiple(edited), strength, mask, blend)


def edit_for(
    spec: ModelSpec,
    crop: int | str | None,
    init: Tensor | None,
    edited: Tensor | None,
    levels: Tensor | None,
    strength: float,
    blend: Blend | None,
) -> Edit:
    """The edit of pictures of any size: of a crop where one is asked for and is of use, else of
    the whole. The arguments after `crop` are those of `whole_edit`.

    Args:
        crop: pixels around the edit; `auto` for a crop if the picture is larger than the model's
            size; None for none. With a crop there is a blend.
    """
    mask = None if levels is None else levels > 0.5
    whole = crop is None or mask is None or not mask.any() or mask.all()
    if whole or (crop == AUTO and not is_larger(mask.shape, spec.trained_size)):
        return whole_edit(init, edited, levels, strength, blend)
    margin = None if crop == AUTO else max(crop, blend.width(mask.shape))
    window = window_around(levels > 0, spec.trained_size, margin)
    if edited is None:
        return crop_inpainting(init, levels, window, blend)
    return crop_sdedit(init, edited, mask, window, blend, strength)
