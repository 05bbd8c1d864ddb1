"""The program `python -m sgm.batch`, also `sdxl-sige batch`."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta

from sgm.batch.options import read_options
from sgm.batch.results import Results
from sgm.batch.rows import Job, checked_jobs, grouped, read_rows
from sgm.cli import report
from sgm.cli.program import start
from sgm.errors import UserError

logger = logging.getLogger("sgm.batch")

BETWEEN = 5.0  # seconds from one line of progress to the next, at least


def main(argv: Sequence[str] | None = None) -> int:
    """Run a batch by a command line, by default that of the process (words after the program's
    name), and return the exit code: 0, or 1 if there are rows that failed or were left out.

    Raises:
        UserError: bad options or rows, or a result that cannot be written; one sentence.
    """
    values = read_options(sys.argv[1:] if argv is None else argv)
    rows = read_rows(values.edits)
    jobs, bad = checked_jobs(rows, values)
    for row, sentence in bad.items():
        logger.warning("Row %d: %s", row, sentence)
    if bad and not values.skip_bad:
        raise UserError(
            f"{len(bad)} of {len(rows)} rows of {values.edits} cannot be used; mend them, or add "
            "--skip_bad to go on without them."
        )
    with Results(values.output) as results:
        _make_all(values, jobs, results)
        lines = results.finish(jobs, bad)
        if values.against is not None:
            from sgm.batch.compare import compare

            sys.stderr.write(compare(results, jobs, values.against))
    failed = sum("error" in line for line in lines)
    if failed:
        logger.warning("%d of %d rows failed; their lines say why.", failed, len(lines))
    report.publish({}, f"{results.path}\n", None)
    return 1 if failed else 0


def _make_all(values: argparse.Namespace, jobs: Sequence[Job], results: Results) -> None:
    """Make the jobs that are not done, here or by Ray; write each result as it comes, and say how
    far the batch is."""
    # Imported here, so that bad options and rows are refused at once.
    import torch

    from sgm.batch.cluster import run_on_ray
    from sgm.batch.worker import Setup, run_here

    left = [job for job in jobs if not results.is_done(job)]
    if len(left) < len(jobs):
        logger.info("%d of %d pictures are done already.", len(jobs) - len(left), len(jobs))
    if not left:
        return
    groups = grouped(left)
    setup = Setup(values.threads or torch.get_num_threads(), values.device, values.precision)
    if values.ray is None:
        outcomes = run_here(setup, groups)
    else:
        outcomes = run_on_ray(setup, groups, values.ray, values.workers)
    began = said = time.monotonic()
    failed = 0
    with closing(outcomes):
        for done, outcome in enumerate(outcomes, 1):
            results.add(outcome)
            failed += outcome.picture is None
            now = time.monotonic()
            if now - said >= BETWEEN or done == len(left):
                said = now
                logger.info("%s", progress(done, len(left), failed, now - began))


def progress(done: int, total: int, failed: int, seconds: float) -> str:
    """How far a batch is, so many seconds after its begin; the model's loading counts."""
    speed = 60 * done / max(seconds, 1e-9)
    rest = timedelta(seconds=round((total - done) * seconds / done))
    errors = f", {failed} failed" if failed else ""
    left = f"{rest} left" if done < total else f"{seconds:.1f} s"
    return f"{done} of {total}, {speed:.1f} a minute, {left}{errors}."


if __name__ == "__main__":
    start("batch", main)
