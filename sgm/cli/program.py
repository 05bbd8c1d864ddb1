"""How a program ends: its exit code, and one sentence in place of a traceback."""

import logging
import os
import signal
import sys
import types
from collections.abc import Callable
from typing import NoReturn

from sgm.cli import report
from sgm.cli.memory import memory_scope
from sgm.errors import UserError
from sgm.io.files import remove_unfinished

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def start(name: str, main: Callable[[], int], level: int = logging.INFO) -> NoReturn:
    """Run a program and end the process with its exit code; arguments as those of `run_program`.

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
    """Run a program's `main` with status on stderr.

    Args:
        name: of the program, put before its last words.
        main: returns the exit code.
        level: from which status messages are shown.

    Returns:
        What `main` returned; 2 for a bad input, a refusal of the system or too little memory; 130
        for a KeyboardInterrupt.
    """
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
