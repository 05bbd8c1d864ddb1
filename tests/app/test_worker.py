"""One device, one line: order, places, giving up, and failures that stay where they are."""

import threading
import time

from sgm.app.worker import Ended, Job, Waiting, Worker
from sgm.errors import UserError
from tests.app.ears import PATIENCE, Ear, Gate, error_of, heard


def test_jobs_are_done_in_order_by_one_thread() -> None:
    worker, done, threads = Worker("cpu"), list[int](), set[int]()

    def work(number: int) -> None:
        done.append(number)
        threads.add(threading.get_ident())

    ears = [Ear() for _ in range(5)]
    for number, ear in enumerate(ears):
        worker.submit(lambda job, number=number: work(number), ear)
    assert all(ear.all()[-1] == Ended() for ear in ears)
    assert done == [0, 1, 2, 3, 4] and len(threads) == 1


def test_a_place_in_the_line_is_told_and_moves_up() -> None:
    worker, gate = Worker("cpu"), Gate()
    first, second, third = Ear(), Ear(), Ear()
    worker.submit(gate, first)
    assert gate.begun.wait(PATIENCE)
    given_up = worker.submit(lambda job: None, second)
    worker.submit(lambda job: None, third)
    assert third.until(Waiting) == Waiting(2)
    worker.cancel(given_up)  # it leaves the line at once, not when its turn comes
    assert second.all()[-1] == Ended(cancelled=True)
    assert third.until(Waiting) == Waiting(1)
    gate.open()
    assert third.all()[-1] == Ended() and Waiting(1) not in first.all()


def test_a_running_job_ends_at_its_next_check() -> None:
    worker, gate, after = Worker("cpu"), Gate(), list[int]()

    def work(job: Job) -> None:
        gate(job)
        job.check()
        after.append(1)

    ear = Ear()
    job = worker.submit(work, ear)
    assert gate.begun.wait(PATIENCE)
    worker.cancel(job)
    gate.open()
    assert ear.all()[-1] == Ended(cancelled=True) and not after


def test_a_failure_is_a_sentence_and_the_next_job_runs() -> None:
    worker = Worker("cpu")

    def fail(error: Exception) -> str:
        def work(job: Job) -> None:
            raise error

        return error_of(lambda emit: worker.submit(work, emit))

    assert fail(UserError("No such thing.")) == "No such thing."
    assert fail(KeyError("x")) == "This edit failed unexpectedly (KeyError: 'x')."
    assert fail(MemoryError()).startswith("The memory of cpu is not enough")
    heard(lambda emit: worker.submit(lambda job: None, emit))


def test_what_is_done_when_idle_gives_way_and_begins_anew() -> None:
    worker, begun, ended = Worker("cpu"), threading.Semaphore(0), threading.Event()
    free, order = threading.Event(), list[str]()

    def idle(job: Job) -> None:
        order.append("idle")
        begun.release()
        while not free.is_set():
            job.check()
            time.sleep(0.001)
        ended.set()

    worker.when_idle(idle)
    assert begun.acquire(timeout=PATIENCE)
    heard(lambda emit: worker.submit(lambda job: order.append("job"), emit))
    assert begun.acquire(timeout=PATIENCE)
    free.set()
    assert ended.wait(PATIENCE) and order == ["idle", "job", "idle"]
