"""How Triton kernels are called, and how all that a pass needs are compiled side by side.

A pass of SDXL needs about a hundred kernels, each with a tile to choose. Compiled one after the
other, as they are met, they take minutes; by all cores beforehand, seconds.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton
from triton.runtime._async_compile import active_mode

Kernel = triton.JITFunction | triton.runtime.Autotuner
Grid = tuple[int, ...] | Callable[[dict[str, int]], tuple[int, ...]]


def call(kernel: Kernel, grid: Grid) -> Callable[..., Any]:
    """What launches a kernel on a grid of programs; within `compile_step` it is compiled only, with
    every tile that there is to choose from."""
    if active_mode.get() is None:
        return kernel[grid]
    return functools.partial(kernel.warmup, grid=grid)


def compile_step(step: Callable[[], object]) -> None:
    """Run a step to see which kernels it calls, and compile those, by all cores. No kernel is
    launched: what the step computes from their results is of no use.

    A kernel that does not compile is left to its first launch, which tells why.
    """
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool, triton.AsyncCompileMode(pool, ignore_errors=True):
        step()
