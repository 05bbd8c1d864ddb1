"""A batch on several devices: Ray's actors, one a device, each a `Worker`.

Ray places the actors, moves the jobs and the results, and notices what died. Jobs and results go
through Ray's object store; pictures and weights are read by the workers themselves, so their paths
must mean the same on every machine (a shared folder). Only this process writes the results.
"""

import logging
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sgm.batch.results import Outcome
from sgm.batch.rows import Job
from sgm.batch.worker import Setup, Worker
from sgm.errors import UserError

logger = logging.getLogger(__name__)

MAX_DEATHS = 3  # of workers over one group
AHEAD = 2  # results of a worker that nobody has taken yet
START = 180  # seconds
OBJECT_STORE = 256 * 2**20  # bytes, of a Ray of our own: pictures pass through it one at a time


def run_on_ray(
    setup: Setup, groups: Sequence[Sequence[Job]], address: str, workers: int | None
) -> Generator[Outcome, None, None]:
    """Make the jobs of many pictures, a group at a time on every worker. UserError if Ray is not
    installed or does not start, or the model cannot be loaded.

    Args:
        address: of a cluster; empty to start Ray on this machine alone.
        workers: how many; None for one a GPU, or on CPUs as many as have room.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--ray needs the package ray, which is not installed; run "
            "`pip install -r requirements-ray.txt`, or leave --ray out."
        ) from error
    with _started(ray, setup, address, workers):
        total = ray.cluster_resources()
        gpus = int(total.get("GPU", 0)) if setup.device is None or "cuda" in setup.device else 0
        room = gpus or max(1, int(total.get("CPU", 1)) // setup.threads)
        count = min(workers or room, len(groups))
        if count > room:
            raise UserError(
                f"--workers {count} came and Ray has room for {room} ({gpus} GPUs, "
                f"{total.get('CPU', 0):g} CPUs with {setup.threads} threads a worker); take fewer."
            )
        logger.info("Ray: %d workers, on %s.", count, "GPUs" if gpus else "CPUs")
        needs = {"num_gpus": 1} if gpus else {"num_cpus": setup.threads}
        actor = ray.remote(**needs)(Worker)
        yield from _handed_out(ray, lambda: actor.remote(setup), groups, count)


@contextmanager
def _started(ray: Any, setup: Setup, address: str, workers: int | None) -> Iterator[None]:
    """Scope connected to Ray: to the cluster at an address, or to one started on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    # Seconds that it gives itself to start: 30 by default, too few for a busy machine.
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START))
    how: dict[str, object] = {"address": address}
    if not address:
        cpus = max(os.cpu_count() or 1, setup.threads * (workers or 1))
        how = {"num_cpus": cpus, "_node_ip_address": "127.0.0.1"}
        how |= {"object_store_memory": OBJECT_STORE, "include_dashboard": False}
        how["logging_level"] = logging.WARNING
    try:
        ray.init(**how)
    except Exception as error:  # of many types, by what is in its way
        raise UserError(f"Ray does not start: {str(error).rstrip('.')}.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _handed_out(
    ray: Any, make: Any, groups: Sequence[Sequence[Job]], count: int
) -> Iterator[Outcome]:
    """Give every worker (`make` starts one) a group at a time; the rest of a dead worker's group
    goes to another."""
    errors = ray.exceptions
    lost = (errors.RayActorError, errors.ObjectLostError, errors.OutOfMemoryError)
    waiting = deque((list(group), 0) for group in groups)
    idle = [make() for _ in range(count)]
    running: dict[Any, tuple[Any, list[Job], int]] = {}
    while waiting or running:
        while waiting and idle:
            (jobs, deaths), actor = waiting.popleft(), idle.pop()
            stream = actor.run.options(
                num_returns="streaming", _generator_backpressure_num_objects=AHEAD
            ).remote(jobs)
            running[stream] = (actor, jobs, deaths)
        [stream], _ = ray.wait(list(running), num_returns=1)
        actor, jobs, deaths = running[stream]
        try:
            outcome = ray.get(next(stream))
        except StopIteration:
            del running[stream]
            idle.append(actor)
        except lost as error:
            del running[stream]
            logger.warning("A worker died over row %d; another takes over.", jobs[0].row)
            idle.append(make())
            if deaths + 1 < MAX_DEATHS:
                waiting.appendleft((jobs, deaths + 1))
                continue
            sentence = f"{MAX_DEATHS} workers died over this row ({type(error).__name__})."
            yield Outcome(jobs.pop(0), None, {"error": sentence})
            waiting.appendleft((jobs, 0))
        except errors.RayTaskError as error:
            raise error.cause from error
        else:
            jobs.pop(0)
            yield outcome
