"""Compile the Triton kernels for cards that are not there.

`python -m tests.sparse.compile_kernels 80 90` prints a JSON object: a row a kernel; how many were
launched while they were compiled beforehand; and how many were compiled afterwards.

Runs the backend's own launchers, on CPU tensors, with a driver that compiles and launches nothing:
so kernels are specialised exactly as on a card. A process of its own, since triton decides when it
is imported whether kernels are interpreted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
import triton.testing
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from sgm.sparse.active import ActiveSet
from sgm.sparse.backends import (
    triton_attention,
    triton_conv,
    triton_gated,
    triton_norm,
    triton_rows,
    triton_tiles,
)
from sgm.sparse.backends.torch_ref import Prologue
from sgm.sparse.backends.triton_ops import TritonOps
from sgm.sparse.backends.triton_tiles import (
    FLOAT_GATED_TILES,
    FLOAT_TILES,
    HALF_ATTENTION_TILES,
    HALF_GATED_TILES,
    HALF_TILES,
)
from sgm.sparse.norm import Affine, Moments, RecordedRows

KERNELS = {
    "attention": triton_attention.attention_kernel,
    "conv": triton_conv.conv_kernel,
    "finish": triton_conv.finish_kernel,
    "gated": triton_gated.gated_kernel,
    "changes": triton_norm.changes_kernel,
    "group_norm": triton_norm.group_norm_kernel,
    "layer_norm": triton_norm.layer_norm_kernel,
    "gather": triton_rows.gather_kernel,
    "scatter": triton_rows.scatter_kernel,
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class NoCard:
    """What the driver asks of a card, and of what it has loaded onto one."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def load_binary(self, *arguments: object) -> tuple[int, int, int, int, int]:
        return 0, 1, 32, 0, 1024  # module, function, registers, spills, threads

    def unload_module(self, module: object) -> None: ...


class NoLaunch:
    """A launcher that launches nothing, but counts."""

    count = 0

    def __init__(self, source: object, metadata: object) -> None: ...

    def __call__(self, *arguments: object) -> None:
        NoLaunch.count += 1


class CompileOnly:
    """A driver of triton's for a card of one architecture, which counts as a device of its own."""

    launcher_cls, utils = NoLaunch, NoCard()

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def set_current_device(self, device: int) -> None: ...

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


def _once(step: Any, **timing: object) -> list[float]:
    """In place of timing a kernel: it is compiled, and no tile is better than another."""
    step()
    return [1.0, 1.0, 1.0]


def _set(outputs: int, inputs: int, taps: int) -> ActiveSet:
    return ActiveSet(
        (inputs, 1), (outputs, 1), torch.arange(outputs), torch.zeros(outputs, taps).long()
    )


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def convolve(
    dtype: torch.dtype, n: int, channels: int, wide: int, ending: bool = False, put: bool = False
) -> None:
    """A 3x3 convolution of two samples, with all that may follow it."""
    x, active = _empty(dtype, 2, 2 * n, channels), _set(n, 2 * n, 9)
    weight = _empty(dtype, wide, channels, 3, 3).to(memory_format=torch.channels_last)
    bias, rows = _empty(dtype, wide), _empty(dtype, 2, n, wide)
    if put:
        TritonOps().conv_scatter(
            x, active, weight, bias, Prologue(), rows, rows.clone(), in_place=True
        )
    else:
        terms = {"embedding": rows[:, 0], "residual": rows} if ending else {}
        TritonOps().conv(x, active, weight, bias, **terms)


def normalise(dtype: torch.dtype, n: int, channels: int) -> None:
    """Both norms, for these masks and for any."""
    ops, rows, active = TritonOps(), _empty(dtype, 2, n, channels), _set(n, 4 * n, 1)
    moments = Moments(*(_empty(torch.float32, 2, channels) for _ in range(2)))
    norm = nn.GroupNorm(32, channels, dtype=dtype)
    for recorded in (
        RecordedRows(moments, 4 * n, rows, rows),
        RecordedRows(moments, 4 * n, _empty(dtype, 2, 4 * n, channels), torch.arange(n), True),
        RecordedRows(moments, 4 * n, rows),
    ):
        ops.group_norm(rows, active, recorded, norm, silu=recorded.around is not None)
    ops.layer_norm(rows, rows, nn.LayerNorm(channels, dtype=dtype))


def move(dtype: torch.dtype, n: int, channels: int) -> None:
    """Gather with a prologue, scatter with a residual."""
    ops, x, active = TritonOps(), _empty(dtype, 2, 4 * n, channels), _set(n, 4 * n, 1)
    affine = Affine(*(_empty(torch.float32, 2, channels) for _ in range(2)))
    rows = ops.gather(x, active, Prologue(affine, silu=True))
    ops.scatter(x, active, rows, x.clone(), in_place=True)


