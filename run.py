"""Edit a picture with SDXL, or measure a network: see `python run.py --help`."""

import logging
import sys

from sgm.cli import main
from sgm.errors import UserError


def run() -> int:
    """The exit code of one command: 0, 2 for a bad input, 130 when interrupted."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return main()
    except UserError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run.py: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
