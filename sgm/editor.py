"""The package in one call: load a model, edit pictures, get pictures back.

editor = sgm.load("tiny", preset="fast")
editor.inpaint("photo.jpg", "mask.png", "a horse").save("out.png")
"""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from sgm import runtime
from sgm.edited import EditedImage, to_image
from sgm.errors import UserError
from sgm.inference.choose_store import make_store
from sgm.inference.crop import Cropped, EditRequest
from sgm.inference.drawing import where_drawn
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.prompts import say_unread
from sgm.inference.sdedit import source_of
from sgm.inference.session import EditSession
from sgm.inference.window import advise_on_size
from sgm.io import files, imageio
from sgm.io.given import Given, Mask, Picture, read, to_levels
from sgm.io.photos import Photo
from sgm.specs import (
    AUTO,
    WHOLE,
    Blend,
    Lora,
    ModelSpec,
    RecordingSettings,
    SamplingParams,
    Weights,
    folder_with,
    model_spec,
)
from sgm.words import (
    Backend,
    Precision,
    Prediction,
    Preset,
    RecordingMemory,
    RecordingPrecision,
    RunType,
    Sampler,
    Spacing,
    Task,
    chosen,
)


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
        before, params = read(image), self._params(prompt, settings)
        levels = to_levels(mask, before.photo.size)
        return self._edited(before, None, levels, params, padding_mask_crop, progress)

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
        before = None if image is None else read(image)
        known = () if before is None else (before.photo.size, before.photo.profile)
        edited = read(drawn, *known)
        levels = None
        if mask is not None:
            levels = (to_levels(mask, edited.photo.size) > 0.5).float()
        elif before is not None:
            blended = self.pipeline.recipe.blend is not None
            levels = where_drawn(before.seen, edited.seen, blended).float()
            if self.pipeline.sparse:  # a dense one does not look at it
                _check_drawn(levels)
        params = self._params(prompt, settings)
        return self._edited(before, edited, levels, params, padding_mask_crop, progress)

    def _edited(
        self,
        before: Given | None,
        drawn: Given | None,
        levels: Tensor | None,
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
        elif crop != AUTO and (type(crop) is not int or crop < 0):
            raise ValueError(f"padding_mask_crop is {crop!r}; give pixels, {AUTO!r} or {WHOLE!r}.")
        else:
            blend = blend or Blend(match_border=False)
        photo = source_of(before, drawn, blend is not None).photo
        seen = (x and x.seen for x in (before, drawn))
        edit = EditRequest(*seen, levels, params.strength, blend).edit(self.spec, crop)
        if not isinstance(edit, Cropped):
            advice = f"a smaller one will look better, or padding_mask_crop={AUTO!r}"
            advise_on_size(photo.size, self.spec, advice)
        result = self.pipeline.edit(edit, params, progress=progress)
        edited = photo.with_edit(result.image, result.touched, blend is not None)
        return to_image(edited, result.seconds, levels)

    def _params(self, prompt: str, settings: dict[str, Any]) -> SamplingParams:
        """Settings with a prompt, whose syntax is that of the preset as on the command line.

        Raises:
            TypeError: an unknown setting.
            UserError: a value outside of its range.
        """
        params = SamplingParams(prompt, **{"weighted": self.pipeline.recipe.hold, **settings})
        params.check()
        say_unread(params)
        return replace(
            params,
            sampler=chosen(Sampler, params.sampler),
            spacing=chosen(Spacing, params.spacing),
        )

    def session(
        self,
        image: Picture,
        prompt: str = "",
        task: str = "inpainting",
        progress: bool = False,
        mask: Mask | None = None,
        recording_precision: str = "full",
        recording_memory: str = "auto",
        recording_folder: str | PathLike[str] | None = None,
        **settings: Any,
    ) -> "Session":
        """Record a picture once, to edit it many times (preset `fast`).

        Args:
            prompt: what it shows; the recordings are made under it.
            task: for which they are made at once, `inpainting` or `sdedit`; those of the other are
                made when first needed.
            mask: where edits may be, so that less is kept; None for anywhere.
            recording_precision: `full`, `bf16` or `int8`, in which less is kept.
            recording_memory: where it is kept: `device`, `host`, `disk`, or `auto` for the first
                that has room.
            recording_folder: an existing one for the disk; without one the disk is not used.
            progress, settings: as for `inpaint`, for all edits.

        Raises:
            UserError, ValueError: a picture that cannot be used, another preset, or no room.
        """
        seen, photo = read(image)
        advise_on_size(photo.size, self.spec, "a smaller one will look better")
        kept = RecordingSettings(precision=chosen(RecordingPrecision, recording_precision))
        pipeline = self.pipeline.with_recipe(self.pipeline.recipe.with_recordings(kept))
        folder = None if recording_folder is None else Path(recording_folder)
        place = (pipeline.networks.device, chosen(RecordingMemory, recording_memory), folder)
        region = None if mask is None else imageio.pad_to_multiple(to_levels(mask, photo.size) > 0)
        edits = EditSession(
            pipeline,
            imageio.pad_to_multiple(seen),
            self._params(prompt, settings),
            chosen(Task, task),
            lambda needed: make_store(needed, *place),
            progress=progress,
            region=region,
        )
        return Session(edits, photo)


class Session:
    """A picture that was recorded, and is edited by sparse passes.

    Attributes:
        edits: its recordings.
        photo: the picture with the edits that were accepted, in its own colours.
    """

    def __init__(self, session: EditSession, photo: Photo) -> None:
        self.edits, self.photo = session, photo
        self._last: tuple[EditResult, Photo] | None = None

    def inpaint(
        self, mask: Mask, prompt: str, negative_prompt: str = "", seed: int | None = None
    ) -> EditedImage:
        """Repaint the masked part of the picture; another seed gives another result."""
        self._check(prompt, negative_prompt, seed, self.edits.recordings.params.strength)
        levels = to_levels(mask, self.photo.size)
        marked = imageio.pad_to_multiple(levels)
        return self._kept(self.edits.inpaint(prompt, marked, negative_prompt, seed), levels)

    def sdedit(
        self,
        drawn: Picture,
        prompt: str,
        strength: float = 0.8,
        negative_prompt: str = "",
        mask: Mask | None = None,
        seed: int | None = None,
    ) -> EditedImage:
        """Turn what was drawn on the picture into something in the manner of the model; without a
        mask it is looked for, and another seed gives another result."""
        self._check(prompt, negative_prompt, seed, strength)
        profile = self.photo.profile
        edited = read(drawn, self.photo.size, profile).seen
        if mask is None:
            before = self.edits.picture
            if profile is not None:  # as it is handed out, where colours are rounded once more
                before = imageio.to_tensor(profile.shown(self.photo.own))
            before = imageio.crop_back(before, self.photo.size)
            levels = where_drawn(before, edited, True).float()
            _check_drawn(levels)
        else:
            levels = to_levels(mask, self.photo.size)
        edited, marked = map(imageio.pad_to_multiple, (edited, levels > 0.5))
        words = (strength, negative_prompt, marked, seed)
        return self._kept(self.edits.sdedit(prompt, edited, *words), levels)

    def accept(self) -> None:
        """Make the last edit the picture that further ones start from; ValueError if there is
        none."""
        if self._last is None:
            raise ValueError("There is no edit to accept; call inpaint or sdedit first.")
        result, photo = self._last
        self.edits.accept(result)
        self.photo, self._last = photo, None

    def _check(self, prompt: str, negative_prompt: str, seed: int | None, strength: float) -> None:
        """UserError for a value outside of its range; says what of the prompts is not read."""
        own = self.edits.recordings.params
        words = {"prompt": prompt, "negative_prompt": negative_prompt, "strength": strength}
        params = replace(own, seed=own.seed if seed is None else seed, **words)
        params.check()
        say_unread(params)

    def _kept(self, result: EditResult, levels: Tensor) -> EditedImage:
        blended = self.edits.recordings.pipeline.recipe.blend is not None
        edited = self.photo.with_edit(result.image, result.touched, blended)
        self._last = result, edited
        return to_image(edited, result.seconds, levels)


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
    """Load a model, with the arguments and errors of `sgm.load`, which calls this."""
    spec, kind, how = model_spec(model), chosen(RunType, run_type), chosen(Preset, preset)
    where = runtime.pick_device(device)
    best = runtime.best_precision(how, where)
    exact = best if precision is None else chosen(Precision, precision)
    runtime.check_precision(exact, where)
    folder = folder_with(spec.weights, weight_path)
    configs = folder_with(spec.configs, config_path)
    if not isinstance(loras or {}, Mapping):
        raise UserError(f"loras is {loras!r}; give a dict of paths and their weights.")
    role = spec.weight_role(kind)
    own = Weights(Path(checkpoint)) if checkpoint else spec.own(folder, role)
    added = tuple(Lora(Path(path), weight) for path, weight in (loras or {}).items())
    weights = Weights(
        own.checkpoint,
        None if vae is None else Path(vae),
        (*own.loras, *added),
        None if prediction is None else chosen(Prediction, prediction),
    )
    if checkpoint is None:
        for path in own.files:
            files.check_own_weights(path, spec, role)
    for path in weights.files:
        if not path.is_dir():
            files.check_weights_file(path)
    what = (spec, kind, configs, folder, where, exact, chosen(Backend, backend), how)
    return Editor(Pipeline.load(*what, progress=progress, weights=weights, graphs=graphs), spec)


def _check_drawn(levels: Tensor) -> None:
    """UserError where two pictures [H, W] do not differ."""
    if not levels.any():
        raise UserError("The two pictures are the same; draw on one of them, or give a mask.")
