"""Where the recordings of a session fit: what is free, and what was asked for."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from sgm.errors import UserError
from sgm.inference.stores import DeviceStore, DiskStore, HostStore, Store
from sgm.words import RecordingMemory

# From the bytes of all recordings together to the store that will keep them.
MakeStore = Callable[[int], Store]
SHARE = 0.8  # of the free memory that recordings may take


def make_store(
    needed: int,
    device: torch.device,
    memory: RecordingMemory = RecordingMemory.AUTO,
    folder: Path | None = None,
) -> Store:
    """A place for recordings of so many bytes; UserError if there is no room.

    Args:
        needed: bytes.
        device: of the networks.
        memory: where; `auto` takes the first of device, host and disk that has room.
        folder: an existing one for the disk; None where the disk is not to be used.
    """
    order = tuple(RecordingMemory)[1:] if memory is RecordingMemory.AUTO else (memory,)
    free = {place: free_memory(place, device, folder) for place in order}
    for place in order:
        if needed <= free[place]:
            break
    else:
        rooms = ", ".join(f"{free[place] / 1e9:.1f} GB on {place}" for place in order)
        raise UserError(
            f"The recordings take {needed / 1e9:.1f} GB and there is room for {rooms}; make room, "
            "or take fewer steps, a smaller picture, bf16, or another place (device, host, or disk "
            "with a folder)."
        )
    if place is RecordingMemory.DEVICE:
        return DeviceStore()
    if place is RecordingMemory.HOST:
        return HostStore(device)
    assert folder is not None  # or there would have been no room
    return DiskStore(folder, device)


def free_memory(place: RecordingMemory, device: torch.device, folder: Path | None) -> int:
    """Bytes that recordings may take at a place: of memory four fifths of what is free, of a disk
    all; none on disk without a folder."""
    if place is RecordingMemory.DISK:
        return 0 if folder is None else shutil.disk_usage(folder).free
    if place is RecordingMemory.DEVICE and device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    return int(SHARE * free_host_memory())


def free_host_memory() -> int:
    """Bytes of host memory that can be had without swapping; half of all memory where the system
    does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        [line] = [line for line in lines if line.startswith("MemAvailable:")]
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
