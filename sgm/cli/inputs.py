"""The pictures and the mask of a command, read and brought to one size."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgm.errors import UserError
from sgm.specs import RunOptions
from sgm.words import Task

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

    from sgm.io.photos import Photo

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The pictures of a run, all of one size.

    Attributes:
        init_photo: the unedited picture; None for sdedit without one.
        edited_photo: the picture drawn on; None for inpainting.
        levels: float [H, W] in [0, 1], 1 where the edit is: the given mask, or where it was drawn;
            of a recording, where edits may be. None where there is neither a mask nor an unedited
            picture to compare with.
    """

    init_photo: "Photo | None"
    edited_photo: "Photo | None"
    levels: "Tensor | None"

    @property
    def init(self) -> "Image.Image | None":
        """The unedited picture, RGB in sRGB."""
        return self.init_photo and self.init_photo.image

    @property
    def edited(self) -> "Image.Image | None":
        """The picture drawn on, RGB in sRGB."""
        return self.edited_photo and self.edited_photo.image

    @property
    def mask(self) -> "Tensor | None":
        """Where the edit is, bool [H, W]."""
        return None if self.levels is None else self.levels > 0.5

    def source(self, blended: bool) -> "Photo":
        """The picture that the edit is made to: a blended one is put into the unedited picture,
        where there is one; else it is the one that was drawn on that changes."""
        first, second = self.edited_photo, self.init_photo
        photo = second or first if blended else first or second
        assert photo is not None  # by `check_together`
        return photo


def read_inputs(options: RunOptions) -> Inputs:
    """Read pictures and mask of a run and bring them to one size.

    Raises:
        UserError: a file that cannot be used, or two pictures of different sizes.
    """
    from sgm.io.photos import load_photo

    def photo(path: "Path | None", used: bool) -> "Photo | None":
        if path is None or not used:
            return None
        found = load_photo(path)
        return found.resized(
            (options.height or found.image.height, options.width or found.image.width)
        )

    init = photo(options.init_img, True)
    recording = options.record is not None
    edited = photo(options.edited_img, options.task is Task.SDEDIT and not recording)
    if init is not None and edited is not None and init.image.size != edited.image.size:
        raise UserError(
            f"The original is {init.image.width}x{init.image.height} and the edited picture "
            f"{edited.image.width}x{edited.image.height} (width x height), but they must be the "
            "same picture; give --H and --W to resize both."
        )
    return Inputs(init, edited, _levels(options, init, edited))


def _levels(options: RunOptions, init: "Photo | None", edited: "Photo | None") -> "Tensor | None":
    """Where the edit is, grown as the options say; see `Inputs.levels`."""
    import torch

    from sgm.inference.composite import distance
    from sgm.inference.drawing import where_drawn
    from sgm.io.imageio import to_tensor
    from sgm.io.maskio import load_levels

    photo = init or edited
    assert photo is not None  # by `check_together`
    if options.mask_path is not None:
        size = (photo.image.height, photo.image.width)
        levels = load_levels(options.mask_path, size, options.photo.invert_mask)
        if options.task is Task.SDEDIT:
            levels = (levels > 0.5).float()
    elif init is None or edited is None:
        return None
    else:
        pictures = to_tensor(init.image), to_tensor(edited.image)
        levels = where_drawn(*pictures, options.photo.blend is not None).float()
    grow = options.photo.mask_grow
    if grow:
        levels = torch.maximum(levels, (distance(levels >= 1, grow) <= grow).float())
    return levels


def advise_on_size(options: RunOptions, inputs: Inputs) -> None:
    """Warn when a picture is far larger than what the model was trained on."""
    size = inputs.source(False).image.size
    height, width = options.spec.trained_size
    if size[0] * size[1] >= 2 * height * width:
        logger.warning(
            "The %s model was trained at %dx%d (width x height) and the picture is %dx%d; "
            "--H %d --W %d will look better, or --padding_mask_crop auto.",
            *(options.model, width, height, *size, height, width),
        )
