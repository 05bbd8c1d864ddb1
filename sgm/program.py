"""How a program ends: its exit code, and one sentence in place of a traceback."""

import contextlib
import logging
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator

from sgm.errors import UserError
from sgm.memory import memory_scope


def run_program(name: str, main: Callable[[], int], level: int = logging.INFO) -> int:
    """Run a program's `main` with status on stderr.

    Args:
        name: of the program, put before its last words.
        main: returns the exit code. On Ctrl-C and on SIGTERM it gets a KeyboardInterrupt.
        level: from which status messages are shown.

    Returns:
        What `main` returned; 2 for a bad input, a refusal of the system or too little memory;
        130 after Ctrl-C and 143 after SIGTERM, the numbers that shells give.
    """
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    with _signals() as came:
        try:
            with memory_scope("this machine", "close other programs, or ask for less"):
                return main()
        except BaseException as error:
            # Compiled code turns an interrupt into errors of its own; whatever came out, it is one.
            if came or isinstance(error, KeyboardInterrupt):
                words, code = "interrupted", 128 + (came[0] if came else signal.SIGINT)
            elif isinstance(error, UserError):
                words, code = str(error), 2
            elif isinstance(error, OSError):
                # What no check foresaw: a folder that may not be listed, a disk taken out.
                where = f" for {error.filename}" if error.filename else ""
                words, code = f"The system says{where}: {error.strerror or error}.", 2
            else:
                raise
    sys.stderr.write(f"{name}: {words}\n")
    _let_go_of_stdout()
    return code


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Scope in which requests to end are KeyboardInterrupts; the numbers of those that came."""
    came: list[int] = []

    def stop(number: int, frame: types.FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before: dict[int, object] = {}
    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        # A program that a script runs in the background is told to ignore Ctrl-C.
        before = {n: handler for n, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _let_go_of_stdout() -> None:
    """What stdout could not take would be tried again, and end in a traceback, at the very end."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
