"""The one thread that uses the device, and the queue of jobs that wait for it."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sgm.cli.program import memory_scope
from sgm.errors import UserError

logger = logging.getLogger(__name__)


class Cancelled(Exception):
    """A job was cancelled, because its result is not wanted any more."""


@dataclass(frozen=True)
class Waiting:
    """A job waits.

    Attributes:
        place: how many jobs are before it, from 1.
    """

    place: int


@dataclass(frozen=True)
class Ended:
    """A job is over; the last event of a job.

    Attributes:
        error: why it failed, a sentence; None if it did not.
        cancelled: whether it was given up.
    """

    error: str | None = None
    cancelled: bool = False


# What a job says while it waits and runs; called by the worker's thread, or by that which submits.
Emit = Callable[[object], None]


class Job:
    """Something to do on the device.

    Args:
        work: called with the job, by the worker's thread.
        emit: hears `Waiting`, what `work` says, and `Ended`.
    """

    def __init__(self, work: "Callable[[Job], None]", emit: Emit) -> None:
        self.work, self.emit = work, emit
        self._cancelled = threading.Event()

    def give_up(self) -> None:
        """Mark the job as cancelled, so that its next `check` ends it."""
        self._cancelled.set()

    def check(self) -> None:
        """To be called by `work` after every step.

        Raises:
            Cancelled: it was given up.
        """
        if self._cancelled.is_set():
            raise Cancelled


class Worker:
    """One thread that runs jobs in the order in which they came, and idle work when there are none.

    Args:
        device: its name, for the sentence when memory runs out.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._waiting, self._idle = deque[Job](), deque[Job]()
        self._idle_now: Job | None = None
        self._running: Job | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name=f"worker of {device}", daemon=True).start()

    def submit(self, work: Callable[[Job], None], emit: Emit) -> Job:
        """Put a job at the end of the queue. Idle work that runs is stopped, and started again
        later."""
        job = Job(work, emit)
        with self._changed:
            self._waiting.append(job)
            if self._idle_now is not None:
                self._idle_now.give_up()
            self._say_places()
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Cancel a job: it leaves the queue, or ends at its next step if it runs already."""
        job.give_up()
        with self._changed:
            if job not in self._waiting:
                return
            self._waiting.remove(job)
            self._say_places()
        job.emit(Ended(cancelled=True))

    def when_idle(self, work: Callable[[Job], None]) -> None:
        """Run idle work when no job waits for the device; a failure is only logged."""
        with self._changed:
            self._idle.append(Job(work, lambda event: None))
            self._changed.notify()

    def _say_places(self) -> None:
        before = int(self._running is not None)
        for number, job in enumerate(self._waiting, before):
            if number:
                job.emit(Waiting(number))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._idle)
                if self._waiting:
                    job = self._running = self._waiting.popleft()
                    self._say_places()
                else:
                    job = self._idle_now = self._idle.popleft()
            ended = self._done(job)
            with self._changed:
                if job is self._idle_now and ended.cancelled:
                    self._idle.appendleft(Job(job.work, job.emit))
                self._running = self._idle_now = None
            job.emit(ended)

    def _done(self, job: Job) -> Ended:
        """Do a job, and say how it ended."""
        try:
            job.check()
            with memory_scope(self.device, "close other programs, or open a smaller picture"):
                job.work(job)
        except Cancelled:
            return Ended(cancelled=True)
        except (UserError, ValueError) as error:
            logger.warning("%s", error)
            return Ended(str(error))
        except Exception as error:
            # One edit fails; the page, and the edits of others, go on.
            logger.exception("An edit failed.")
            return Ended(f"This edit failed unexpectedly ({type(error).__name__}: {error}).")
        return Ended()
