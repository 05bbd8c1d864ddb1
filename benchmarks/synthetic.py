"""A random checkpoint in the form of the published file, written without being held in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from sgm.io.checkpoint import build_model
from sgm.io.convert import Entry, header, target_shape
from sgm.io.files import write_atomically

# Elements of the random block that is written again and again. It is odd, so that no width of a
# network is a multiple of it, and rows differ.
BLOCK = 1_000_003
POSITION_IDS = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"


def published_entries(config: Path) -> list[Entry]:
    """Names, types and shapes of the file that a configuration's network is published in: fp16,
    linear projections, and the positions that the network does without."""
    entries = [
        Entry(name, torch.float16, target_shape(name, tuple(tensor.shape), conv=False))
        for name, tensor in build_model(config).state_dict().items()
    ]
    entries.append(Entry(POSITION_IDS, torch.int64, (1, 77)))
    return sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))


def write_checkpoint(path: Path, entries: list[Entry], seed: int = 0) -> int:
    """Write a checkpoint with random weights; its size in bytes.

    The weights keep numbers finite through any depth: about 1 for the scales of norms, small for
    biases, and of deviation 1 / sqrt(inputs) for everything with inputs.

    Raises:
        UserError: the file cannot be written.
    """
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
    head = header(entries, {"made_by": "benchmarks/synthetic.py", "seed": str(seed)})

    def write(file: BinaryIO) -> None:
        file.write(head)
        for entry in entries:
            for piece in _pieces(entry, block):
                file.write(piece)

    write_atomically(path, write)
    return len(head) + sum(entry.bytes for entry in entries)


def _pieces(entry: Entry, block: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, a few megabytes at a time."""
    if not entry.dtype.is_floating_point:
        yield memoryview(torch.arange(math.prod(entry.shape)).numpy().tobytes())
        return
    if len(entry.shape) >= 2:
        values = block / math.sqrt(math.prod(entry.shape[1:]))
    else:
        values = 0.02 * block + (1 if entry.name.endswith("weight") else 0)
    values, left = values.to(entry.dtype), math.prod(entry.shape)
    while left > 0:
        piece = values[:left]
        yield memoryview(piece.view(torch.uint8).numpy())
        left -= len(piece)
