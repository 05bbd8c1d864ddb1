"""How a program ends: its exit code, and one sentence in place of a traceback."""

import logging
import sys
from collections.abc import Callable

from sgm.errors import UserError


def run_program(name: str, main: Callable[[], int]) -> int:
    """Run a program's `main` with status on stderr.

    Args:
        name: of the program, put before its last words.
        main: returns the exit code.

    Returns:
        What `main` returned, 2 for a bad input or a refusal of the system, or 130 when interrupted.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return main()
    except UserError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 2
    except OSError as error:
        # What no check foresaw: a folder that may not be listed, a disk that was taken out.
        where = f" for {error.filename}" if error.filename else ""
        sys.stderr.write(f"{name}: The system says{where}: {error.strerror or error}.\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted\n")
        return 130
