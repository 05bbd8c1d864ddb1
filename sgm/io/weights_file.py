"""Opening and reading `.safetensors` files; nothing else is ever opened, and nothing unpickled.

A file is mapped, not read: its pages come in as they are touched. They stay in the process until
the mapping ends, so whoever copies tensors maps the file anew every now and then.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# Up to this size a file's key is made of all of it; of a larger one, of pieces of every tensor.
WHOLE, PIECE = 64 * 2**20, 4096
# Bytes of one mapping in `read_in_turn`: about the largest tensor of a published file.
BLOCK = 128 * 2**20


class CheckpointError(UserError):
    """A weights file that cannot be used; one sentence with the cause and what to do."""


@dataclass(frozen=True)
class Part:
    """A stored tensor: its file, its name there, the format's word for its type, its shape."""

    path: Path
    name: str
    word: str
    shape: tuple[int, ...]


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


def catalogue(path: Path) -> tuple[dict[str, Part], dict[str, str]]:
    """What a file holds, by name, and its metadata; no tensor is read.

    Raises:
        CheckpointError: see `open_weights`.
    """
    with open_weights(path) as file:
        parts = {}
        for name in file.keys():  # noqa: SIM118, no mapping
            part = file.get_slice(name)
            parts[name] = Part(path, name, part.get_dtype(), tuple(part.get_shape()))
        return parts, dict(file.metadata() or {})


def content_key(path: Path) -> str:
    """A file's size and a hash of its content: two files of equal keys make equal pictures.

    A large file is not read whole, which would take as long as an edit. Its header is, and the
    beginning, the middle and the end of every tensor: training, merging and converting change
    whole tensors.

    Raises:
        CheckpointError: see `open_weights`.
        OSError: it cannot be read.
    """
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
            return f"{size} bytes, {digest.hexdigest()[:16]}"
        digest.update(file.read(int.from_bytes(file.read(8), "little")))
    with open_weights(path) as weights:
        names = sorted(weights.keys())
    for name, tensor in read_in_turn(path, names):
        content = tensor.reshape(-1).view(torch.uint8)
        digest.update(name.encode())
        for start in (0, len(content) // 2, max(len(content) - PIECE, 0)):
            digest.update(content[start : start + PIECE].numpy().data)
    return f"{size} bytes, {digest.hexdigest()[:16]}"
