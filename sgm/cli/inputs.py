"""The pictures and the mask of a command, and the edit that it asks for."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sgm.errors import UserError
from sgm.inference.composite import distance
from sgm.inference.crop import EditRequest
from sgm.inference.drawing import where_drawn
from sgm.inference.edit import Edit
from sgm.inference.sdedit import source_of
from sgm.io.imageio import to_tensor
from sgm.io.maskio import load_levels
from sgm.io.photos import Photo, load_photo
from sgm.specs import RunOptions
from sgm.words import Task

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

    init_photo: Photo | None
    edited_photo: Photo | None
    levels: Tensor | None

    @property
    def mask(self) -> Tensor | None:
        """Where the edit is, bool [H, W]."""
        return None if self.levels is None else self.levels > 0.5

    @property
    def ratio(self) -> float | None:
        """Share of the pixels that is edited; None where unknown."""
        return None if self.mask is None else self.mask.float().mean().item()

    def source(self, blended: bool) -> Photo:
        """The picture that the edit is made to."""
        return source_of(self.init_photo, self.edited_photo, blended)


def read_inputs(options: RunOptions) -> Inputs:
    """Read pictures and mask of a run and bring them to one size. UserError for a file that cannot
    be used, or two pictures of different sizes."""

    def photo(path: Path | None) -> Photo | None:
        if path is None:
            return None
        found = load_photo(path)
        return found.resized((options.height or found.size[0], options.width or found.size[1]))

    drawn_on = options.task is Task.SDEDIT and options.record is None
    init, edited = photo(options.init_img), photo(options.edited_img if drawn_on else None)
    if init is not None and edited is not None and init.size != edited.size:
        raise UserError(
            f"The original is {init.image.width}x{init.image.height} and the edited picture "
            f"{edited.image.width}x{edited.image.height} (width x height), but they must be the "
            "same picture; give --H and --W to resize both."
        )
    return Inputs(init, edited, _levels(options, init, edited))


def _levels(options: RunOptions, init: Photo | None, edited: Photo | None) -> Tensor | None:
    """Where the edit is, grown as the options say; see `Inputs.levels`."""
    photo = init or edited
    assert photo is not None  # by `check_together`
    if options.mask_path is not None:
        levels = load_levels(options.mask_path, photo.size, options.photo.invert_mask)
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


def nothing_marked(options: RunOptions, inputs: Inputs) -> str | None:
    """Why there is nothing to edit, as the subject and verb of a sentence; None where there is. A
    dense run does not look at where the pictures differ, so there only a given mask counts."""
    known = options.run_type.sparse or options.mask_path is not None
    if not known or inputs.mask is None or inputs.mask.any():
        return None
    return "two pictures are the same" if options.mask_path is None else "mask is empty"


def dense_if_everywhere(options: RunOptions, inputs: Inputs) -> RunOptions:
    """The options, of a dense run where the edit covers the whole picture."""
    if not options.run_type.sparse or inputs.mask is None or not inputs.mask.all():
        return options
    dense = options.run_type.dense
    logger.warning("The edit covers the whole picture: running %s, which is dense.", dense)
    return replace(options, run_type=dense)


def request(options: RunOptions, inputs: Inputs) -> EditRequest:
    """The edit that a run asks for."""
    init, edited = (x and to_tensor(x.image) for x in (inputs.init_photo, inputs.edited_photo))
    blend = options.photo.blend
    return EditRequest(init, edited, inputs.levels, options.sampling.strength, blend)


def edit_of_run(options: RunOptions, inputs: Inputs) -> Edit:
    """The edit of a run: of a crop where one was asked for, or where the picture is larger than
    the model's size."""
    return request(options, inputs).edit(options.spec, options.photo.padding_mask_crop)
