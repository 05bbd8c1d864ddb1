"""Times and errors of single operators, beside what the device does at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Relative error ||out - exact|| / ||exact|| that an operator may have.
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
COPIES = 4


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best: bytes and operations a second."""

    bandwidth: float
    rate: float

    def floor_ms(self, moved: float, operations: float) -> float:
        return 1e3 * max(moved / self.bandwidth, operations / self.rate)


def milliseconds(step: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a step; on CUDA as a graph, so that launching it costs nothing."""
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)
    import triton.testing

    step()  # compiles and tunes outside of the capture
    return float(triton.testing.do_bench_cudagraph(step, rep=4 * repeats, return_mode="median"))


def measure_ceilings(device: torch.device, dtype: torch.dtype, quick: bool) -> Ceilings:
    """A copy of 1 GB and a product of two 8192 x 8192 matrices; tiny ones when quick."""
    length, side, repeats = (2**20, 64, 1) if quick else (2**30, 8192, 5)
    source = torch.randint(0, 255, (length,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), device, repeats)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = milliseconds(lambda: a @ b, device, repeats)
    return Ceilings(2e3 * length / copy, 2e3 * side**3 / product)


class Bench:
    """Checks and times on one device in one dtype; every row goes to `rows`, to `told` and to
    stdout."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        quick: bool,
        told: Callable[[dict[str, object]], None] = lambda row: None,
    ) -> None:
        self.told = told
        self.device, self.dtype, self.quick = device, dtype, quick
        self.repeats, self.copies = (1, 1) if quick else (5, COPIES)
        self.ceilings = measure_ceilings(device, dtype, quick)
        self.rows: list[dict[str, object]] = []

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def time(self, step: Callable[[int], object]) -> float:
        """Time of `step(copy)`, run for each copy in turn."""
        whole = milliseconds(
            lambda: [step(copy) for copy in range(self.copies)], self.device, self.repeats
        )
        return whole / self.copies

    def add(
        self,
        name: str,
        times: dict[str, float],
        elements: float,
        operations: float,
        error: float | None,
    ) -> None:
        """A row: times by variant, elements moved at least, multiply-adds twice."""
        moved = elements * torch.finfo(self.dtype).bits / 8
        floor, best = self.ceilings.floor_ms(moved, operations), min(times, key=times.__getitem__)
        limit = LIMITS[self.dtype]
        row = {
            "operator": name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "bytes": moved,
            "operations": operations,
            "floor_ms": floor,
            "ms": times,
            "best": best,
            "achieved": floor / times[best],
            "error": error,
            "right": None if error is None else error <= limit,  # NaN is not
        }
        self.rows.append(row)
        listed = "  ".join(f"{variant} {ms:.4f}" for variant, ms in times.items())
        told = "" if error is None else f"  error {error:.1e}"
        self.told(row)
        print(f"{name:44} {row['dtype']:8} floor {floor:.4f}  {listed}{told}")


def relative_error(out: Tensor, exact: Tensor) -> float:
    return float((out.double() - exact).norm() / exact.norm())
