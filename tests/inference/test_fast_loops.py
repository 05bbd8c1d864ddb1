"""Whole edits with preset `fast` against naive loops over a dense network that is held, latents by
latents, before anything is put into the input picture; and what is put into it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from unittest.mock import patch

import pytest
import torch
from sgm.inference.finite import FiniteWatch
from torch import Tensor

from sgm.inference.noise import NamedNoise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.session import EditSession
from sgm.inference.stores import DeviceStore
from sgm.sparse.masks import MaskPyramid, downsample_mask
from sgm.sparse.recording import Recording
from sgm.specs import Precision, Preset, SamplingParams
from tests.conftest import max_error
from tests.inference.naive_edits import (
    BASE_PROMPT,
    DECODER_DILATION,
    EARLY,
    LATENTS,
    RECORDED,
    SCALE_FACTOR,
    SEED,
    SIZE,
    UNET_DILATION,
    Base,
    Dense,
    drawn,
    drawn_masks,
    drawn_region,
    held_loop,
    inpainted,
    kept_at,
    naive_opacity,
    start_noise,
)
from tests.inference.test_edits import PROMPT, drawn_on, networks_of, picture
from tests.oracle import levels

TOLERANCE = 1e-4  # golden README: pipeline latents, of the largest value
IMAGE_TOLERANCE = 5e-4  # golden README: pipeline images

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


class Asked(DeviceStore):
    """A store that knows what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names_asked: list[str] = []

    def get(self, name: str) -> Recording:
        self.names_asked.append(name)
        return super().get(name)

    def steps_asked(self) -> int:
        """How many different recordings of the UNet."""
        return len({name for name in list(self.names_asked) if name.startswith("unet")})


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
def session(fast: Pipeline, image: Tensor) -> EditSession:
    return EditSession(fast, image, SamplingParams(BASE_PROMPT, seed=SEED, steps=12))


@pytest.fixture(scope="module")
def base(dense: Dense, image: Tensor) -> Base:
    with torch.inference_mode():
        return Base(dense, image, levels(12), RECORDED)


@pytest.fixture(scope="module")
def drawing(image: Tensor) -> Tensor:
    """The picture with something drawn on it."""
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[61:70, 93:104] = True
    return drawn_on(image, mask)


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


def assert_put_in(seen: Watched, source: Tensor, region: Tensor) -> None:
    """The picture that was decoded is in the source [3, H, W] in [-1, 1] by its opacity."""
    source, weight = (source + 1) / 2, naive_opacity(region)
    found = seen.result.image
    assert torch.equal(found[:, ~region], source[:, ~region])
    assert max_error(found, source + weight * (seen.decoded - source)) < 1e-6


@torch.inference_mode()
def test_cold_inpainting_is_the_naive_loop(
    fast: Pipeline, dense: Dense, image: Tensor, mask: Tensor
) -> None:
    seen = watched(
        fast, lambda: fast.inpaint(image, mask, PROMPT, steps=12, noise=NamedNoise(SEED))
    )
    guided = dense.guided(PROMPT)
    z = dense.latents(dense.networks.encoder(image[None]), "init")
    recordings = dense.recordings(guided, z, levels(12), RECORDED)
    expected = inpainted(dense, guided, z, mask, recordings, 12)
    assert_close([*seen.steps, seen.z], [*expected, expected[-1]])
    assert max_error(seen.decoded, dense.networks.decode(expected[-1])) < IMAGE_TOLERANCE
    assert_put_in(seen, image, mask)


@torch.inference_mode()
def test_cold_sdedit_is_the_naive_loop(
    fast: Pipeline, dense: Dense, image: Tensor, drawing: Tensor
) -> None:
    noise, sigmas = NamedNoise(SEED), levels(20)[-16:]  # int(0.8 * 21) levels
    seen = watched(fast, lambda: fast.sdedit(image, drawing, PROMPT, steps=20, noise=noise))
    expected = drawn(dense, dense.guided(PROMPT), image, drawing, sigmas)
    assert_close([*seen.steps, seen.z], expected)
    assert max_error(seen.decoded, dense.networks.decode(expected[-1])) < IMAGE_TOLERANCE
    assert_put_in(seen, drawing, drawn_region(image, drawing))


@torch.inference_mode()
def test_a_sessions_inpainting_is_the_naive_loop(
    session: EditSession, dense: Dense, base: Base, image: Tensor, mask: Tensor
) -> None:
    seen = watched(session.pipeline, lambda: session.inpaint(PROMPT, mask))
    expected = inpainted(dense, dense.guided(PROMPT), base.z, mask, base.recordings, 12)
    assert_close([*seen.steps, seen.z], [*expected, expected[-1]])
    masks = downsample_mask(mask, DECODER_DILATION)
    assert max_error(seen.decoded, base.decoded(dense, masks, expected[-1])) < IMAGE_TOLERANCE
    assert_put_in(seen, image, mask)


