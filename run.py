"""Edit a picture with SDXL, or measure a network: see `python run.py --help`."""

import sys

from sgm.program import run_program


def main() -> int:
    """The command of the process; imported late, so that Ctrl-C is heard meanwhile."""
    from sgm.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run_program("run.py", main))
