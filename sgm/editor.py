"""The package in one call: load a model, edit pictures, get pictures back.

editor = sgm.load("tiny", preset="fast")
editor.inpaint("photo.jpg", "mask.png", "a horse").save("out.png")
"""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sgm import runtime
from sgm.inference.crop import Cropped, EditRequest
from sgm.inference.drawing import where_drawn
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.session import EditSession
from sgm.inference.window import advise_on_size
from sgm.io import imageio, maskio
from sgm.specs import (
    AUTO,
    WHOLE,
    Blend,
    Lora,
    ModelSpec,
    SamplingParams,
    Weights,
    folder_with,
    model_spec,
)
from sgm.words import Backend, Precision, Prediction, Preset, RunType, Sampler, Spacing, Task

# A path, a PIL picture, an array [H, W, 3] (uint8, or floating point in [0, 1]), or a tensor
# [3, H, W] in [0, 1].
Picture = str | PathLike[str] | Image.Image | np.ndarray | Tensor
# A path, a PIL picture, or an array or tensor [H, W] of bool, 0/1, 0/255 or [0, 1]; white: repaint.
Mask = str | PathLike[str] | Image.Image | np.ndarray | Tensor


class EditedImage(Image.Image):
    """A PIL picture that knows how it was made.

    Attributes:
        seconds: by stage: `encode`, `sample`, `decode`.
        edit_ratio: share of the pixels that was to be edited; None where unknown.
    """

    seconds: dict[str, float]
    edit_ratio: float | None

    def save(self, fp: Any, *args: Any, **options: Any) -> None:
        """As PIL saves a picture; a folder that is not there yet is made."""
        if isinstance(fp, str | PathLike):
            Path(fp).parent.mkdir(parents=True, exist_ok=True)
        super().save(fp, *args, **options)


class Editor:
    """A loaded model that edits pictures.

    Pictures may have any size, and keep it. Of one that is larger than what the model was trained
    for, preset `fast` edits a crop; where the network sees the whole of one that is far larger, a
    warning says so.
    """

    def __init__(self, pipeline: Pipeline, spec: ModelSpec) -> None:
        self.pipeline, self.spec = pipeline, spec

    def inpaint(
        self,
        image: Picture,
        mask: Mask,
        prompt: str,
        progress: bool = False,
        padding_mask_crop: int | str | None = None,
        **settings: Any,
    ) -> EditedImage:
        """Repaint the masked part of a picture.

        Args:
            mask: where to repaint; of the picture's size, or resized to it.
            progress: show a bar on stderr.
            padding_mask_crop: pixels around the edit that the network sees with it, in place of the
                whole picture; `auto` for a crop only if the picture is larger than the model's
                size, `none` for the whole; by default `auto` with preset `fast`, else `none`.
            settings: the fields of `SamplingParams` by their names; the sampler and the spacing may
                be the words of the command line.

        Raises:
            UserError, ValueError: a file or an array that cannot be used, or an empty mask.
        """
        source, params = to_tensor(image), _params(prompt, settings)
        marked = to_mask(mask, source.shape[1:])
        return self._edited(source, None, marked, params, padding_mask_crop, progress)

    def sdedit(
        self,
        image: Picture | None,
        drawn: Picture,
        prompt: str,
        mask: Mask | None = None,
        progress: bool = False,
        padding_mask_crop: int | str | None = None,
        **settings: Any,
    ) -> EditedImage:
        """Turn what was drawn on a picture into something in the manner of the model.

        Args:
            image: the picture before; a dense model does without it.
            drawn: the picture with the drawing, of the same size.
            mask: where it was drawn on; None to look for it.
            progress, padding_mask_crop, settings: as for `inpaint`.

        Raises:
            UserError, ValueError: a picture that cannot be used, or nothing was drawn.
        """
        before = None if image is None else to_tensor(image)
        edited = to_tensor(drawn) if before is None else to_drawing(drawn, before.shape[1:])
        marked = None
        if mask is not None:
            marked = to_mask(mask, edited.shape[1:])
        elif before is not None:
            marked = where_drawn(before, edited, self.pipeline.recipe.blend is not None)
        params = _params(prompt, settings)
        return self._edited(before, edited, marked, params, padding_mask_crop, progress)

    def _edited(
        self,
        before: Tensor | None,
        drawn: Tensor | None,
        marked: Tensor | None,
        params: SamplingParams,
        crop: int | str | None,
        progress: bool,
    ) -> EditedImage:
        """The result of an edit of pictures of any size, as on the command line."""
        blend = self.pipeline.recipe.blend
        if crop is None:
            crop = WHOLE if blend is None else AUTO
        if crop == WHOLE:
            crop = None
        elif crop != AUTO and not (isinstance(crop, int) and crop >= 0):
            raise ValueError(f"padding_mask_crop is {crop!r}; give pixels, {AUTO!r} or {WHOLE!r}.")
        else:
            blend = blend or Blend(match_border=False)
        asked = EditRequest(before, drawn, marked, params.strength, blend)
        edit = asked.edit(self.spec, crop)
        size = (before if drawn is None else drawn).shape[1:]
        if not isinstance(edit, Cropped):
            advice = f"a smaller one will look better, or padding_mask_crop={AUTO!r}"
            advise_on_size(size, self.spec, advice)
        return to_image(self.pipeline.edit(edit, params, progress=progress), size)

    def session(
        self,
        image: Picture,
        prompt: str = "",
        task: str = "inpainting",
        progress: bool = False,
        **settings: Any,
    ) -> "Session":
        """Record a picture once, to edit it many times (preset `fast`).

        Args:
            prompt: what it shows; the recordings are made under it.
            task: for which they are made at once, `inpainting` or `sdedit`; those of the other are
                made when first needed.
            progress, settings: as for `inpaint`, for all edits.

        Raises:
            UserError, ValueError: a picture that cannot be used, or another preset.
        """
        source, size = padded(image)
        advise_on_size(size, self.spec, "a smaller one will look better")
        what = (source, _params(prompt, settings), Task(task))
        return Session(EditSession(self.pipeline, *what, progress=progress), size)


