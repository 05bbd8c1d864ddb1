"""How long a call takes, and how much memory: warmed up, synchronised, measured from outside."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

Call = Callable[[], object]

# Runs before the first that counts: caches fill, kernels are chosen or compiled.
WARM_UP = {"cuda": 5, "cpu": 1}
# As many runs as fit into the budget, but so many at least and at most.
BUDGET_SECONDS = 10.0
MIN_RUNS, MAX_RUNS = 3, 50


@dataclass(frozen=True)
class Latency:
    """Milliseconds that a call takes: median, 10th and 90th percentile of its runs."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, milliseconds: list[float]) -> "Latency":
        """The latency of runs that took so many milliseconds; percentiles between two runs are
        interpolated."""
        return cls(*np.percentile(milliseconds, [50, 10, 90]).tolist())

    def figures(self) -> dict[str, float]:
        """For a JSON file, rounded to the microsecond."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def time_once(call: Call, device: torch.device) -> float:
    """Milliseconds of one run: by events on a CUDA device, else by the clock."""
    synchronise(device)
    if device.type == "cuda":
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
        synchronise(device)
        return start.elapsed_time(end)
    began = time.perf_counter()
    call()
    synchronise(device)
    return (time.perf_counter() - began) * 1e3


def measure(
    calls: Mapping[str, Call], device: torch.device, runs: int | None = None
) -> dict[str, Latency]:
    """Time some calls in turns, so that whatever else the machine does meets all of them. Of each
    are made so many runs, by default 3 to 50, as many as take 10 s for the slowest."""
    slowest = 0.0
    for call in calls.values():
        for _ in range(WARM_UP.get(device.type, 1)):
            milliseconds = time_once(call, device)
        slowest = max(slowest, milliseconds / 1e3)
    if runs is None:
        runs = min(MAX_RUNS, max(MIN_RUNS, int(BUDGET_SECONDS / max(slowest, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            times[name].append(time_once(call, device))
    return {name: Latency.of(values) for name, values in times.items()}


def peak_memory_mb(call: Call, device: torch.device) -> float | None:
    """Megabytes (10^6 bytes) at the peak of one run, weights and recording included.

    On a CUDA device those of its allocator during this run; elsewhere the largest size that the
    process has had until the end of it. None on a system that does not tell.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) / 1e6
    call()
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
