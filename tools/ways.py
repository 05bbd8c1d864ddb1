"""The four ways to make one edit that the demonstration and the figures show side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import torch
from torch import Tensor

from sgm.inference.edit import Edit as Request
from sgm.inference.loop import steps_of
from sgm.inference.noise import NamedNoise, fixed_noise
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.session import EditSession
from sgm.io.files import check_input_file
from sgm.profiling.macs import count_macs
from sgm.profiling.passes import Pass, catch
from sgm.sparse.masks import MaskPyramid
from sgm.specs import ModelSpec, SamplingParams
from sgm.words import Backend, Precision, Preset, RunType
from tools.compare import ROOT, Edit, run_edit


class Way(StrEnum):
    """How an edit is made. The values are their names in tables and figures."""

    DENSE = "dense"
    PUBLISHED = "sparse, as published"
    FAST = "sparse, preset fast"
    WARM = "from a recording"


@dataclass(frozen=True, eq=False)
class Made:
    """An edit that was made.

    Attributes:
        image: [3, H, W] in [0, 1].
        seconds: of the whole edit, loading excluded.
        record_seconds: of recording the picture before, where the way needs that.
    """

    image: Tensor
    seconds: float
    record_seconds: float | None = None


def load_ways(
    spec: ModelSpec,
    weight_path: Path,
    device: torch.device,
    precision: Precision,
    turbo: bool = False,
) -> dict[Way, Pipeline]:
    """The networks of every way but `WARM`, which has those of `FAST`; all with the same weights.

    Args:
        turbo: those of the few-step model.

    Raises:
        UserError: a file is missing or does not fit.
    """
    sparse_type = RunType.SIGE_TURBO if turbo else RunType.SIGE
    check_input_file(weight_path / spec.weights[spec.weight_role(sparse_type)])

    def load(run_type: RunType, preset: Preset) -> Pipeline:
        files = (ROOT / "configs", weight_path, device, precision, Backend.AUTO)
        return Pipeline.load(spec, run_type, *files, preset, progress=False)

    return {
        Way.DENSE: load(sparse_type.dense, Preset.PUBLISHED),
        Way.PUBLISHED: load(sparse_type, Preset.PUBLISHED),
        Way.FAST: load(sparse_type, Preset.FAST),
    }


def record(
    fast: Pipeline, edit: Edit, base_prompt: str, steps: int | None
) -> tuple[EditSession, float]:
    """Record the picture of an edit; the session and the seconds that it took.

    Args:
        base_prompt: what the unedited picture shows.
    """
    params = SamplingParams(
        base_prompt, seed=edit.seed, steps=steps, scale=edit.scale, strength=edit.strength
    )
    noise = fixed_noise(NamedNoise(edit.seed))
    session = EditSession(fast, edit.image, params, edit.task, noise=noise)
    return session, sum(session.report.seconds.values())


def edit_in(session: EditSession, edit: Edit) -> EditResult:
    """Make an edit of a recorded picture."""
    if edit.edited is None:
        return session.inpaint(edit.prompt, edit.mask)
    return session.sdedit(edit.prompt, edit.edited, edit.strength)


def make(
    way: Way, pipelines: Mapping[Way, Pipeline], edit: Edit, base_prompt: str, steps: int | None
) -> Made:
    """Make an edit in one way. All ways have the same noise, one for all steps as preset `fast`
    has it, so that their pictures compare. `WARM` is the second edit of a recording."""
    if way is not Way.WARM:
        noise = fixed_noise(NamedNoise(edit.seed))
        result = run_edit(pipelines[way], edit, steps, noise=noise)
        return Made(result.image, sum(result.seconds.values()))
    session, seconds = record(pipelines[Way.FAST], edit, base_prompt, steps)
    edit_in(session, edit)
    result = edit_in(session, edit)
    return Made(result.image, sum(result.seconds.values()), seconds)


@dataclass(frozen=True)
class UNetMacs:
    """Multiply-accumulates of the UNet in one edit, in the published convention.

    Attributes:
        record: of the full passes that record; 0 of a dense edit.
        edit: of the passes that make the edit.
    """

    record: int
    edit: int


def unet_macs(pipeline: Pipeline, wanted: Request, steps: int | None) -> UNetMacs:
    """Count the passes that an edit makes, and what each costs; no prompt or seed changes it."""
    networks, noise = pipeline.networks, NamedNoise(0)
    params = SamplingParams("", steps=steps)
    networks.set_backend(Backend.TORCH.value)  # the one whose operators can be counted
    one = catch(networks.unet, lambda: pipeline.edit(wanted, params))
    with pipeline.scope():
        plan = pipeline.prepare(wanted, noise)
        count = steps_of(plan, networks, pipeline.solver(params, noise))
        if plan.masks is None:
            return UNetMacs(0, count * count_macs(one.run).total)
        networks.forget()
        full = replace(one, inputs=one.recorded, recorded=None, masks=None)
        record = count_macs(full.run).total * len(plan.recorded.steps(count))
        late, first = (_sparse_macs(one, masks) for masks in (plan.masks.late, plan.masks.first))
    networks.set_backend(Backend.AUTO.value)
    wide = plan.masks.change(count)
    return UNetMacs(record, wide * first + (count - wide) * late)


def _sparse_macs(one: Pass, masks: MaskPyramid) -> int:
    """Multiply-accumulates of one sparse pass on masks; inside the pipeline's scope."""
    sparse = replace(one, masks=masks)
    with sparse.with_recording():
        sparse.run()  # builds the active sets, which cost an edit nothing
        return count_macs(sparse.run).total
