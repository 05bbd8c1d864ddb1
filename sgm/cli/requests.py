"""The edit that a command asks a pipeline for, of the whole picture or a crop, and its notices."""

from typing import TYPE_CHECKING

from sgm.cli.inputs import Inputs
from sgm.specs import RunOptions
from sgm.words import Task

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from sgm.inference.crop import Cropped
    from sgm.inference.edit import Edit


def request(options: RunOptions, inputs: Inputs) -> "Edit":
    """The edit of a run: of a crop where one was asked for, or where the picture is larger than
    the model's size."""
    found = None if options.photo.padding_mask_crop is None else _crop(options, inputs)
    return edit_of(options, inputs) if found is None else found


def is_cropped(edit: "Edit") -> bool:
    """Whether an edit shows the network a crop."""
    from sgm.inference.crop import Cropped

    return isinstance(edit, Cropped)


def edit_of(options: RunOptions, inputs: Inputs) -> "Edit":
    """The edit of the whole picture, its pictures padded to multiples of 64."""
    from sgm.inference.inpainting import Inpainting
    from sgm.inference.sdedit import SDEdit
    from sgm.io import imageio

    def tensor(picture: "Image.Image") -> "Tensor":
        return imageio.pad_to_multiple(imageio.to_tensor(picture))

    blend, init = options.photo.blend, None if inputs.init is None else tensor(inputs.init)
    if options.task is Task.INPAINTING:
        levels = inputs.mask if blend is None else inputs.levels
        return Inpainting(init, imageio.pad_to_multiple(levels), blend)
    drawing = None if inputs.mask is None else imageio.pad_to_multiple(inputs.mask)
    return SDEdit(init, tensor(inputs.edited), options.sampling.strength, drawing, blend)


def _crop(options: RunOptions, inputs: Inputs) -> "Cropped | None":
    """The edit of a crop; None if the whole picture serves as well."""
    from sgm.inference.crop import crop_inpainting, crop_sdedit, is_larger, window_around
    from sgm.io.imageio import to_tensor

    blend, crop, mask = options.photo.blend, options.photo.padding_mask_crop, inputs.mask
    assert blend is not None  # by `photo_options`
    trained = options.spec.trained_size
    if mask is None or mask.all() or (crop == "auto" and not is_larger(mask.shape, trained)):
        return None
    margin = None if isinstance(crop, str) else max(crop or 0, blend.width(mask.shape))
    window = window_around(inputs.levels > 0, trained, margin)
    init = None if inputs.init is None else to_tensor(inputs.init)
    if options.task is Task.INPAINTING:
        return crop_inpainting(init, inputs.levels, window, blend)
    edited = to_tensor(inputs.edited)
    return crop_sdedit(init, edited, mask, window, blend, options.sampling.strength)


def notices(options: RunOptions) -> list[str]:
    """Notices, one sentence each, of parts of the prompts that are probably not read as meant."""
    from sgm.inference.prompts import unread

    params = options.sampling
    given = {"--prompt": params.prompt, "--negative_prompt": params.negative_prompt}
    return [f"{flag}: {text}" for flag, of in given.items() for text in unread(of, params.weighted)]
