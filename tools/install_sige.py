"""Builds the published package `sige` against the installed torch: `python -m tools.install_sige`.

The release on PyPI (0.3.0) imports torch while it is built, and from its build tools a name that
newer versions no longer hand on (`build_ext` of setuptools). So it is built without isolation, in
Python processes that put the name back before anything else runs; the source stays as released.
Needs pip, setuptools, a C++ compiler and, for the CUDA kernels, nvcc of torch's CUDA version.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sgm.cli.program import start
from sgm.errors import UserError

logger = logging.getLogger(__name__)

VERSION = "0.3.0"
COMPILERS = ("c++", "g++", "clang++")
# Run by every Python that finds it on its path, at its start.
SHIM = """\
try:
    import torch.utils.cpp_extension as extension
    from setuptools.command.build_ext import build_ext
except ImportError:
    pass
else:
    extension.build_ext = build_ext
"""
CHECK = "import sige.cpu; from sige import utils; print(sige.__file__)"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.install_sige",
        description="Build the published package sige against the installed torch.",
    )
    parser.add_argument(
        "--target", type=Path, help="folder to install into (default: this Python's)"
    )
    parser.add_argument("--cpu", action="store_true", help="the CPU kernels alone, GPU or not")
    parser.add_argument(
        "--jobs", type=int, default=0, help="compilers at once (default: all cores)"
    )
    return parser


def command(target: Path | None) -> list[str]:
    """The words that install the package."""
    words = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    words += ["--no-binary", "sige", f"sige=={VERSION}"]
    return words if target is None else [*words, "--upgrade", "--target", str(target)]


def environment(shim: Path, args: argparse.Namespace) -> Mapping[str, str]:
    """The variables of the build: the folder of the shim first on Python's path."""
    found = dict(os.environ)
    path = [str(shim), *filter(None, [found.get("PYTHONPATH")])]
    found["PYTHONPATH"] = os.pathsep.join(path)
    if args.jobs:
        found["MAX_JOBS"] = str(args.jobs)
    if args.cpu:
        found["CUDA_VISIBLE_DEVICES"] = ""  # it builds CUDA kernels where torch sees a GPU
    return found


def install(args: argparse.Namespace) -> str:
    """Build, install and import the package; the path of what was imported.

    Raises:
        UserError: there is no compiler, the build fails, or the result cannot be imported.
    """
    if not any(map(shutil.which, COMPILERS)):
        raise UserError("There is no C++ compiler; install g++ (package build-essential).")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(SHIM)
        variables = environment(Path(folder), args)
        # The build's own words are status, like ours.
        if subprocess.run(command(args.target), env=variables, stdout=sys.stderr).returncode:
            raise UserError("The package sige was not built; pip says why above.")
    paths = [str(args.target)] if args.target else []
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    words = [sys.executable, "-c", f"import torch, sige; {CHECK}"]
    checked = subprocess.run(words, env=variables, capture_output=True, text=True)
    if checked.returncode:
        reason = (checked.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"The package sige was built and cannot be imported: {reason}.")
    return checked.stdout.strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Install; print where it is. The exit code."""
    args = build_parser().parse_args(argv)
    if args.jobs < 0:
        raise UserError(f"--jobs is {args.jobs}; give a number of at least 1.")
    print(install(args))
    return 0


if __name__ == "__main__":
    start("install_sige", main)