@torch.inference_mode()
def test_a_sessions_sdedit_is_the_naive_loop(
    session: EditSession, dense: Dense, base: Base, image: Tensor, drawing: Tensor
) -> None:
    """Held to the picture as inpainting is, but from the drawing, and in all that is computed."""
    seen = watched(session.pipeline, lambda: session.sdedit(PROMPT, drawing, strength=0.6))
    guided, z, (late, early) = dense.guided(PROMPT), base.z, drawn_masks(image, drawing)
    z_drawn = dense.latents(dense.encoder.held(base.encoder, late, drawing[None]), "edited")
    sigmas = levels(12)[-7:]  # int(0.6 * 13) levels: the last six steps

    def masks_of(i: int) -> MaskPyramid:
        return early if i < int(EARLY * 6) else late

    expected = held_loop(
        dense,
        guided,
        z,
        z_drawn + start_noise(z) * sigmas[0],
        sigmas,
        lambda i: kept_at(base.recordings, i + 6),
        masks_of,
        lambda i: masks_of(i)[LATENTS],
    )
    assert_close([*seen.steps, seen.z], [*expected, expected[-1]])
    region = drawn_region(image, drawing)
    decoded = base.decoded(dense, downsample_mask(region, 0), expected[-1])
    assert max_error(seen.decoded, decoded) < IMAGE_TOLERANCE
    assert_put_in(seen, drawing, region)


@torch.inference_mode()
def test_an_accepted_edit_updates_the_recordings_by_held_passes(
    fast: Pipeline, dense: Dense, image: Tensor, mask: Tensor
) -> None:
    session = EditSession(fast, image, SamplingParams(BASE_PROMPT, seed=SEED, steps=5))
    changed = session.inpaint(PROMPT, mask)
    session.accept(changed)
    other = mask.roll((20, 10), (0, 1))
    seen = watched(fast, lambda: session.inpaint(PROMPT, other))

    base, sigmas = Base(dense, image, levels(5), [0, 4]), levels(5)
    now = torch.where(mask, changed.image * 2 - 1, image)
    masks = downsample_mask(mask & (now != image).any(0), UNET_DILATION)
    z = dense.latents(dense.encoder.held(base.encoder, masks, now[None]), "init")
    base.z = z = torch.where(masks[LATENTS], z, base.z)
    base.decoder = dense.decoder.updated(base.decoder, masks, dense.decoder_input(z))
    for i, kept in base.recordings.items():
        known = z + start_noise(z) * sigmas[i]
        base.recordings[i] = dense.updated(dense.guided(BASE_PROMPT), known, sigmas[i], kept, masks)
    expected = inpainted(dense, dense.guided(PROMPT), z, other, base.recordings, 5)
    assert_close([*seen.steps, seen.z], [*expected, expected[-1]])
    decoder_masks = downsample_mask(other, DECODER_DILATION)
    decoded = base.decoded(dense, decoder_masks, expected[-1])
    assert max_error(seen.decoded, decoded) < IMAGE_TOLERANCE


def test_the_transition_is_soft_where_there_is_room_and_thin_parts_keep_their_edit(
    fast: Pipeline, image: Tensor
) -> None:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[10:40, 20:60] = True
    mask[80:83, 100:150] = True  # three pixels wide
    mask[120, 10] = True
    seen = watched(fast, lambda: fast.inpaint(image, mask, PROMPT, steps=1))
    assert_put_in(seen, image, mask)
    source = (image + 1) / 2
    share = (seen.result.image - source) / (seen.decoded - source)  # of the edit
    share = share.where((seen.decoded - source).abs() > 0.01, float("nan")).nanmedian(dim=0).values
    rising = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    for line in (share[9:16, 40], share[25, 19:26], share[25, 54:61].flip(0)):
        assert line.tolist() == pytest.approx(rising, abs=1e-3)
    assert share[79:84, 125].tolist() == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-3)
    assert share[120, 10].item() == pytest.approx(1, abs=1e-3)


def test_the_next_recording_is_asked_for_while_the_present_ones_are_in_use(
    fast: Pipeline, image: Tensor, mask: Tensor
) -> None:
    store = Asked()
    params = SamplingParams(BASE_PROMPT, seed=SEED, steps=12)
    session = EditSession(fast, image, params, make_store=lambda size: store)
    store.names_asked.clear()
    counts = []

    def after_step(i: int) -> None:
        in_use = sum(made < i for made in RECORDED) + 1
        expected, end = min(in_use + 1, len(RECORDED)), time.monotonic() + 5
        while store.steps_asked() < expected and time.monotonic() < end:
            time.sleep(0.001)  # another thread asks
        counts.append((store.steps_asked(), expected))

    watched(fast, lambda: session.inpaint(PROMPT, mask), after_step)
    assert len(counts) == 12 and all(asked == expected for asked, expected in counts), counts
