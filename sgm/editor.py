"""The package in one call: load a model, edit pictures, get pictures back.

editor = sgm.load("tiny", preset="fast")
editor.inpaint("photo.jpg", "mask.png", "a horse").save("out.png")
"""

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sgm import runtime
from sgm.inference.inpainting import Inpainting
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.sdedit import SDEdit
from sgm.inference.session import EditSession
from sgm.io import imageio, maskio
from sgm.specs import SHIPPED, SamplingParams, model_spec
from sgm.weights import Lora, Weights
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
        """As PIL saves a picture; a folder that is not there yet is made.

        Raises:
            OSError: the file cannot be written.
            ValueError: the format is unknown.
        """
        if isinstance(fp, str | PathLike):
            Path(fp).parent.mkdir(parents=True, exist_ok=True)
        super().save(fp, *args, **options)


@dataclass(frozen=True)
class Settings:
    """How an edit is sampled; the words of the command line.

    Attributes:
        negative_prompt: what the edit should not show.
        seed: of every random draw.
        steps: sampler steps; None for 50, or 4 of a few-step model.
        scale: classifier-free guidance.
        strength: SDEdit: share of the schedule that is run.
        sampler, spacing: how a step is made and which noise levels are visited; the words of the
            command line.
        progress: show bars on stderr.
    """

    negative_prompt: str = ""
    seed: int = 2
    steps: int | None = None
    scale: float = 6.0
    strength: float = 0.8
    sampler: Sampler | str = Sampler.DPMPP2M
    spacing: Spacing | str = Spacing.PUBLISHED
    progress: bool = False

    def params(self, prompt: str) -> SamplingParams:
        """These settings with a prompt."""
        return SamplingParams(
            prompt,
            self.negative_prompt,
            self.seed,
            self.steps,
            self.scale,
            self.strength,
            Sampler(self.sampler),
            Spacing(self.spacing),
        )


