"""A worker makes the edits of a batch: one loaded model, and the recording of one picture.

A worker's results depend on nothing but the job: a recording is made under one seed, whatever the
rows that use it, and the noise inside an edit is that of the edit's own seed. So it does not matter
who makes which job, in which order, and how often.
"""

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from sgm import runtime
from sgm.batch.results import Outcome
from sgm.batch.rows import Job
from sgm.cli import outputs
from sgm.cli.generate import load_pipeline
from sgm.cli.inputs import dense_if_everywhere, edit_of_run, nothing_marked, read_inputs
from sgm.cli.main import less_memory
from sgm.cli.program import memory_scope
from sgm.cli.record import edit_in
from sgm.errors import UserError
from sgm.inference.choose_store import make_store
from sgm.inference.edit import Edit
from sgm.inference.inpainting import Inpainting
from sgm.inference.pipeline import EditResult, Pipeline
from sgm.inference.sdedit import SDEdit
from sgm.inference.session import EditSession
from sgm.specs import RunOptions
from sgm.words import Precision, Preset

logger = logging.getLogger(__name__)

SESSION_SEED = 2  # of every recording, whatever the seeds of its edits


@dataclass(frozen=True)
class Setup:
    """How a worker computes; None for the best device and precision of the worker's machine."""

    threads: int  # of the CPU
    device: str | None
    precision: Precision | None


class Worker:
    """A model that makes the jobs of a batch; loaded when the first is asked for."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._pipeline: Pipeline | None = None
        self._session: EditSession | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Make the jobs of one picture.

        Raises:
            UserError: the model cannot be loaded. A job that fails does not raise.
        """
        torch.set_num_threads(self.setup.threads)
        if self._pipeline is None:
            options = self._here(jobs[0].options)
            with memory_scope(options.device, f"use {less_memory(options)}"):
                self._pipeline = load_pipeline(options, progress=False)
        try:
            for job in jobs:
                yield self._outcome(job, self._pipeline)
        finally:
            self._session = None

    def _here(self, options: RunOptions) -> RunOptions:
        """Options of a job with the device and precision of this worker."""
        device = runtime.pick_device(self.setup.device)
        precision = self.setup.precision or runtime.best_precision(options.preset, device)
        return replace(options, device=str(device), precision=precision)

    def _outcome(self, job: Job, pipeline: Pipeline) -> Outcome:
        """Make a job, or say why it cannot be made."""
        options, started = self._here(job.options), time.perf_counter()
        try:
            with memory_scope(options.device, f"use {less_memory(options)}"):
                inputs = read_inputs(options)
                options = dense_if_everywhere(options, inputs)
                blended = options.photo.blend is not None
                edited = photo = inputs.source(blended)
                touched, spent = inputs.mask, dict[str, float]()
                if not nothing_marked(options, inputs):
                    wanted = edit_of_run(options, inputs)
                    result = self._edit(replace(job, options=options), wanted, pipeline)
                    touched, spent = result.touched, result.seconds
                    edited = photo.with_edit(result.image, touched, blended)
                text = outputs.parameters(options, edited.image.size)
                # Not by a file of a disk, which may be full here and not where results go.
                content = edited.written(options.output_path, text)
                change = outputs.changed_outside(content, photo, touched)
        except Exception as error:
            # The next picture may be a good one; what nobody foresaw is told in full, too.
            foreseen = isinstance(error, UserError | ValueError)
            sentence = str(error) if foreseen else f"{type(error).__name__}: {error}"
            logger.warning("Row %d: %s", job.row, sentence, exc_info=not foreseen)
            self._session = None  # it may be what did not fit into memory
            return Outcome(job, None, {"error": sentence})
        seconds = {stage: round(value, 6) for stage, value in spent.items()}
        seconds["total"] = round(time.perf_counter() - started, 6)
        figures = {"seconds": seconds, "edit_ratio": inputs.ratio, **change}
        return Outcome(job, content, figures)

    def _edit(self, job: Job, wanted: Edit, pipeline: Pipeline) -> EditResult:
        """The edit of a job, from the picture's recording where there is one."""
        options, sampling = job.options, job.options.sampling
        pipeline = replace(pipeline, sparse=options.run_type.sparse)  # dense, if all is edited
        sparse = options.run_type.sparse and options.preset is Preset.FAST
        if not sparse or not isinstance(wanted, Inpainting | SDEdit):  # of a crop
            return pipeline.edit(wanted, sampling)
        before = time.perf_counter()
        session = self._recorded(job, wanted, pipeline)
        recorded = time.perf_counter() - before
        result = edit_in(session, wanted, sampling)
        recorded += result.seconds.get("record", 0.0)  # what the prompt changes
        return replace(result, seconds={**result.seconds, "record": recorded})

    def _recorded(self, job: Job, edit: Inpainting | SDEdit, pipeline: Pipeline) -> EditSession:
        """The session of a job's picture; made by the first of its jobs."""
        if self._session is None:
            device = torch.device(job.options.device)
            picture = edit.image if isinstance(edit, Inpainting) else edit.init
            assert picture is not None  # by `check_together`
            words = {"prompt": job.picture_prompt, "negative_prompt": "", "seed": SESSION_SEED}
            params = replace(job.options.sampling, **words)
            store = partial(make_store, device=device)
            what = (picture, params, job.options.task)
            self._session = EditSession(pipeline, *what, make_store=store)
        return self._session


def run_here(setup: Setup, groups: Sequence[Sequence[Job]]) -> Generator[Outcome, None, None]:
    """Make the jobs of many pictures in this process, one after the other."""
    worker = Worker(setup)
    for jobs in groups:
        yield from worker.run(jobs)
