"""Worker processes of the training: where there is a GPU, all other cores make what it needs.

They are started afresh, not forked: a copy of a process that has threads or a GPU may hang.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
AHEAD = 64  # batches that are made before they are needed


def begin() -> None:
    """One thread; signals are for the parent, whose end is the worker's."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=follow, daemon=True).start()


def follow() -> None:
    """End with the parent, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def start(count: int) -> ProcessPoolExecutor:
    """Worker processes, which start at the first task."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=begin)


def abandon(pool: ProcessPoolExecutor) -> None:
    """End the worker processes at once, whatever they are at: those of all pools."""
    pool.shutdown(wait=False, cancel_futures=True)
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


class Ahead(Generic[T]):
    """What each step of a course needs, made some steps ahead by worker processes.

    Args:
        pool: the workers; None to make it in this process, when it is asked for.
        task: from a step's number and the share of the course that is done to a call. The call is
            made in a worker: it and what it returns travel as pickles, so that arrays are to be
            numpy's (tensors would need shared memory, of which a container may have little).
    """

    def __init__(
        self, pool: ProcessPoolExecutor | None, task: Callable[[int, float], Callable[[], T]]
    ) -> None:
        self.pool, self.task = pool, task
        self.queue: deque[Future[T]] = deque()

    def __call__(self, step: int, done: float) -> T:
        """That of a step; steps are asked for one after the other."""
        if self.pool is None:
            return self.task(step, done)()
        while len(self.queue) < AHEAD:
            self.queue.append(self.pool.submit(self.task(step + len(self.queue), done)))
        return self.queue.popleft().result()
