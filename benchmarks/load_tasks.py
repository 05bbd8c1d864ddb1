"""The measurements of `benchmarks/load.py`, each in a process of its own so that peaks are clean.

`python -m benchmarks.load_tasks '{"task": ..., ...}'` prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.memory import Watch
from sgm import runtime
from sgm.cli.program import start
from sgm.inference.networks import Networks
from sgm.inference.noise import NamedNoise
from sgm.io.checkpoint import build_model, load_weights
from sgm.io.convert import DTYPES, convert, plan
from sgm.modules.diffusionmodules.sampling import Solver
from sgm.modules.diffusionmodules.schedules import published_steps
from sgm.specs import LATENT_CHANNELS, LATENT_FACTOR, Weights
from sgm.words import Precision

PROMPT = "a photograph of a horse on a grassland"
PIECE = 8 * 2**20  # bytes of one read

Figures = dict[str, object]


def drop_from_cache(path: Path) -> None:
    """Ask the system to forget a file's pages, so that it is read from the disk again."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(file: str, cold: bool) -> Figures:
    """Seconds of reading a file from end to end."""
    if cold:
        drop_from_cache(Path(file))
    buffer, began = bytearray(PIECE), time.perf_counter()
    with open(file, "rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass
    return {"seconds": time.perf_counter() - began}


def loaded(config: str, file: str, precision: str) -> Networks:
    """The networks of a file, loaded on the CPU as a run loads them."""
    engine = build_model(Path(config))
    dtype = runtime.dtype_of(Precision(precision))
    load_weights(engine, Weights(Path(file)), torch.device("cpu"), dtype, progress=False)
    return Networks(engine.eval().to(memory_format=torch.channels_last))


def load(config: str, file: str, precision: str, cold: bool) -> Figures:
    """Seconds and peak memory of building the networks and loading a file into them."""
    if cold:
        drop_from_cache(Path(file))
    with Watch() as watch:
        began = time.perf_counter()
        networks = loaded(config, file, precision)
        seconds = time.perf_counter() - began
    weights = sum(tensor.nbytes for tensor in networks.engine.state_dict().values())
    return {"weights": weights, "seconds": seconds, **watch.figures()}


def conversion(file: str, target: str, precision: str) -> Figures:
    """Seconds and peak memory of converting a file; bytes of its largest tensor."""
    dtype = DTYPES[precision]
    largest = max(entry.bytes for entry in plan(Path(file), dtype, conv=True)[0])
    with Watch() as watch:
        began = time.perf_counter()
        size = convert(Path(file), Path(target), dtype, force=True)
        seconds = time.perf_counter() - began
    return {"bytes": size, "largest": largest, "seconds": seconds, **watch.figures()}


def digest(config: str, file: str, precision: str) -> Figures:
    """One hash of all weights as they are once loaded."""
    state = loaded(config, file, precision).engine.state_dict()
    return {"digest": fingerprint([state[name] for name in sorted(state)])}


def fingerprint(tensors: Sequence[Tensor]) -> str:
    """A hash over the types, shapes and bits of tensors, whatever their layout in memory."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def run(config: str, file: str, precision: str, stage: str, latent: Sequence[int]) -> Figures:
    """One stage of an edit on latents of [height, width]: its seconds, peak memory and result."""
    with Watch() as watch, torch.inference_mode():
        networks = loaded(config, file, precision)
        began = time.perf_counter()
        result = STAGES[stage](networks, list(latent))
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        **watch.figures(),
        "finite": bool(result.isfinite().all()),
        "deviation": result.float().std().item(),
        "digest": fingerprint([result]),
    }


def _latents(networks: Networks, latent: list[int]) -> Tensor:
    return NamedNoise(0)("latents", (1, LATENT_CHANNELS, *latent)).to(networks.device)


def _encode(networks: Networks, latent: list[int]) -> Tensor:
    size = [length * LATENT_FACTOR for length in latent]
    return networks.encode(NamedNoise(0)("picture", (3, *size)).tanh(), NamedNoise(0), "picture")


def _step(networks: Networks, latent: list[int]) -> Tensor:
    """The text towers and the first of 50 guided steps: the UNet with a batch of two."""
    size = [length * LATENT_FACTOR for length in latent]
    c, uc = networks.condition(PROMPT, "", size)
    solver = Solver(published_steps(50))
    sigmas = solver.sigmas(networks.engine.denoiser.discretization)
    x = solver.start(_latents(networks, latent), sigmas)
    return solver.step(networks.denoiser(c, uc, scale=6.0), x, 0, sigmas)[0]


def _decode(networks: Networks, latent: list[int]) -> Tensor:
    return networks.decode(_latents(networks, latent))


STAGES: dict[str, Callable[[Networks, list[int]], Tensor]] = {
    "encode": _encode,
    "step": _step,
    "decode": _decode,
}
TASKS: dict[str, Callable[..., Figures]] = {
    "read": read,
    "load": load,
    "convert": conversion,
    "digest": digest,
    "run": run,
}


def main() -> int:
    """Run the task of the command line and print its figures; the exit code."""
    arguments = json.loads(sys.argv[1])
    print(json.dumps(TASKS[arguments.pop("task")](**arguments)))
    return 0


if __name__ == "__main__":
    start("benchmarks.load_tasks", main)
