"""Edit a picture with SDXL, or measure a network: see `python run.py --help`."""

import sys

from sgm.cli import main
from sgm.program import run_program

if __name__ == "__main__":
    sys.exit(run_program("run.py", main))
