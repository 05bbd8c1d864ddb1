"""Whole edits with preset `fast` against naive loops over a dense network that is held, latents by
latents, before anything is put into the input picture; and what is put into it."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from sgm.inference import pipeline
from sgm.inference.noise import NamedNoise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.presets import FAST
from sgm.inference.progress import NanCheck
from sgm.inference.session import EditSession
from sgm.inference.stores import DeviceStore
from sgm.sparse.masks import downsample_mask
from sgm.sparse.recording import Recording
from sgm.specs import Blend, SamplingParams
from sgm.words import Precision
from tests.conftest import max_error
from tests.edits_here import inpaint_with, sdedit_with
from tests.inference.naive_edits import (
    BASE_PROMPT,
    DECODER_DILATION,
    LATENTS,
    RECORDED,
    SCALE_FACTOR,
    SEED,
    SIZE,
    STEPS,
    UNET_DILATION,
    Base,
    Dense,
    drawn,
    drawn_decoder_masks,
    drawn_opacity,
    drawn_region,
    followed,
    inpainted,
    kept_at,
    naive_opacity,
    points_of,
    start_noise,
    with_ring,
)
from tests.inference.test_edits import PROMPT, drawn_on, networks_of, picture
from tests.oracle import levels

# How an edit takes on the colours around it has tests of its own.
UNMATCHED = replace(FAST, blend=Blend(match_border=False))
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

    class Watch(NanCheck):
        def __call__(self, step: int, x: Tensor) -> None:
            seen.steps.append(x.clone())
            after_step(step)

    def on_decode(z: Tensor) -> Tensor:
        x = decode(z)
        # A warm edit decodes once; a cold one that decoded sparsely would do the unedited first.
        seen.z, seen.decoded = z * SCALE_FACTOR, ((x[0] + 1) / 2).clamp(0, 1)
        return x

    with (
        patch.object(pipeline, "NanCheck", Watch),
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
        return len({n for n in list(self.names_asked) if re.fullmatch(r"inpainting-\d{4}", n)})


# --- tests ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense() -> Iterator[Dense]:
    with torch.inference_mode():
        yield Dense()


@pytest.fixture(scope="module")
def fast() -> Pipeline:
    return Pipeline(networks_of("fast"), Precision.FP32, sparse=True, recipe=UNMATCHED)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return picture(SIZE)


@pytest.fixture(scope="module")
def session(fast: Pipeline, image: Tensor) -> EditSession:
    return EditSession(fast, image, SamplingParams(BASE_PROMPT, seed=SEED, steps=STEPS))


@pytest.fixture(scope="module")
def base(dense: Dense, image: Tensor) -> Base:
    with torch.inference_mode():
        return Base(dense, image, levels(STEPS), RECORDED)


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


def assert_put_in(seen: Watched, source: Tensor, weight: Tensor) -> None:
    """The picture that was decoded is in the source [3, H, W] in [-1, 1] by its opacity [H, W]."""
    source = (source + 1) / 2
    found, beyond = seen.result.image, weight == 0
    assert torch.equal(found[:, beyond], source[:, beyond])
    assert max_error(found, source + weight * (seen.decoded - source)) < 1e-6


@torch.inference_mode()
def test_cold_inpainting_is_the_naive_loop(
    fast: Pipeline, dense: Dense, image: Tensor, mask: Tensor
) -> None:
    seen = watched(
        fast, lambda: inpaint_with(fast, image, mask, PROMPT, steps=STEPS, noise=NamedNoise(SEED))
    )
    guided = dense.guided(PROMPT)
    z = dense.latents(dense.networks.encoder(image[None]), "init")
    recordings = dense.recordings(guided, z, levels(STEPS), RECORDED)
    expected = inpainted(dense, guided, z, mask, lambda i: kept_at(recordings, i), STEPS)
    assert_close([*seen.steps, seen.z], [*expected, expected[-1]])
    assert max_error(seen.decoded, dense.networks.decode(expected[-1])) < IMAGE_TOLERANCE
    assert_put_in(seen, image, naive_opacity(mask))


@torch.inference_mode()
def test_cold_sdedit_is_the_naive_loop(
    fast: Pipeline, dense: Dense, image: Tensor, drawing: Tensor
) -> None:
    noise, sigmas = NamedNoise(SEED), levels(20)[-16:]  # int(0.8 * 21) levels
    seen = watched(fast, lambda: sdedit_with(fast, image, drawing, PROMPT, steps=20, noise=noise))
    guided = dense.guided(PROMPT)
    encoded, encoder = dense.encoder.record(image[None])
    unedited = dense.stepped(
        dense.latents(encoded, "init"), sigmas, lambda i, *at: dense.recorded(guided, *at)
    )
    expected = drawn(dense, guided, image, drawing, sigmas, unedited, encoder)
    assert_close([*seen.steps, seen.z], expected)
    assert max_error(seen.decoded, dense.networks.decode(expected[-1])) < IMAGE_TOLERANCE
    assert_put_in(seen, image, drawn_opacity(image, drawing))


@torch.inference_mode()
def test_a_sessions_inpainting_is_the_naive_loop(
    session: EditSession, dense: Dense, base: Base, image: Tensor, mask: Tensor
) -> None:
    seen = watched(session.recordings.pipeline, lambda: session.inpaint(PROMPT, mask))
    guided, sigmas = dense.guided(PROMPT), levels(STEPS)
    kept_of = followed(
        dense, guided, base.recordings, sigmas, lambda i: base.z + start_noise(base.z) * sigmas[i]
    )
    expected = inpainted(dense, guided, base.z, mask, kept_of, STEPS)
    assert_close([*seen.steps, seen.z], [*expected, expected[-1]])
    masks = with_ring(downsample_mask(mask, DECODER_DILATION), mask)
    assert max_error(seen.decoded, base.decoded(dense, masks, expected[-1])) < IMAGE_TOLERANCE
    assert_put_in(seen, image, naive_opacity(mask))


@torch.inference_mode()
def test_a_sessions_sdedit_is_the_naive_loop(
    session: EditSession, dense: Dense, base: Base, image: Tensor, drawing: Tensor
) -> None:
    """The first edit of a strength, which records, and the second, which finds the recordings."""
    runs = [
        watched(session.recordings.pipeline, lambda: session.sdedit(PROMPT, drawing, strength=0.6))
        for _ in range(2)
    ]
    sigmas = levels(STEPS)[-10:]  # int(0.6 * 17) levels
    under_base = dense.guided(BASE_PROMPT)
    unedited = dense.stepped(base.z, sigmas, lambda i, *at: dense.recorded(under_base, *at))
    guided = dense.guided(PROMPT)
    kept_of = followed(dense, guided, unedited.recordings, sigmas, unedited.latents.__getitem__)
    expected = drawn(dense, guided, image, drawing, sigmas, unedited, base.encoder, kept_of)
    for seen in runs:
        assert_close([*seen.steps, seen.z], expected)
    region = drawn_region(image, drawing)
    decoded = base.decoded(dense, drawn_decoder_masks(region), expected[-1])
    assert torch.equal(runs[0].result.image, runs[1].result.image)
    assert max_error(seen.decoded, decoded) < IMAGE_TOLERANCE
    assert_put_in(seen, image, drawn_opacity(image, drawing))


@torch.inference_mode()
def test_an_accepted_edit_updates_the_recordings_by_held_passes(
    fast: Pipeline, dense: Dense, image: Tensor, mask: Tensor
) -> None:
    session = EditSession(fast, image, SamplingParams(BASE_PROMPT, seed=SEED, steps=5))
    session.sdedit(PROMPT, drawn_on(image, mask))  # so that there are recordings for it
    changed = session.inpaint(PROMPT, mask)
    session.accept(changed)
    other = mask.roll((20, 10), (0, 1))
    seen = watched(fast, lambda: session.inpaint(PROMPT, other))

    sigmas, made = levels(5), range(5)
    base, guided, under_base = (
        Base(dense, image, sigmas, made),
        dense.guided(PROMPT),
        dense.guided(BASE_PROMPT),
    )
    of_drawing = sigmas[-4:]  # int(0.8 * 6) levels
    old = dense.stepped(base.z, of_drawing, lambda i, *at: dense.recorded(under_base, *at))
    now = torch.where(naive_opacity(mask) > 0, changed.image * 2 - 1, image)
    masks = downsample_mask((changed.image != (image + 1) / 2).any(0), UNET_DILATION)
    encoded, encoder = dense.encoder.run(base.encoder, masks, now[None])
    z = torch.where(masks[LATENTS], dense.latents(encoded, "init"), base.z)
    base.decoder = dense.decoder.updated(base.decoder, masks, dense.decoder_input(z))
    for i, kept in base.recordings.items():
        known = z + start_noise(z) * sigmas[i]
        base.recordings[i] = dense.updated(under_base, known, sigmas[i], kept, masks)[1]
    kept_of = followed(
        dense, guided, base.recordings, sigmas, lambda i: z + start_noise(z) * sigmas[i]
    )
    expected = inpainted(dense, guided, z, other, kept_of, 5)
    assert_close([*seen.steps, seen.z], [*expected, expected[-1]])
    decoder_masks = with_ring(downsample_mask(other, DECODER_DILATION), other)
    decoded = base.decoded(dense, decoder_masks, expected[-1])
    assert max_error(seen.decoded, decoded) < IMAGE_TOLERANCE

    drawing = drawn_on(now, other)
    seen = watched(fast, lambda: session.sdedit(PROMPT, drawing))
    unedited = dense.stepped(
        z,
        of_drawing,
        lambda i, *at: dense.updated(under_base, *at, old.recordings[i], masks),
    )
    kept_of = followed(dense, guided, unedited.recordings, of_drawing, unedited.latents.__getitem__)
    expected = drawn(dense, guided, now, drawing, of_drawing, unedited, encoder, kept_of)
    assert_close([*seen.steps, seen.z], expected)


def test_the_whole_selection_changes_and_fades_out_around_it(fast: Pipeline, image: Tensor) -> None:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[10:40, 20:60] = True
    mask[80:83, 100:150] = True  # three pixels wide
    mask[120, 10] = True
    seen = watched(fast, lambda: inpaint_with(fast, image, mask, PROMPT, steps=1))
    assert_put_in(seen, image, naive_opacity(mask))
    source = (image + 1) / 2
    share = (seen.result.image - source) / (seen.decoded - source)  # of the edit
    share = share.where((seen.decoded - source).abs() > 0.01, float("nan")).nanmedian(dim=0).values
    rising = [0.0, 7 / 27, 20 / 27, 1.0, 1.0]  # 3 s^2 - 2 s^3 at thirds
    for line in (share[7:12, 40], share[25, 17:22], share[25, 58:63].flip(0), share[77:82, 125]):
        assert line.tolist() == pytest.approx(rising, abs=1e-3)
    assert share[120, 8:13].tolist() == pytest.approx(
        [7 / 27, 20 / 27, 1, 20 / 27, 7 / 27], abs=1e-3
    )


def test_the_next_recording_is_asked_for_while_the_present_ones_are_in_use(
    fast: Pipeline, image: Tensor, mask: Tensor
) -> None:
    store = Asked()
    params = SamplingParams(BASE_PROMPT, seed=SEED, steps=STEPS)
    session = EditSession(fast, image, params, make_store=lambda size: store)
    store.names_asked.clear()
    counts = []

    def after_step(i: int) -> None:
        in_use = max(RECORDED.index(points_of(RECORDED, step)[-1]) for step in range(i + 1)) + 1
        expected, end = min(in_use + 1, len(RECORDED)), time.monotonic() + 5
        while store.steps_asked() < expected and time.monotonic() < end:
            time.sleep(0.001)  # another thread asks
        counts.append((store.steps_asked(), expected))

    watched(fast, lambda: session.inpaint(BASE_PROMPT, mask), after_step)
    assert len(counts) == STEPS and all(asked == expected for asked, expected in counts), counts
