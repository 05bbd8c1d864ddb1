"""Edits by a pipeline in one call."""

from torch import Tensor

from sgm.inference.inpainting import Inpainting
from sgm.inference.noise import Noise, sequential_noise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.sdedit import SDEdit
from sgm.specs import SamplingParams


def inpaint_with(
    pipe: Pipeline,
    image: Tensor,
    mask: Tensor,
    prompt: str,
    *,
    seed: int = 2,
    steps: int | None = None,
    noise: Noise = sequential_noise,
) -> EditResult:
    """A picture [3, H, W] in [-1, 1], repainted where the mask, bool [H, W], is True."""
    params = SamplingParams(prompt, "", seed, steps)
    return pipe.edit(Inpainting(image, mask, pipe.recipe.blend), params, noise)


def sdedit_with(
    pipe: Pipeline,
    init: Tensor | None,
    edited: Tensor,
    prompt: str,
    *,
    steps: int | None = None,
    strength: float = 0.8,
    noise: Noise = sequential_noise,
) -> EditResult:
    """SDEdit of two pictures [3, H, W] in [-1, 1]."""
    params = SamplingParams(prompt, steps=steps, strength=strength)
    edit = SDEdit(init, edited, strength, blend=pipe.recipe.blend)
    return pipe.edit(edit, params, noise)
