"""Files by name: checks before a run, and writing without half-written files.

Nothing here imports torch, numpy or Pillow, so that a wrong path is refused at once.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sgm.errors import UserError, suggestion
from sgm.specs import ModelSpec

# Kinds of picture that can be written; `imageio` holds their options.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")

# Functions that delete the files which are being written at this moment.
_unfinished: list[Callable[[], object]] = []


def check_input_file(path: Path) -> None:
    """Raise UserError unless the path is a file that can be opened and holds something."""
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a file in it.")
        if not path.exists():
            names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(
                f"File {path} does not exist{suggestion(path.name, names)}; check the path."
            )
        with path.open("rb") as file:
            if not file.read(1):
                raise UserError(f"File {path} is empty; fetch or export it again.")
    # A name that the system cannot look up (too long, a NUL byte) is a ValueError or OSError.
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"File {path} cannot be opened: {reason}.") from error


def check_weights_file(path: Path) -> None:
    """As `check_input_file`; also refuse a pickle by its name: opening one can run anything."""
    check_input_file(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise UserError(
            f"File {path} is a pickle by its name, and pickles are never opened; get the "
            ".safetensors file."
        )


def check_own_weights(path: Path, spec: ModelSpec, role: str) -> None:
    """Raise UserError unless a model family's own file of a role is there and opens; its tensors
    are checked later."""
    try:
        with path.open("rb"):
            return
    except FileNotFoundError as error:
        page = spec.pages.get(role)
        advice = f"download it from {page} to {path.parent}" if page else "check --weight_path"
        other = "" if spec.name == "tiny" else ", or try --model tiny"
        # With any ending but the expected one it is a pickle, whose opening can run anything.
        pickled = [path.with_suffix(suffix).name for suffix in PICKLE_SUFFIXES]
        found = [name for name in pickled if (path.parent / name).exists()]
        instead = f" ({found[0]} does, but pickles are never opened)" if found else ""
        raise UserError(f"Checkpoint {path} does not exist{instead}; {advice}{other}.") from error
    except OSError as error:
        raise UserError(
            f"Checkpoint {path} cannot be opened: {error.strerror}; check --weight_path."
        ) from error


def check_output_path(path: Path) -> None:
    """Raise UserError unless a picture can be written there: known extension, usable folder."""
    suffix = path.suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        came = f"extension {path.suffix!r}" if suffix else "no extension"
        raise UserError(
            f"Output {path} has {came}; end the name in one of {', '.join(PICTURE_SUFFIXES)}."
        )
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise UserError unless a file could be written there (its folders may not exist yet)."""
    try:
        if path.is_dir():
            raise UserError(f"Output {path} is a folder; name a file in it.")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise UserError(f"Output {path} cannot be written: {error.strerror}.") from error
    _check_ordinary(path)
    if not writable:
        kind = "is not writable" if folder.is_dir() else "is not a folder"
        raise UserError(f"Output {path} cannot be written, since {folder} {kind}; choose another.")


def _check_ordinary(path: Path) -> None:
    """UserError for a device or a pipe, which a new file would take the place of."""
    if path.exists() and not path.is_file():
        raise UserError(f"Output {path} is no ordinary file; name another.")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under a temporary name in the same folder, then rename it over `path`: it
    appears complete or not at all. Missing folders are created; a link stays one.

    Args:
        write: called once with a new binary file open for writing.

    Raises:
        UserError: the system or the file's format refuses, or there is something else than a file.
            Nothing is left behind then, nor after any other error or an interrupt.
    """
    target = Path(os.path.realpath(path))
    # The process id keeps two runs that write the same file apart.
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        _check_ordinary(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(lambda: temporary.unlink(missing_ok=True)):
            with temporary.open("wb") as file:
                write(file)
            os.replace(temporary, target)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # Pillow: sizes that a format cannot hold
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(f"{path} cannot be written: {reason}; choose another place.") from error


@contextlib.contextmanager
def unfinished(remove: Callable[[], object]) -> Iterator[None]:
    """Scope in which files are written that are of no use until it ends; `remove` deletes them if
    it ends in an error, or if the process is stopped in it."""
    _unfinished.append(remove)
    try:
        yield
    except BaseException:
        _call(remove)
        raise
    finally:
        _unfinished.remove(remove)


def remove_unfinished() -> None:
    """Delete what the scopes of `unfinished` have made so far, as the process ends in them."""
    for remove in reversed(_unfinished):
        _call(remove)


def _call(remove: Callable[[], object]) -> None:
    """Delete files as far as the system lets us."""
    with contextlib.suppress(OSError):  # a folder that is gone, or that is a file
        remove()
