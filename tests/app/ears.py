"""Who listens to a desk in a test."""

import queue
import threading
from collections.abc import Callable

from sgm.app.worker import Emit, Ended

PATIENCE = 300  # seconds


class Ear:
    """Hears what one job says."""

    def __init__(self, on_event: Callable[[object], None] = lambda event: None) -> None:
        self._heard = queue.Queue[object]()
        self._on_event = on_event

    def __call__(self, event: object) -> None:
        self._heard.put(event)
        self._on_event(event)

    def all(self) -> list[object]:
        """Everything, when the job is over."""
        events: list[object] = []
        while not events or not isinstance(events[-1], Ended):
            events.append(self._heard.get(timeout=PATIENCE))
        return events

    def until(self, kind: type) -> object:
        """The next event of a kind."""
        while True:
            event = self._heard.get(timeout=PATIENCE)
            if isinstance(event, kind):
                return event


def heard(ask: Callable[[Emit], object]) -> list[object]:
    """All that a job says; it must end well."""
    ear = Ear()
    ask(ear)
    events = ear.all()
    assert events[-1] == Ended(), events[-1]
    return events


def error_of(ask: Callable[[Emit], object]) -> str:
    """The sentence that a job ends in."""
    ear = Ear()
    ask(ear)
    ended = ear.all()[-1]
    assert isinstance(ended, Ended) and ended.error is not None, ended
    return ended.error


class Gate:
    """Work that waits to be let through."""

    def __init__(self) -> None:
        self.begun, self._open = threading.Event(), threading.Event()

    def __call__(self, job: object) -> None:
        self.begun.set()
        assert self._open.wait(PATIENCE)

    def open(self) -> None:
        """Let it through."""
        self._open.set()