class Session:
    """A picture that was recorded, and is edited by sparse passes alone."""

    def __init__(self, session: EditSession, size: tuple[int, int]) -> None:
        self.edits, self.size = session, size
        self._last: EditResult | None = None

    def inpaint(self, mask: Mask, prompt: str, negative_prompt: str = "") -> EditedImage:
        """Repaint the masked part of the picture."""
        marked = imageio.pad_to_multiple(to_mask(mask, self.size))
        return self._kept(self.edits.inpaint(prompt, marked, negative_prompt))

    def sdedit(
        self,
        drawn: Picture,
        prompt: str,
        strength: float = 0.8,
        negative_prompt: str = "",
        mask: Mask | None = None,
    ) -> EditedImage:
        """Turn what was drawn on the picture into something in the manner of the model; without a
        mask it is looked for."""
        region = None if mask is None else imageio.pad_to_multiple(to_mask(mask, self.size))
        edited = imageio.pad_to_multiple(to_drawing(drawn, self.size))
        return self._kept(self.edits.sdedit(prompt, edited, strength, negative_prompt, region))

    def accept(self) -> None:
        """Make the last edit the picture that further ones start from; ValueError if there is
        none."""
        if self._last is None:
            raise ValueError("There is no edit to accept; call inpaint or sdedit first.")
        self.edits.accept(self._last)
        self._last = None

    def _kept(self, result: EditResult) -> EditedImage:
        self._last = result
        return to_image(result, self.size)


def load_editor(
    model: str = "sdxl",
    *,
    preset: str = "fast",
    run_type: str = "sige",
    checkpoint: str | PathLike[str] | None = None,
    vae: str | PathLike[str] | None = None,
    loras: dict[str, float] | None = None,
    prediction: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    backend: str = "auto",
    graphs: bool | None = None,
    weight_path: str | PathLike[str] = "pretrained",
    config_path: str | PathLike[str] = "configs",
    progress: bool = False,
) -> Editor:
    """Load a model; see `sgm.load`, which this is."""
    spec, kind, chosen = model_spec(model), RunType(run_type), Preset(preset)
    where = runtime.pick_device(device)
    exact = runtime.best_precision(chosen, where) if precision is None else Precision(precision)
    runtime.check_precision(exact, where)
    folder = folder_with(spec.weights, weight_path)
    configs = folder_with(spec.configs, config_path)
    weights = Weights(
        Path(checkpoint or folder / spec.weights[spec.weight_role(kind)]),
        None if vae is None else Path(vae),
        tuple(Lora(Path(path), weight) for path, weight in (loras or {}).items()),
        None if prediction is None else Prediction(prediction),
    )
    what = (spec, kind, configs, folder, where, exact, Backend(backend), chosen)
    return Editor(Pipeline.load(*what, progress=progress, weights=weights, graphs=graphs), spec)


