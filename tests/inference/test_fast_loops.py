"""Whole edits with preset `fast` against naive loops over a dense network that is held (see
`tests.oracle`), latents by latents, before anything is put into the input picture.

The numbers of the preset stand here once more, as literals: whoever changes one changes what edits
look like.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from sgm.inference.finite import FiniteWatch
from sgm.inference.noise import NamedNoise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.sparse.masks import MaskPyramid, downsample_mask
from sgm.specs import Precision, Preset
from tests.conftest import max_error
from tests.inference.test_edits import PROMPT, networks_of, picture
from tests.oracle import Guided, Kept, Oracle, Trajectory, between, levels

SIZE, LATENTS = (128, 192), (16, 24)
TOLERANCE = 1e-4  # golden README: pipeline latents, of the largest value
IMAGE_TOLERANCE = 5e-4  # golden README: pipeline images
SEED, SCALE_FACTOR = 3, 0.13025
BASE_PROMPT = "a grassland"

# Of preset `fast`: pixels of dilation at the picture's size, half of it and so on; of a drawing,
# and of a drawing at the first steps; of what the decoder computes around a drawing.
UNET_DILATION, DECODER_DILATION, KNOWN_DILATION = (1, 1, 1, 2, 1), 1, 1
DRAWN_DILATION, EARLY_DILATION, REGION_DILATION = 7, 40, 8
EARLY = 0.4  # of the steps
FEATHER = 4


# --- the only place that reaches into a run ------------------------------------------------------


@dataclass
class Watched:
    """A run from inside: latents [1, C, h, w] after every step, those that were decoded, the
    picture [3, H, W] in [0, 1] that they gave, and what the person got."""

    steps: list[Tensor] = field(default_factory=list)
    z: Tensor = field(init=False)
    decoded: Tensor = field(init=False)
    result: EditResult = field(init=False)


def watched(
    pipe: Pipeline,
    run: Callable[[], EditResult],
    after_step: Callable[[int], None] = lambda i: None,
) -> Watched:
    """Make an edit and look inside; `after_step` is called with the number of each step."""
    seen, first_stage = Watched(), pipe.networks.engine.first_stage_model
    decode = first_stage.decode

    def on_step(watch: FiniteWatch, i: int, x: Tensor) -> None:
        seen.steps.append(x.clone())
        after_step(i)

    def on_decode(z: Tensor) -> Tensor:
        x = decode(z)
        # A warm edit decodes once; a cold one that decoded sparsely would do the unedited first.
        seen.z, seen.decoded = z * SCALE_FACTOR, ((x[0] + 1) / 2).clamp(0, 1)
        return x

    with (
        patch.object(FiniteWatch, "__call__", on_step),
        patch.object(first_stage, "decode", on_decode),
    ):
        seen.result = run()
    return seen


# --- the naive side ------------------------------------------------------------------------------


class Dense:
    """The dense engine of the same weights, its networks ready to be held."""

    def __init__(self) -> None:
        self.networks = networks_of("original")
        self.first_stage = self.networks.engine.first_stage_model
        self.unet, self.encoder = Oracle(self.networks.unet), Oracle(self.networks.encoder)
        self.decoder = Oracle(self.networks.decoder)

    def guided(self, prompt: str) -> Guided:
        c, uc = self.networks.condition(prompt, "", SIZE)
        return Guided(*(torch.cat([uc[key], c[key]]) for key in ("crossattn", "vector")))

    def latents(self, encoded: Tensor, name: str) -> Tensor:
        """Scaled, of what the encoder returned; `name` of the one draw."""
        mean, logvar = self.first_stage.quant_conv(encoded).chunk(2, dim=1)
        draw = NamedNoise(SEED)(f"posterior/{name}", mean.shape)
        return SCALE_FACTOR * (mean + (logvar.clamp(-30, 20) / 2).exp() * draw)

    def decoder_input(self, z: Tensor) -> Tensor:
        return self.first_stage.post_quant_conv(z / SCALE_FACTOR)

    def recordings(
        self, guided: Guided, z: Tensor, sigmas: Sequence[float], made: Sequence[int]
    ) -> dict[int, Kept]:
        """Of the unedited latents under the fixed noise, at the steps `made`."""
        found = {}
        for i in made:

            def record(*inputs: Tensor, step: int = i) -> Tensor:
                out, found[step] = self.unet.record(*inputs)
                return out

            guided(record, z + start_noise(z) * sigmas[i], sigmas[i])
        return found

    def step(
        self,
        run: Trajectory,
        guided: Guided,
        kept: Kept,
        masks: MaskPyramid,
        levels: Sequence[float],
    ) -> None:
        """Move latents from the first of two levels to the second by a held pass."""
        estimate = guided(lambda *inputs: self.unet.held(kept, masks, *inputs), run.x, levels[0])
        run.step(estimate, *levels)


def start_noise(z: Tensor) -> Tensor:
    return NamedNoise(SEED)("start", z.shape)


def kept_at(recordings: dict[int, Kept], step: int) -> Kept:
    """Of any step: linear between the two recordings around it."""
    before = max(i for i in recordings if i <= step)
    after = min(i for i in recordings if i >= step)
    if before == after:
        return recordings[step]
    return between(recordings[before], recordings[after], (step - before) / (after - before))


def held_loop(
    dense: Dense,
    guided: Guided,
    z: Tensor,
    first: Tensor,
    recordings: dict[int, Kept],
    sigmas: Sequence[float],
    masks_of: Callable[[int], MaskPyramid],
    sampled_of: Callable[[int], Tensor],
) -> Iterator[Tensor]:
    """Latents after every step, where before each one the surroundings are put back, noised.

    Args:
        first: latents at the first level.
        recordings: by the number of the step, which starts at 0.
        masks_of: of the UNet, by step.
        sampled_of: bool [h, w], by step; False where the surroundings are put back.
    """
    run = Trajectory(first)
    for i in range(len(sigmas) - 1):
        known = z + start_noise(z) * sigmas[i]
        run.x = torch.where(sampled_of(i), run.x, known)
        dense.step(run, guided, kept_at(recordings, i), masks_of(i), sigmas[i : i + 2])
        yield run.x


def naive_opacity(mask: Tensor) -> Tensor:
    """Of the edit at each pixel of mask [H, W]: a fifth at the border, 1 from the fifth pixel in;
    the deepest pixels within reach of a pixel count as 1 where they are less deep."""
    height, width = mask.shape
    depth = torch.zeros(height, width)
    for d in range(FEATHER + 1):  # a pixel is deeper than d if all around it are in the mask
        for r, c in mask.nonzero().tolist():
            around = mask[max(r - d, 0) : r + d + 1, max(c - d, 0) : c + d + 1]
            depth[r, c] += around.all()
    weight = torch.zeros(height, width)
    for r, c in mask.nonzero().tolist():
        rows, columns = (slice(max(n - FEATHER, 0), n + FEATHER + 1) for n in (r, c))
        weight[r, c] = depth[r, c] / depth[rows, columns].max()
    return weight.clamp(max=1)


# --- tests ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense() -> Iterator[Dense]:
    with torch.inference_mode():
        yield Dense()


@pytest.fixture(scope="module")
def fast() -> Pipeline:
    return Pipeline(networks_of("fast"), Precision.FP32, sparse=True, preset=Preset.FAST)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return picture(SIZE)


@pytest.fixture(scope="module")
def mask() -> Tensor:
    """bool [H, W]: a rectangle, off the middle and off the grid of the latents."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[36:61, 67:118] = True
    return mask


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Latents by latents, relative to the largest value."""
    assert len(found) == len(expected)
    errors = [max_error(a, b) / b.abs().max().item() for a, b in zip(found, expected, strict=True)]
    assert max(errors) < TOLERANCE, errors


@torch.inference_mode()
def test_cold_inpainting_is_the_naive_loop(
    fast: Pipeline, dense: Dense, image: Tensor, mask: Tensor
) -> None:
    seen = watched(
        fast, lambda: fast.inpaint(image, mask, PROMPT, steps=12, noise=NamedNoise(SEED))
    )
    guided, sigmas = dense.guided(PROMPT), levels(12)
    z = dense.latents(dense.networks.encoder(image[None]), "init")
    recordings = dense.recordings(guided, z, sigmas, [0, 4, 7, 11])
    first = start_noise(z) * (1 + sigmas[0] ** 2) ** 0.5
    masks = downsample_mask(mask, UNET_DILATION)
    sampled = downsample_mask(mask, KNOWN_DILATION)[LATENTS]
    loop = held_loop(
        dense, guided, z, first, recordings, sigmas, lambda i: masks, lambda i: sampled
    )
    expected = list(loop)
    assert_close([*seen.steps, seen.z], [*expected, expected[-1]])
    decoded = dense.networks.decode(expected[-1])
    assert max_error(seen.decoded, decoded) < IMAGE_TOLERANCE
