"""How a program ends: its exit code, and one sentence in place of a traceback.

That holds too where memory runs out, on a CPU or a GPU. Nothing here imports torch: its errors are
recognised by name and text.
"""

import errno
import logging
import os
import re
import signal
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from sgm.cli import report
from sgm.errors import UserError
from sgm.io.files import remove_unfinished

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What PyTorch's allocators, the libraries below it and the system say when memory runs out.
_SHORTAGE = re.compile(
    r"out of memory|allocate memory|not enough memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)
_BYTES = re.compile(r"allocate (\d+) bytes", re.IGNORECASE)  # PyTorch on a CPU
_UNITS = re.compile(r"allocate ([\d.]+ [KMGT]?i?B)", re.IGNORECASE)  # on a GPU, and numpy
_FREE = re.compile(r"of which ([\d.]+ [KMGT]?i?B) is free", re.IGNORECASE)


def start(name: str, main: Callable[[], int], level: int = logging.INFO) -> NoReturn:
    """Run a program and end the process with its exit code, see `run_program`.

    Ctrl-C and SIGTERM end it at once, with the exit codes that shells give, 130 and 143. No
    exception is raised for them: it would meet compiled code that aborts on one, or that goes on as
    if nothing came.
    """

    def stop(number: int, frame: types.FrameType | None) -> None:
        remove_unfinished()
        line = "\n" if sys.stderr.isatty() else ""  # below an unfinished progress bar
        os.write(2, f"{line}{name}: interrupted\n".encode())
        os._exit(128 + number)

    for number in SIGNALS:
        # A program that a script runs in the background is told to ignore Ctrl-C.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    code = run_program(name, main, level)
    for number in SIGNALS:
        # Everything is done, and one more signal would print a traceback as Python shuts down.
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def run_program(name: str, main: Callable[[], int], level: int = logging.INFO) -> int:
    """Run a program's `main`, with its messages from a level on to stderr, and its name before its
    last words. The exit code: what `main` returned; 2 for a bad input, a refusal of the system or
    too little memory; 130 for a KeyboardInterrupt."""
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    try:
        with memory_scope("this machine", "close other programs, or ask for less"):
            return main()
    except UserError as error:
        words, code = str(error), 2
    except OSError as error:
        # What no check can foresee: a folder that may not be listed, a disk that was taken out.
        where = f" for {error.filename}" if error.filename else ""
        words, code = f"The system says{where}: {error.strerror or error}.", 2
    except KeyboardInterrupt:
        words, code = "interrupted", 130
    sys.stderr.write(f"{name}: {words}\n")
    report.let_go_of_stdout()
    return code


class OutOfMemory(UserError):
    """Too little memory; one sentence that says what was needed and what needs less."""


@contextmanager
def memory_scope(place: str, advice: str) -> Iterator[None]:
    """Scope in which running out of the memory of a place (`this machine`, `cuda:0`) ends in a
    sentence, of which `advice` is the end.

    Raises:
        OutOfMemory: in place of MemoryError, of `torch.OutOfMemoryError`, of the RuntimeError of
            PyTorch's CPU allocator, and of whatever these were taken for on the way: a reader may
            call a file damaged that did not fit.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not is_shortage(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        sentence = f"The memory of {place} is not enough{_wanted(str(cause))}; {advice}."
        raise OutOfMemory(sentence) from error


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None


def _wanted(text: str) -> str:
    """How much memory was asked for and how much was free, as far as the error says."""
    if found := _BYTES.search(text):
        size = f"{int(found[1]) / 2**20:,.2f} MiB"
    elif found := _UNITS.search(text):
        size = found[1]
    else:
        return ""
    free = _FREE.search(text)
    return f" ({size} more were needed{f', {free[1]} were free' if free else ''})"
