"""A batch on Ray: the same bytes as without, whoever dies."""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sgm.batch.cluster import _handed_out, run_on_ray
from sgm.batch.results import Outcome
from sgm.batch.worker import Setup
from sgm.errors import UserError
from tests.batch.edits import (
    content,
    inpainting_row,
    lines_of,
    make_pictures,
    mixed_rows,
    run,
    started,
    write_rows,
)
from tests.batch.test_rows import jobs_of
from tests.conftest import oracle

SECONDS = 300  # for a start of Ray on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray")
    make_pictures(path)
    return path


@pytest.fixture
def home() -> Iterator[str]:
    """Where Ray keeps its files: a short path, as it holds sockets."""
    oracle("ray")
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as path:
        yield path


def processes(home: str, title: str = "") -> list[int]:
    """The processes of the Ray that keeps its files there, by the beginning of their title."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"RAY_TMPDIR={home}".encode() in (path / "environ").read_bytes().split(b"\0")
            if ours and (path / "cmdline").read_bytes().startswith(title.encode()):
                found.append(int(path.name))
        except OSError:  # it has ended
            continue
    return found


def wait_for(what: Callable[[], object]) -> None:
    limit = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def test_whoever_is_killed_the_bytes_are_those_of_a_batch_without_ray(
    folder: Path, tmp_path: Path, home: str
) -> None:
    edits = write_rows(folder, mixed_rows())
    assert run(edits, tmp_path / "alone") == 0
    output = tmp_path / "ray"
    path = output / "results.jsonl"
    words = ("--ray", "--workers", "2")
    process = started(edits, output, *words, RAY_TMPDIR=home)
    wait_for(lambda: process.poll() is not None or (path.exists() and path.stat().st_size))
    process.kill()
    process.communicate()
    wait_for(lambda: not processes(home))  # Ray ends with the batch that started it
    before = lines_of(output)
    assert 0 < len(before) < 5, "nothing was left to do"
    process = started(edits, output, *words, RAY_TMPDIR=home)
    wait_for(lambda: process.poll() is not None or processes(home, "ray::Worker.run"))
    # In the midst of its work: it loads a model, or makes the last rows.
    for worker in processes(home, "ray::Worker.run")[:1]:
        os.kill(worker, signal.SIGKILL)
    _, words_of_the_batch = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, words_of_the_batch
    assert "A worker died" in words_of_the_batch
    assert content(output) == content(tmp_path / "alone")


def test_without_ray_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    jobs, _ = jobs_of(folder, [inpainting_row()])
    with pytest.raises(UserError, match="pip install -r requirements-ray"):
        list(run_on_ray(Setup(1, "cpu", None), [jobs], "", None))


class Died(Exception):
    """Stands for the errors of Ray."""


class Failed(Exception):
    """Stands for the error of a task; its cause is what was raised."""

    cause = UserError("Checkpoint x does not exist.")


class FakeRay:
    """As much of Ray as is asked for: streams of results by actors in this process.

    Args:
        deadly: row over which every worker dies.
        broken: whether workers cannot load their model.
    """

    exceptions = SimpleNamespace(
        RayActorError=Died, ObjectLostError=Died, OutOfMemoryError=Died, RayTaskError=Failed
    )

    def __init__(self, deadly: int = 0, broken: bool = False) -> None:
        self.deadly, self.broken, self.made, self.asked = deadly, broken, 0, []

    def make(self) -> SimpleNamespace:
        self.made += 1
        remote = SimpleNamespace(remote=self._run)
        return SimpleNamespace(run=SimpleNamespace(options=lambda **_: remote))

    def _run(self, jobs: list) -> Iterator[object]:
        self.asked.append([job.row for job in jobs])
        return self._stream(list(jobs))

    def _stream(self, jobs: list) -> Iterator[object]:
        for job in jobs:
            if self.broken:
                yield Failed()
            elif job.row == self.deadly:
                yield Died()
                return
            else:
                yield Outcome(job, b"", {})

    @staticmethod
    def wait(streams: list, num_returns: int) -> tuple[list, list]:
        return streams[-1:], streams[:-1]

    @staticmethod
    def get(result: object) -> object:
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture(scope="module")
def groups(folder: Path) -> list:
    jobs, _ = jobs_of(folder, [inpainting_row(n % 2, seed=n) for n in range(6)])
    return [jobs[::2], jobs[1::2]]


def test_a_row_that_kills_workers_is_given_up_and_the_rest_is_made(groups: list) -> None:
    ray = FakeRay(deadly=3)
    outcomes = {o.job.row: o for o in _handed_out(ray, ray.make, groups, 1)}
    assert sorted(outcomes) == [1, 2, 3, 4, 5, 6]
    assert [row for row, o in outcomes.items() if o.picture is None] == [3]
    assert outcomes[3].figures == {"error": "3 workers died over this row (Died)."}
    assert ray.made == 4  # the first, and one for each that died
    # What was done before a worker died is not done again.
    assert ray.asked == [[1, 3, 5], [3, 5], [3, 5], [5], [2, 4, 6]]


def test_every_worker_has_one_group_at_a_time(groups: list) -> None:
    ray = FakeRay()
    assert len(list(_handed_out(ray, ray.make, [*groups, groups[0]], 2))) == 9
    assert ray.made == 2 and ray.asked[:2] == [[1, 3, 5], [2, 4, 6]]


def test_a_model_that_does_not_load_ends_the_batch(groups: list) -> None:
    ray = FakeRay(broken=True)
    with pytest.raises(UserError, match="Checkpoint x does not exist"):
        list(_handed_out(ray, ray.make, groups, 2))
