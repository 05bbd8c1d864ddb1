"""Edit a picture with SDXL, or measure a network: see `python run.py --help`."""

from sgm.program import start


def main() -> int:
    """The command of the process; imported late, so that Ctrl-C is heard meanwhile."""
    from sgm.cli import main

    return main()


if __name__ == "__main__":
    start("run.py", main)
