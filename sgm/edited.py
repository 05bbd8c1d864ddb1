"""Pictures as an edit from Python returns them."""

from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from sgm.io.photos import Photo, as_saved


class EditedImage(Image.Image):
    """A PIL picture that knows how it was made, in the colours of the one that was edited.

    Attributes:
        seconds: by stage: `encode`, `sample`, `decode`; of a session also `record`, the full passes
            under a new prompt.
        edit_ratio: share of the pixels that was to be edited, 0 to 1; None where unknown.
    """

    seconds: dict[str, float]
    edit_ratio: float | None

    def save(self, fp: Any, format: str | None = None, **options: Any) -> None:
        """As PIL saves a picture, by default with what the file of the edited one says (profile,
        EXIF, resolution) and as the command line does: lossless WebP, JPEG of quality 95, without
        transparency where a format has none. A folder that is not there yet is made."""
        name = str(fp if isinstance(fp, str | PathLike) else getattr(fp, "name", ""))
        kind = format or Image.registered_extensions().get(Path(name).suffix.lower(), "")
        picture, known = as_saved(self, kind.upper(), name or kind)
        if isinstance(fp, str | PathLike):
            Path(fp).parent.mkdir(parents=True, exist_ok=True)
        Image.Image.save(picture, fp, format, **{**known, **options})


def to_image(photo: Photo, seconds: dict[str, float], levels: Tensor | None) -> EditedImage:
    """A photo after an edit as a picture, RGB or RGBA.

    Args:
        levels: where the edit is, float [H, W] in [0, 1]; None where unknown.
    """
    picture = photo.picture
    picture.__class__ = EditedImage
    assert isinstance(picture, EditedImage)
    picture.seconds = seconds
    picture.edit_ratio = None if levels is None else (levels > 0.5).float().mean().item()
    return picture