def to_tensor(picture: Picture) -> Tensor:
    """A picture as the networks take it: [3, H, W] in [-1, 1], float32 on the CPU. UserError for a
    file that is no picture, ValueError for an array or a tensor of another shape or range."""
    if isinstance(picture, str | PathLike):
        return imageio.to_tensor(imageio.load_picture(picture))
    if isinstance(picture, Image.Image):
        return imageio.to_tensor(imageio.to_rgb(picture))
    if isinstance(picture, np.ndarray):
        scaled = picture / 255 if picture.dtype == np.uint8 else picture
        picture = torch.from_numpy(np.ascontiguousarray(scaled)).permute(2, 0, 1)
    fits = picture.ndim == 3 and picture.shape[0] == 3
    if not fits or not 0 <= float(picture.min()) <= float(picture.max()) <= 1:
        raise ValueError(
            f"The picture is an array of shape {tuple(picture.shape)} from {picture.min():g} to "
            f"{picture.max():g}; expected a tensor [3, H, W] in [0, 1] or an array [H, W, 3], "
            "uint8 or in [0, 1]."
        )
    return picture.float().cpu() * 2 - 1


def to_drawing(picture: Picture, size: Sequence[int]) -> Tensor:
    """A picture that was drawn on, as `to_tensor` gives it; ValueError unless it has the `size`
    (height, width) of the one before."""
    drawn = to_tensor(picture)
    if drawn.shape[1:] != (size[0], size[1]):
        raise ValueError(
            f"The drawing has {drawn.shape[2]}x{drawn.shape[1]} pixels, expected {size[1]}x"
            f"{size[0]} as the picture; draw on the picture, or resize."
        )
    return drawn


def to_mask(mask: Mask, size: Sequence[int]) -> Tensor:
    """A mask for a picture of `size` (height, width): bool [H, W], True where to repaint.

    Raises:
        UserError: a file that is no mask.
        ValueError: an array or a tensor of another shape.
    """
    size = (size[0], size[1])
    if isinstance(mask, str | PathLike):
        return maskio.load_mask(mask, size)
    if isinstance(mask, Image.Image):
        grey = mask.convert("L").resize((size[1], size[0]), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(grey) > 127)
    level = torch.as_tensor(mask)
    if tuple(level.shape) != size:
        raise ValueError(
            f"The mask has shape {tuple(level.shape)} and the picture is {size} (height, width); "
            "give a mask of the picture's size."
        )
    return level if level.dtype is torch.bool else level.float() > level.float().max() / 2


def padded(picture: Picture) -> tuple[Tensor, tuple[int, int]]:
    """A picture as `to_tensor` gives it, padded to multiples of 64, and its size before."""
    source = to_tensor(picture)
    return imageio.pad_to_multiple(source), (source.shape[1], source.shape[2])


def _params(prompt: str, settings: dict[str, Any]) -> SamplingParams:
    """Settings with a prompt; TypeError for an unknown one."""
    params = SamplingParams(prompt, **settings)
    return replace(params, sampler=Sampler(params.sampler), spacing=Spacing(params.spacing))


def to_image(result: EditResult, size: Sequence[int]) -> EditedImage:
    """A result as a PIL picture of a size (height, width)."""
    picture = imageio.to_picture(imageio.crop_back(result.image, size))
    picture.__class__ = EditedImage
    assert isinstance(picture, EditedImage)
    picture.seconds, picture.edit_ratio = result.seconds, result.edit_ratio
    return picture
