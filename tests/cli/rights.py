"""A plugin for tests of files that may not be read or written, also where root runs the tests.

Loaded by `pytest_plugins`.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NOBODY = 65534


Rights = Callable[[Path, int], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def _rights(path: Path, mode: int) -> Iterator[None]:
    """A path with other rights; root, whom they do not stop, becomes nobody meanwhile."""
    before, root = path.stat().st_mode, os.geteuid() == 0
    path.chmod(mode)
    if root:
        os.setresuid(NOBODY, NOBODY, 0)  # the saved user id leads back
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)
        path.chmod(before)


@pytest.fixture
def rights() -> Rights:
    """`with rights(path, mode):` gives a path other rights, also against root."""
    return _rights


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that is open to everybody; pytest's own are for one user."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)
