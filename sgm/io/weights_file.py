"""Opening and reading `.safetensors` files; nothing else is ever opened, and nothing unpickled.

A file is mapped, not read: its pages come in as they are touched. They stay in the process until
the mapping ends, so whoever copies tensors maps the file anew every now and then.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sgm.errors import UserError
from sgm.io.diagnosis import why_unreadable

# The words of the format for what can be converted or loaded.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Bytes of one mapping in `read_in_turn`: about the largest tensor of a published file.
BLOCK = 128 * 2**20


class CheckpointError(UserError):
    """A weights file that cannot be used; one sentence with the cause and what to do."""


def open_weights(path: Path) -> safe_open:
    """A mapped weights file, for a `with` statement; its tensors are views of the mapping.

    Raises:
        CheckpointError: it cannot be opened, or is no whole safetensors file.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"Weights file {path} cannot be read as safetensors: {why_unreadable(path)}."
        ) from error


def read_in_turn(
    path: Path, names: Iterable[str], block: int = BLOCK
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of some names in that order, for a consumer that keeps copies and not them.

    Args:
        block: bytes after which the file is mapped anew, which bounds the resident pages.

    Raises:
        CheckpointError: see `open_weights`.
    """
    waiting = list(reversed(list(names)))
    while waiting:
        with open_weights(path) as file:
            read = 0
            while waiting and read < block:
                tensor = file.get_tensor(waiting[-1])
                read += tensor.nbytes
                yield waiting.pop(), tensor
        # Else this name would hold the old mapping until the new one's first tensor.
        del tensor
