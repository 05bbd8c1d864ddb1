"""Memory that runs out, on a CPU or a GPU, as one sentence.

Nothing here imports torch: its errors are known by name and text.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from sgm.errors import UserError

# How PyTorch's allocators, its libraries, numpy and the system speak of it.
_SHORTAGE = re.compile(
    r"out of memory|allocate memory|not enough memory|bad_alloc|ALLOC_FAILED|unable to allocate",
    re.IGNORECASE,
)
_BYTES = re.compile(r"allocate (\d+) bytes", re.IGNORECASE)  # PyTorch on a CPU
_UNITS = re.compile(r"allocate ([\d.]+ [KMGT]?i?B)", re.IGNORECASE)  # on a GPU, and numpy
_FREE = re.compile(r"of which ([\d.]+ [KMGT]?i?B) is free", re.IGNORECASE)


@contextmanager
def memory_scope(place: str, advice: str) -> Iterator[None]:
    """Scope in which running out of memory ends in a sentence.

    Args:
        place: whose memory it is.
        advice: what needs less, as the end of a sentence.

    Raises:
        UserError: in place of MemoryError, of `torch.OutOfMemoryError`, and of the RuntimeError of
            PyTorch's CPU allocator.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        raise UserError(
            f"The memory of {place} is not enough{_wanted(error)}; {advice}."
        ) from error


def is_shortage(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _SHORTAGE.search(str(error)) is not None


def _wanted(error: BaseException) -> str:
    """What was asked for last, and what was free, as far as the error says."""
    text = str(error)
    if found := _BYTES.search(text):
        size = f"{int(found[1]) / 1e9:.2f} GB"
    elif found := _UNITS.search(text):
        size = found[1]
    else:
        return ""
    free = _FREE.search(text)
    return f" ({size} more were needed{f', {free[1]} were free' if free else ''})"
