"""The pictures and the mask of a command, read and brought to one size."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgm.errors import UserError
from sgm.specs import RunOptions, Task

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The pictures of a run, all of one size.

    Attributes:
        init: the unedited picture, RGB; None for sdedit without one.
        edited: the picture drawn on, RGB; None for inpainting.
        mask: bool [H, W], True where the edit is: the given mask, or where the two pictures
            differ; None where there is no unedited picture to compare with.
    """

    init: "Image.Image | None"
    edited: "Image.Image | None"
    mask: "Tensor | None"

    @property
    def source(self) -> "Image.Image":
        """The picture that the edit is made to."""
        picture = self.init if self.edited is None else self.edited
        assert picture is not None  # by `check_together`
        return picture


def read_inputs(options: RunOptions) -> Inputs:
    """Read pictures and mask of a run and bring them to one size.

    Raises:
        UserError: a file that cannot be used, or two pictures of different sizes.
    """
    from sgm.io import imageio, maskio

    loaded = {}
    for name, path in (("init", options.init_img), ("edited", options.edited_img)):
        used = path is not None and not (name == "edited" and options.task is Task.INPAINTING)
        if used:
            picture = imageio.load_picture(path)
            size = (options.height or picture.height, options.width or picture.width)
            loaded[name] = imageio.resize_picture(picture, size, f"Picture {path}")
    init, edited = loaded.get("init"), loaded.get("edited")
    if options.record is not None:
        return Inputs(init, None, None)
    if options.task is Task.INPAINTING:
        assert init is not None and options.mask_path is not None  # by `check_together`
        return Inputs(init, None, maskio.load_mask(options.mask_path, (init.height, init.width)))
    if init is None:
        return Inputs(None, edited, None)
    if init.size != edited.size:
        raise UserError(
            f"The original is {init.width}x{init.height} and the edited picture "
            f"{edited.width}x{edited.height} (width x height), but they must be the same picture; "
            "give --H and --W to resize both."
        )
    from sgm.sparse.masks import difference_mask

    mask = difference_mask(imageio.to_tensor(init), imageio.to_tensor(edited))
    return Inputs(init, edited, mask.reshape(init.height, init.width))


def advise_on_size(options: RunOptions, inputs: Inputs) -> None:
    """Say so when a picture is far larger than what the model was trained on."""
    size, (height, width) = inputs.source.size, options.spec.trained_size
    if size[0] * size[1] >= 2 * height * width:
        logger.warning(
            "The %s model was trained at %dx%d (width x height) and the picture is %dx%d; "
            "--H %d --W %d will look better.",
            *(options.model, width, height, *size, height, width),
        )
