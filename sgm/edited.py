"""Pictures as an edit from Python returns them."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

from PIL import Image
from torch import Tensor

from sgm.inference.pipeline import EditResult
from sgm.io import imageio


class EditedImage(Image.Image):
    """A PIL picture that knows how it was made.

    Attributes:
        seconds: by stage: `encode`, `sample`, `decode`; of a session also `record`, the full passes
            under a new prompt.
        edit_ratio: share of the pixels that was to be edited, 0 to 1; None where unknown.
    """

    seconds: dict[str, float]
    edit_ratio: float | None

    def tagged(self, profile: bytes | None) -> Self:
        """The same picture with an ICC profile attached, if one is given."""
        if profile is not None:
            self.info["icc_profile"] = profile
        return self

    def save(self, fp: Any, *args: Any, **options: Any) -> None:
        """As PIL saves a picture, with the colour profile of the one that was edited; a folder that
        is not there yet is made."""
        if "icc_profile" in self.info:
            options.setdefault("icc_profile", self.info["icc_profile"])
        if isinstance(fp, str | PathLike):
            Path(fp).parent.mkdir(parents=True, exist_ok=True)
        super().save(fp, *args, **options)


def to_image(result: EditResult, size: Sequence[int], levels: Tensor | None) -> EditedImage:
    """A result as an RGB picture.

    Args:
        size: (height, width) in pixels, without the padding that the result may have.
        levels: where the edit is, float [H, W] in [0, 1]; None where unknown.
    """
    picture = imageio.to_picture(imageio.crop_back(result.image, size))
    picture.__class__ = EditedImage
    assert isinstance(picture, EditedImage)
    picture.seconds = result.seconds
    picture.edit_ratio = None if levels is None else (levels > 0.5).float().mean().item()
    return picture