def attend(dtype: torch.dtype, n: int, channels: int) -> None:
    """Attention of two samples to all pixels, whose keys and values lie side by side, and to a
    text."""
    ops, q, kv = TritonOps(), _empty(dtype, 2, n, channels), _empty(dtype, 2, 512, 2 * channels)
    ops.attention(q, *kv.chunk(2, dim=-1), channels // 64)
    ops.attention(q, *_empty(dtype, 2, 2, 77, channels), channels // 64)


def gate(dtype: torch.dtype, n: int, channels: int) -> None:
    """The gated layer of a transformer block."""
    weight, bias = _empty(dtype, 8 * channels, channels), _empty(dtype, 8 * channels)
    TritonOps().gated(_empty(dtype, 2, n, channels), weight, bias)


def launch(newest: bool) -> None:
    """Every kernel at sizes of SDXL; of the products every tile in bfloat16 for the newest card,
    else the largest, and one where another dtype makes another kernel."""
    tiles, bf16, fp32 = triton_tiles, torch.bfloat16, torch.float32
    if not newest:
        tiles.HALF_TILES, tiles.HALF_GATED_TILES = HALF_TILES[-1:], HALF_GATED_TILES[1:2]
        tiles.HALF_ATTENTION_TILES = HALF_ATTENTION_TILES[-1:]
    torch.backends.cuda.matmul.allow_tf32 = False
    convolve(bf16, 100, 1280, 1280)  # in parts
    gate(bf16, 100, 1280)
    attend(bf16, 100, 1280)
    tiles.HALF_TILES, tiles.FLOAT_TILES = HALF_TILES[1:2], FLOAT_TILES[-1:]
    tiles.FLOAT_GATED_TILES = FLOAT_GATED_TILES[:1]
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        convolve(fp32, 100, 640, 1280)
        attend(fp32, 100, 640)
    gate(fp32, 100, 640)
    convolve(bf16, 1216, 640, 320, ending=True)
    if newest:
        convolve(bf16, 1216, 4, 320)
        convolve(bf16, 1216, 320, 4, put=True)
    for dtype in (bf16, fp32) if newest else (bf16,):
        normalise(dtype, 300, 960)
        move(dtype, 300, 320)


def compiled(arch: int) -> Iterator[dict[str, object]]:
    """A row for every kernel that has been compiled for an architecture."""
    for name, kernel in KERNELS.items():
        for made in kernel.device_caches[arch][0].values():
            ptx = made.asm["ptx"]
            with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                file.write(made.asm["cubin"])
                file.flush()
                command = [str(TOOLS / "cuobjdump"), "-res-usage", file.name]
                used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                stack = int(re.search(r"STACK:(\d+)", used)[1])
                command = [str(TOOLS / "nvdisasm"), "-c", file.name]
                code = (
                    ""
                    if not stack
                    else subprocess.run(command, capture_output=True, text=True, check=True).stdout
                )
            yield {
                "kernel": name,
                "arch": arch,
                "arguments": list(map(str, made.src.signature.values())),
                "constants": {
                    made.src.fn.arg_names[place[0]]: str(value)
                    for place, value in made.src.constants.items()
                },
                "shared": made.metadata.shared,
                "registers": int(re.search(r"REG:(\d+)", used)[1]),
                "spills": len(re.findall(r"\bSTL\b", code)),  # a stack has calls' frames, too
                "wgmma": len(re.findall(r"wgmma\.mma_async\S*", ptx)),
                "mma": len(re.findall(r"mma\.sync\S*", ptx)),
            }


def main() -> None:
    """Compile for the architectures named, the newest last, and print what came out."""
    triton.testing.do_bench = _once
    triton_tiles.multiprocessors = lambda device: 132
    rows: list[dict[str, object]] = []
    launched = late = 0
    for arch in map(int, sys.argv[1:]):
        driver.set_active(CompileOnly(arch))
        triton_tiles._tuned.cache_clear()
        triton_tiles.HALF_TILES, triton_tiles.FLOAT_TILES = HALF_TILES, FLOAT_TILES
        triton_tiles.HALF_GATED_TILES = HALF_GATED_TILES
        triton_tiles.HALF_ATTENTION_TILES = HALF_ATTENTION_TILES
        triton_tiles.FLOAT_GATED_TILES = FLOAT_GATED_TILES
        step = partial(launch, newest=arch == int(sys.argv[-1]))
        before = NoLaunch.count
        TritonOps().prepare(step)
        launched += NoLaunch.count - before
        found = list(compiled(arch))
        step()
        late += sum(len(kernel.device_caches[arch][0]) for kernel in KERNELS.values()) - len(found)
        rows += found
    json.dump({"rows": rows, "launched": launched, "late": late}, sys.stdout)


if __name__ == "__main__":
    main()
