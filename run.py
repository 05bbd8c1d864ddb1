"""Edit a picture with SDXL, or measure a network: see `python run.py --help`."""

from sgm.cli.program import start


def main() -> int:
    """The command of the process; imported late, so that Ctrl-C is heard meanwhile."""
    from sgm.cli.main import main

    return main()


if __name__ == "__main__":
    start("run.py", main)