class Editor:
    """A loaded model that edits pictures.

    Pictures may have any size: they are padded to multiples of 64 and cropped back.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def inpaint(self, image: Picture, mask: Mask, prompt: str, **settings: Any) -> EditedImage:
        """Repaint the masked part of a picture.

        Args:
            image: the picture.
            mask: where to repaint; of the picture's size, or resized to it.
            settings: the fields of `Settings` by their names.

        Raises:
            UserError, ValueError: a file or an array that cannot be used, or an empty mask.
        """
        chosen = Settings(**settings)
        source = to_tensor(image)
        size = (source.shape[1], source.shape[2])
        params = chosen.params(prompt)
        padded = imageio.pad_to_multiple(source)
        marked = imageio.pad_to_multiple(to_mask(mask, size))
        edit = Inpainting(padded, marked, self.pipeline.recipe.blend)
        result = self.pipeline.edit(edit, params, progress=chosen.progress)
        return to_image(result, size)

    def sdedit(
        self,
        image: Picture | None,
        drawn: Picture,
        prompt: str,
        mask: Mask | None = None,
        **settings: Any,
    ) -> EditedImage:
        """Turn what was drawn on a picture into something in the manner of the model.

        Args:
            image: the picture before; a dense model does without it.
            drawn: the picture with the drawing, of the same size.
            mask: where it was drawn on; None to look for it.
            settings: the fields of `Settings` by their names.

        Raises:
            UserError, ValueError: a file or an array that cannot be used, or nothing was drawn.
        """
        chosen = Settings(**settings)
        edited = to_tensor(drawn)
        params = chosen.params(prompt)
        size = (edited.shape[1], edited.shape[2])
        before = None if image is None else imageio.pad_to_multiple(to_tensor(image))
        padded, region = imageio.pad_to_multiple(edited), _region(mask, size)
        edit = SDEdit(before, padded, params.strength, region, self.pipeline.recipe.blend)
        result = self.pipeline.edit(edit, params, progress=chosen.progress)
        return to_image(result, size)

    def session(
        self, image: Picture, prompt: str = "", task: str = "inpainting", **settings: Any
    ) -> "Session":
        """Record a picture once, to edit it many times (preset `fast`).

        Args:
            image: the picture.
            prompt: what it shows; the recordings are made under it.
            task: for which they are made at once, `inpainting` or `sdedit`; those of the other are
                made when first needed.
            settings: the fields of `Settings` by their names, for all edits.

        Raises:
            UserError, ValueError: a picture that cannot be used, or another preset.
        """
        chosen, source = Settings(**settings), to_tensor(image)
        session = EditSession(
            self.pipeline,
            imageio.pad_to_multiple(source),
            chosen.params(prompt),
            Task(task),
            progress=chosen.progress,
        )
        return Session(session, (source.shape[1], source.shape[2]))


class Session:
    """A picture that was recorded, and is edited by sparse passes alone."""

    def __init__(self, session: EditSession, size: tuple[int, int]) -> None:
        self.edits, self.size = session, size
        self._last: EditResult | None = None

    def inpaint(self, mask: Mask, prompt: str, negative_prompt: str = "") -> EditedImage:
        """Repaint the masked part of the picture."""
        padded = imageio.pad_to_multiple(to_mask(mask, self.size))
        return self._kept(self.edits.inpaint(prompt, padded, negative_prompt))

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
        padded, region = imageio.pad_to_multiple(to_tensor(drawn)), _region(mask, self.size)
        return self._kept(self.edits.sdedit(prompt, padded, strength, negative_prompt, region))

    def accept(self) -> None:
        """Make the last edit the picture that further ones start from.

        Raises:
            ValueError: there is none.
        """
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
    spec, chosen = model_spec(model), Preset(preset)
    where = runtime.pick_device(device)
    exact = runtime.best_precision(chosen, where) if precision is None else Precision(precision)
    runtime.check_precision(exact, where)
    configs, folder = found(config_path), found(weight_path)
    kind = RunType(run_type)
    weights = Weights(folder / spec.weight_file(spec.weight_role(kind)))
    if checkpoint is not None:
        weights = replace(weights, checkpoint=Path(checkpoint))
    weights = replace(
        weights,
        vae=None if vae is None else Path(vae),
        loras=tuple(Lora(Path(path), weight) for path, weight in (loras or {}).items()),
        prediction=None if prediction is None else Prediction(prediction),
    )
    pipeline = Pipeline.load(
        spec,
        kind,
        configs,
        folder,
        where,
        exact,
        Backend(backend),
        chosen,
        progress=progress,
        weights=weights,
        graphs=graphs,
    )
    return Editor(pipeline)


def found(folder: str | PathLike[str]) -> Path:
    """A folder as it is given, or else the one of that name that comes with the package."""
    path = Path(folder)
    return path if path.is_dir() or path.is_absolute() else SHIPPED / path


def to_tensor(picture: Picture) -> Tensor:
    """A picture as the networks take it: [3, H, W] in [-1, 1], float32 on the CPU.

    Raises:
        UserError: a file that is no picture.
        ValueError: an array or a tensor of another shape or range.
    """
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


def to_mask(mask: Mask, size: tuple[int, int]) -> Tensor:
    """A mask, bool [H, W], True where to repaint.

    Args:
        size: (height, width) of its picture.

    Raises:
        UserError: a file that is no mask.
        ValueError: an array or a tensor of another shape.
    """
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


def _region(mask: Mask | None, size: tuple[int, int]) -> Tensor | None:
    """A mask as SDEdit takes it: padded as its picture."""
    return None if mask is None else imageio.pad_to_multiple(to_mask(mask, size))


def to_image(result: EditResult, size: tuple[int, int]) -> EditedImage:
    """A result as a PIL picture of a size (height, width)."""
    picture = imageio.to_picture(imageio.crop_back(result.image, size))
    picture.__class__ = EditedImage
    assert isinstance(picture, EditedImage)
    picture.seconds, picture.edit_ratio = result.seconds, result.edit_ratio
    return picture
