"""A program that runs out of memory, on a CPU or a GPU, ends in one sentence.

Nothing here imports torch: its errors are recognised by name and text.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from sgm.errors import UserError

# What PyTorch's allocators, the libraries below it and the system say when memory runs out.
_SHORTAGE = re.compile(
    r"out of memory|allocate memory|not enough memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)
_BYTES = re.compile(r"allocate (\d+) bytes", re.IGNORECASE)  # PyTorch on a CPU
_UNITS = re.compile(r"allocate ([\d.]+ [KMGT]?i?B)", re.IGNORECASE)  # on a GPU, and numpy
_FREE = re.compile(r"of which ([\d.]+ [KMGT]?i?B) is free", re.IGNORECASE)


class OutOfMemory(UserError):
    """Too little memory; one sentence that says what was needed and what needs less."""


@contextmanager
def memory_scope(place: str, advice: str) -> Iterator[None]:
    """Scope in which running out of memory ends in a sentence.

    Args:
        place: whose memory it is, such as `this machine` or `cuda:0`.
        advice: what needs less, as the end of a sentence.

    Raises:
        OutOfMemory: in place of MemoryError, of `torch.OutOfMemoryError`, of the RuntimeError of
            PyTorch's CPU allocator, and of whatever these were taken for on the way: a reader may
            call a file damaged that did not fit.
    """
    try:
        yield
    except OutOfMemory:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not is_shortage(cause):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        sentence = f"The memory of {place} is not enough{_wanted(str(cause))}; {advice}."
        raise OutOfMemory(sentence) from error


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None


def _wanted(text: str) -> str:
    """How much memory was asked for and how much was free, as far as the error says."""
    if found := _BYTES.search(text):
        size = f"{int(found[1]) / 2**20:,.2f} MiB"
    elif found := _UNITS.search(text):
        size = found[1]
    else:
        return ""
    free = _FREE.search(text)
    return f" ({size} more were needed{f', {free[1]} were free' if free else ''})"
