"""Rewriting a checkpoint: precision and layout, one tensor in memory at a time.

safetensors is a length (8 bytes, little endian), a JSON header of that length, and the tensors'
bytes in the header's order. All shapes are known before any tensor is read, so the header can be
written first and the tensors can follow one by one.
"""

import json
import logging
import math
import re
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from sgm.errors import UserError
from sgm.io import weights_file
from sgm.io.files import write_atomically
from sgm.io.weights_file import open_weights, read_in_turn

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_WORDS = {dtype: word for word, dtype in weights_file.DTYPES.items()}
# The layers that published files hold as linear and the published port turns into 1x1 convolutions.
PROJECTION = re.compile(r"(^|\.)diffusion_model\..*\.proj_(in|out)\.weight$")


@dataclass(frozen=True)
class Entry:
    """One tensor of the new file: its name, and the dtype and shape it will have."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def target_shape(name: str, shape: tuple[int, ...], conv: bool) -> tuple[int, ...]:
    """The shape of a tensor in the new file: projections as 1x1 convolutions, or as linear."""
    if not PROJECTION.search(name):
        return shape
    if conv and len(shape) == 2:
        return (*shape, 1, 1)
    if not conv and len(shape) == 4 and shape[2:] == (1, 1):
        return shape[:2]
    return shape


def plan(source: Path, dtype: torch.dtype, conv: bool) -> tuple[list[Entry], dict[str, str]]:
    """The entries of the new file, and the source's metadata. Wide types come first, so that every
    tensor starts at a multiple of its type's size, which mapping needs. UserError for a type that
    is not converted."""
    entries = []
    with open_weights(source) as file:
        for name in sorted(file.keys()):
            part = file.get_slice(name)
            word, shape = part.get_dtype(), tuple(part.get_shape())
            old = weights_file.DTYPES.get(word)
            if old is None:
                raise UserError(
                    f"Tensor {name} of {source} has type {word}, which has no use here."
                )
            kind = dtype if old.is_floating_point else old
            entries.append(Entry(name, kind, target_shape(name, shape, conv)))
        entries.sort(key=lambda entry: (-entry.dtype.itemsize, entry.name))
        return entries, dict(file.metadata() or {})


def convert(
    source: Path, target: Path, dtype: torch.dtype, conv: bool = True, force: bool = False
) -> int:
    """Write `target` from `source`, verify it and return its size in bytes.

    Floating tensors are cast, integers kept. The new file appears under its name only when it is
    complete and its tensors have been read back equal.

    Raises:
        UserError: the two are the same file, the target exists (without `force`), the disk lacks
            room, the source cannot be read, or what was written differs.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise UserError(f"{target} is the source itself; name another file to write.")
    if target.exists() and not force:
        raise UserError(f"{target} exists; add --force to replace it, or name another file.")
    entries, metadata = plan(source, dtype, conv)
    head = header(entries, metadata)
    size = len(head) + sum(entry.bytes for entry in entries)
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    logger.info("%s will take %.2f GB; %.2f GB are free.", target, size / 1e9, free / 1e9)
    if size > free:
        raise UserError(
            f"{target} needs {size / 1e9:.2f} GB and {folder} has {free / 1e9:.2f} GB free; "
            "make room or choose another disk."
        )

    def write(file: BinaryIO) -> None:
        file.write(head)
        for entry, tensor in _converted(source, entries, "converting"):
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
            assert tensor.dtype == entry.dtype
        file.flush()
        _verify(source, Path(file.name), entries)

    write_atomically(target, write)
    return size


def header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON header of a file, padded so that tensors start at a multiple of 8 bytes."""
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for entry in entries:
        table[entry.name] = {
            "dtype": _WORDS[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.bytes],
        }
        offset += entry.bytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _converted(source: Path, entries: list[Entry], title: str) -> Iterator[tuple[Entry, Tensor]]:
    """Each entry with its converted tensor, one in memory at a time, behind a progress bar."""
    total = sum(entry.bytes for entry in entries)
    stored = read_in_turn(source, (entry.name for entry in entries))
    with tqdm(total=total, desc=title, unit="B", unit_scale=True) as bar:
        for entry, (_, tensor) in zip(entries, stored, strict=True):
            yield entry, tensor.reshape(entry.shape).to(entry.dtype).contiguous()
            bar.update(entry.bytes)


def _verify(source: Path, written: Path, entries: list[Entry]) -> None:
    """Read the new file back and compare every tensor with a fresh conversion."""
    found = read_in_turn(written, (entry.name for entry in entries))
    for (entry, tensor), (_, stored) in zip(
        _converted(source, entries, "verifying"), found, strict=True
    ):
        same = stored.dtype == tensor.dtype and stored.shape == tensor.shape
        # As bytes: NaN would differ from itself.
        bits = (t.reshape(-1).view(torch.uint8) for t in (stored, tensor))
        if not (same and torch.equal(*bits)):
            raise UserError(f"Tensor {entry.name} differs after writing; the disk may be failing.")
