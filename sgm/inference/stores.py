"""Where the recordings of a session are kept: on the device, in host memory, or on disk.

A file on disk is a safetensors file: one tensor for every recorded tensor, named
`<site>|<key>|<kind>|<number>`, and the sizes of maps in its metadata.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sgm.errors import UserError
from sgm.sparse.norm import Affine, Moments
from sgm.sparse.recording import Quantised, Recorded, Recording, each_tensor, tensors_of
from sgm.words import RecordingMemory

KINDS = {"affine": Affine, "moments": Moments, "quantised": Quantised}
SEPARATOR = "|"


class Store(ABC):
    """Recordings by name; what comes out is on the device of the networks."""

    place: RecordingMemory

    @abstractmethod
    def put(self, name: str, recording: Recording) -> None:
        """Keep a recording; one of the same name is replaced."""

    @abstractmethod
    def names(self) -> set[str]:
        """Names of all recordings that are kept."""

    @abstractmethod
    def forget(self, name: str) -> None:
        """Drop a recording, and free its memory or its file."""

    @abstractmethod
    def get(self, name: str) -> Recording:
        """A kept recording.

        Raises:
            UserError: it is on disk and damaged.
        """


class DeviceStore(Store):
    """Recordings on the device where they were made."""

    place = RecordingMemory.DEVICE

    def __init__(self) -> None:
        self._kept: dict[str, Recording] = {}

    def put(self, name: str, recording: Recording) -> None:
        """Keeps a copy: a network that runs as a CUDA graph records into the same memory
        again."""
        self._kept[name] = each_tensor(recording, Tensor.clone)

    def names(self) -> set[str]:
        return set(self._kept)

    def forget(self, name: str) -> None:
        del self._kept[name]

    def get(self, name: str) -> Recording:
        return self._kept[name]


class HostStore(DeviceStore):
    """Recordings of a GPU in pinned host memory."""

    place = RecordingMemory.HOST

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def put(self, name: str, recording: Recording) -> None:
        def copied(tensor: Tensor) -> Tensor:
            pinned = self.device.type == "cuda"
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            return host.copy_(tensor)

        self._kept[name] = each_tensor(recording, copied)

    def get(self, name: str) -> Recording:
        return each_tensor(self._kept[name], lambda t: t.to(self.device, non_blocking=True))


class DiskStore(Store):
    """Recordings as files of a folder, with a checksum each, read by memory mapping."""

    place = RecordingMemory.DISK

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.checksums: dict[str, str] = {}
        self._checked: set[str] = set()

    def put(self, name: str, recording: Recording) -> None:
        """The file is written under another name first, and renamed when it is complete."""
        tensors, sizes = _flat(recording)
        path = self._path(name)
        part = path.with_suffix(".part")
        try:
            save_file(tensors, part, metadata={"sizes": json.dumps(sizes)})
            self.checksums[name] = _checksum(part)
            os.replace(part, path)
        except (SafetensorError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise UserError(f"Recording {path} cannot be written: {reason}.") from error
        finally:
            part.unlink(missing_ok=True)
        self._checked.add(name)

    def names(self) -> set[str]:
        """Names with a checksum: what was put, or what a manifest lists."""
        return set(self.checksums)

    def get(self, name: str) -> Recording:
        """The checksum is compared when a file is first read."""
        path = self._path(name)
        try:
            if name not in self._checked and _checksum(path) != self.checksums[name]:
                raise UserError(f"Recording {path} is damaged; record again.")
            self._checked.add(name)
            tensors = load_file(path, device=str(self.device))
            return _unflat(tensors, _sizes(path))
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"Recording {path} is missing or damaged; record again.") from error

    def forget(self, name: str) -> None:
        del self.checksums[name]
        self._path(name).unlink(missing_ok=True)

    def size_in_bytes(self) -> int:
        """Bytes of all files; a missing one counts as none, and is refused when it is read."""
        paths = map(self._path, self.checksums)
        return sum(path.stat().st_size for path in paths if path.is_file())

    def remove(self) -> None:
        """Delete all files, also one that is being written."""
        for path in [*map(self._path, self.checksums), *self.folder.glob("*.part")]:
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


class Overlay(Store):
    """A store over another: recordings of some names stay in the device's memory, and are gone with
    it; all others go into the store below.

    Args:
        store: the store below.
        passing: whether the recording of a name stays in memory.
    """

    def __init__(self, store: Store, passing: Callable[[str], bool]) -> None:
        self.place = store.place
        self._store, self._passing, self._memory = store, passing, DeviceStore()

    def _of(self, name: str) -> Store:
        return self._memory if self._passing(name) else self._store

    def put(self, name: str, recording: Recording) -> None:
        self._of(name).put(name, recording)

    def names(self) -> set[str]:
        return self._store.names() | self._memory.names()

    def forget(self, name: str) -> None:
        self._of(name).forget(name)

    def get(self, name: str) -> Recording:
        return self._of(name).get(name)


def _flat(recording: Recording) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Tensors by the names of the file, and the sizes of maps."""
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, list[int]] = {}
    written: set[int] = set()  # a file may not hold the same memory twice
    for (site, key), value in recording.values.items():
        if isinstance(value, tuple):
            sizes[f"{site}{SEPARATOR}{key}"] = list(value)
            continue
        kind = next((n for n, c in KINDS.items() if isinstance(value, c)), "tensor")
        for number, part in enumerate(tensors_of(value)):
            name = SEPARATOR.join((site, key, kind, str(number)))
            part = part.contiguous()
            tensors[name] = part.clone() if part.data_ptr() in written else part
            written.add(part.data_ptr())
    return tensors, sizes


def _unflat(tensors: dict[str, Tensor], sizes: dict[str, list[int]]) -> Recording:
    """The inverse of `_flat`; ValueError for a name that is none of ours."""
    recording = Recording()
    parts: dict[tuple[str, str, str], dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        site, key, kind, number = name.split(SEPARATOR)
        parts.setdefault((site, key, kind), {})[int(number)] = tensor
    for (site, key, kind), found in parts.items():
        ordered = [found[number] for number in sorted(found)]
        value: Recorded = ordered[0] if kind == "tensor" else KINDS[kind](*ordered)
        recording.values[site, key] = value
        if isinstance(value, Quantised):
            recording.dtype = value.codes.dtype
    for name, (height, width) in sizes.items():
        site, key = name.split(SEPARATOR)
        recording.values[site, key] = (height, width)
    return recording


def _sizes(path: Path) -> dict[str, list[int]]:
    """The sizes of maps in a file's metadata."""
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {})["sizes"])


def _checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
