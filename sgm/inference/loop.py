"""The sampling loop: the only one, for every task and preset, dense and sparse.

Two things differ between the ways of editing, and each is data of a `Plan`: where the latents of
the unedited picture come from (`sgm.inference.unedited`), and which steps are recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import torch
from torch import Tensor

from sgm.inference.interpolate import Curve, Interpolated
from sgm.inference.networks import Networks, recording, sparse, use_kept
from sgm.inference.noise import Noise
from sgm.inference.presets import EVERY_STEP, Recorded, StepMasks
from sgm.inference.unedited import (
    KeptLatents,
    KnownNoise,
    SteppedAlong,
    Unedited,
    fresh_noise,
    noised,
)
from sgm.modules.diffusionmodules.sampling import Denoise, Solver
from sgm.sparse.masks import MaskPyramid
from sgm.sparse.recording import Recording
from sgm.sparse.sparsify import handle_of

# Called as (step number, latents, estimate of those at the end) after every sampler step.
OnStep = Callable[[int, Tensor, Tensor], None]


class Source(Enum):
    """Where the latents of the unedited picture come from."""

    NONE = "none"  # they are not needed: a dense SDEdit run
    FRESH = "fresh noise"  # the picture noised anew for every step
    FIXED = "fixed noise"  # the picture with one noise at every level
    STEPPED = "stepped"  # the picture noised once and denoised for itself


@dataclass(frozen=True, eq=False)
class KeptSteps:
    """Recordings of some steps.

    Attributes:
        get: the recording of a step, for any masks or for those of all passes.
        made: the steps that have one, rising.
    """

    get: Callable[[int], Recording]
    made: list[int]


@dataclass(frozen=True, eq=False)
class Kept:
    """What was recorded of an unedited picture, for an edit that makes no recordings itself.

    Attributes:
        z: scaled latents of the picture [1, C, h, w].
        unet: the recordings of the picture, and what another prompt changes in them; each is
            interpolated, and they are summed.
        unedited: latents of the picture at the recorded steps; None where they follow from z and
            the noise.
        encoder: recording of the encoder on the picture; None for inpainting, which reads none.
        decoder: recording of the decoder on the picture's latents.
    """

    z: Tensor
    unet: tuple[KeptSteps, ...]
    unedited: KeptLatents | None
    encoder: Recording | None
    decoder: Recording


@dataclass(frozen=True, eq=False)
class Plan:
    """What is prepared of an edit before the loop, and what it ends in. A plan holds no network, so
    one that a base model has worked on can be given to a refiner after the base is freed.

    Attributes:
        source: where the latents of the unedited picture come from.
        unedited: scaled latents of the unedited picture [1, C, h, w]; None in a dense SDEdit run.
        start: latents that the edit starts from (SDEdit); None for noise alone (inpainting).
        inside: bool [h, w], what is sampled; around it the unedited latents are put back before
            every step at which they are known. None to put nothing back.
        masks: of the UNet; None in a dense run.
        recorded: which steps are recorded.
        strength: share of the schedule that is run.
        kept: recordings to use instead of making any.
        decoder_masks: to decode sparsely, from `kept` or a recording made for it; None to decode
            the result alone, in full.
        x: latents of the result; None before the loop.
        concat: what an inpainting network reads beside its latents: mask and latents of the masked
            picture, [1, 1 + C, h, w]; None for other networks.
    """

    source: Source
    unedited: Tensor | None
    start: Tensor | None = None
    inside: Tensor | None = None
    masks: StepMasks | None = None
    recorded: Recorded = EVERY_STEP
    strength: float = 1.0
    kept: Kept | None = None
    decoder_masks: MaskPyramid | None = None
    x: Tensor | None = None
    concat: Tensor | None = None

    @property
    def result(self) -> Tensor:
        """Latents of the result [1, C, h, w]; ValueError before the loop."""
        if self.x is None:
            raise ValueError("This plan has no result yet; call run first.")
        return self.x

    def for_refiner(self) -> "Plan":
        """The plan that a refiner begins with: the result of the base, as latents, takes the place
        of both the unedited and the edited ones (published). The masks are the same."""
        start = None if self.start is None else self.result
        unedited = None if self.unedited is None else self.result
        return replace(self, unedited=unedited, start=start, x=None)


def run(
    plan: Plan, networks: Networks, denoise: Denoise, solver: Solver, noise: Noise, on_step: OnStep
) -> Plan:
    """Sample the edit of a plan.

    Before every step the surroundings are put back, and what the sparse step reads of them is
    recorded, or interpolated between recordings.

    Args:
        denoise: the guided estimate.
        noise: of the run; `start` is drawn, and with fresh noise `step/<number>`.
        on_step: called after every step.

    Returns:
        The plan with its result.
    """
    sigmas = solver.sigmas(networks.engine.denoiser.discretization, plan.strength)
    shape_of = plan.unedited if plan.start is None else plan.start
    assert shape_of is not None
    draw = noise("start", shape_of.shape).to(shape_of)
    count, state = len(sigmas) - 1, None
    if plan.start is None:
        x = solver.start(draw, sigmas)
    else:
        x = noised(plan.start, draw, sigmas, solver)
    made = plan.recorded.steps(count)
    unedited = _unedited(plan, draw, sigmas, made, denoise, solver, noise)
    recordings = _recordings(plan, networks, unedited, made, count)
    for i in range(count):
        x = _put_back(plan, x, None if unedited is None else unedited.latents(i))
        masks = None
        if plan.masks is not None and recordings is not None:
            masks = plan.masks.at(i, count)
            handle_of(networks.unet).use(recordings(i, masks))
        with sparse(networks.unet, masks):
            x, state = solver.step(denoise, x, i, sigmas, state)
        on_step(i, x, state.denoised)
    end = None if unedited is None else unedited.result()
    # The decoder records the unedited picture as it has become (published).
    return replace(plan, x=_put_back(plan, x, end), unedited=plan.unedited if end is None else end)


def steps_of(plan: Plan, networks: Networks, solver: Solver) -> int:
    """How many sampler steps `run` will make."""
    return len(solver.sigmas(networks.engine.denoiser.discretization, plan.strength)) - 1


def decode(plan: Plan, networks: Networks) -> Tensor:
    """Picture [3, H, W] in [0, 1], float32, of a plan with its result. A sparse run decodes
    sparsely from the recording of the unedited latents."""
    kept = plan.kept
    if kept is not None:
        assert plan.decoder_masks is not None  # of every edit from kept recordings
        unedited = partial(networks.decode, kept.z)
        use_kept(networks.decoder, kept.decoder, plan.decoder_masks, unedited)
    elif plan.decoder_masks is not None:
        with recording(networks.decoder, plan.decoder_masks):
            networks.decode(plan.unedited)
    with sparse(networks.decoder, plan.decoder_masks):
        return networks.decode(plan.result)


def _put_back(plan: Plan, x: Tensor, known: Tensor | None) -> Tensor:
    """The latents with the known ones around what is sampled."""
    if known is None or plan.inside is None:
        return x
    return torch.where(plan.inside, x, known)


def _unedited(
    plan: Plan,
    draw: Tensor,
    sigmas: Tensor,
    made: list[int],
    denoise: Denoise,
    solver: Solver,
    noise: Noise,
) -> Unedited | None:
    """The source of the unedited latents that the plan names."""
    if plan.kept is not None and plan.kept.unedited is not None:
        return plan.kept.unedited
    z = plan.unedited
    if plan.source is Source.NONE or z is None:
        return None
    if plan.source is Source.FRESH:
        return KnownNoise(z, fresh_noise(noise, z), sigmas, denoise)
    if plan.source is Source.FIXED:
        return KnownNoise(z, lambda step: draw, sigmas, denoise)
    return SteppedAlong(noised(z, draw, sigmas, solver), made, sigmas, denoise, solver)


def _recordings(
    plan: Plan, networks: Networks, unedited: Unedited | None, made: list[int], count: int
) -> Callable[[int, MaskPyramid], Recording] | None:
    """The recording of a step for some masks; None in a dense run, and where there are no steps."""
    if plan.masks is None or not count:
        return None
    handle, change = handle_of(networks.unet), plan.masks.change(count)

    def make(step: int, masks: MaskPyramid | None) -> Recording:
        assert unedited is not None
        with recording(networks.unet, masks, plan.recorded.dtype):
            unedited.full_pass(step)
        return handle.kept()

    if plan.kept is not None:
        sources = plan.kept.unet
    elif len(made) == count:
        return make
    else:
        one = None if change else plan.masks.late
        sources = (KeptSteps(lambda step: make(step, one), made),)
    curves = [Curve(s.get, s.made, plan.recorded.order, handle.cut, change) for s in sources]
    # The active sets of all masks are made here, so that no step has to wait for the device to make
    # them.
    handle.prepare(curves[0].begin(0), plan.masks.all)
    return Interpolated(*curves, room=handle.room).at
