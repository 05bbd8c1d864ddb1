"""Opening and reading `.safetensors` files; nothing else is ever opened, and nothing unpickled.

A file is mapped, not read: its pages come in as they are touched. They stay in the process until
the mapping ends, so whoever copies tensors maps the file anew every now and then.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sgm.errors import UserError

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

# safetensors refuses longer headers; a length beyond it is some other format's first bytes.
MAX_HEADER_BYTES = 100_000_000
# First bytes of files that are often found under a weights file's name, and what to do.
_LFS = "a git-LFS pointer and not the file; fetch it with `git lfs pull`"
_MAGIC = (
    (b"version https://git-lfs", _LFS),
    (b"PK\x03\x04", "a pickled PyTorch archive; pickles are never opened, get the .safetensors"),
    (b"\x80", "a Python pickle; pickles are never opened, get the .safetensors"),
    (b"\x1f\x8b", "gzip-compressed; unpack it first"),
)


class CheckpointError(UserError):
    """A weights file that cannot be used; one sentence with the cause and what to do."""


@dataclass(frozen=True)
class Part:
    """A stored tensor; `word` is the format's for its type."""

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
    """The tensors of some names in that order, for a consumer that keeps copies and not them. After
    so many bytes (`block`) the file is mapped anew, which bounds the resident pages."""
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
    """What a file holds, by name, and its metadata; no tensor is read."""
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


def why_unreadable(path: Path) -> str:
    """The likely reason why a file is no readable safetensors file, and the remedy."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
            if size == 0:
                return "it is empty; download it again"
            if size < 8:
                return f"it ends after {size} bytes; download it again"
            (length,) = struct.unpack("<Q", head[:8])
            if length > MAX_HEADER_BYTES and 8 + length > size:  # so these bytes are no length
                return f"it is {_other_format(head)}"
            if length > MAX_HEADER_BYTES:
                return (
                    f"its header claims {length} bytes, more than the {MAX_HEADER_BYTES} that the "
                    "format allows; download it again"
                )
            if 8 + length > size:
                return f"it ends inside its header, at {size} bytes; download it again"
            file.seek(8)
            header = json.loads(file.read(length))
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
        if wanted != size:
            return f"it has {size} bytes instead of {wanted}; download it again"
    except OSError as error:
        return f"the system says: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return "its header is damaged; download it again"
    return "its header contradicts itself; download it again"


def _other_format(head: bytes) -> str:
    """The format that the first bytes of a file speak of."""
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page; log in to the download page or accept the licence there"
    meanings = (meaning for magic, meaning in _MAGIC if head.startswith(magic))
    return next(meanings, "another kind of file; download the .safetensors file")
