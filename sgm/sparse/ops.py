"""Choice of the backend that runs the sparse operators."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sgm.sparse.backends.torch_ref import TorchOps

CPU = torch.device("cpu")
OLDEST_TRITON = (3, 5)  # compiles many kernels at a time


@dataclass(frozen=True)
class BackendEntry:
    """A backend that can be chosen.

    Attributes:
        make: its operators.
        obstacle: why it cannot run on a device; None if it can.
        devices: device types on which "auto" takes it; None for all.
    """

    make: Callable[[], TorchOps]
    obstacle: Callable[[torch.device], str | None]
    devices: tuple[str, ...] | None = None

    def suits(self, device: torch.device) -> bool:
        """Whether "auto" may take it."""
        return (self.devices is None or device.type in self.devices) and not self.obstacle(device)


def _make_triton() -> TorchOps:
    # Imported on demand: it needs triton, which is optional and slow to import.
    from sgm.sparse.backends.triton_ops import TritonOps

    return TritonOps()


def _triton_obstacle(device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # on the CPU, for tests
    if device.type != ("cpu" if interpreted else "cuda"):
        needed = "the CPU, since TRITON_INTERPRET is set" if interpreted else "a CUDA device"
        return f"it needs {needed}, and the device is {device.type}"
    version = importlib.import_module("triton").__version__
    if tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON:
        return f"triton {version} is older than {'.'.join(map(str, OLDEST_TRITON))}"
    return None


def _make_sige() -> TorchOps:
    from sgm.sparse.backends.published_sige import PublishedOps

    return PublishedOps()


def _sige_obstacle(device: torch.device) -> str | None:
    if device.type not in ("cpu", "cuda"):
        return f"it needs a CPU or a CUDA device, and the device is {device.type}"
    try:
        importlib.import_module(f"sige.{device.type}")
    except ImportError as error:
        return f"its package is not there ({error}); run `python -m tools.install_sige`"
    return None


# In order of preference for "auto", which never takes the published package.
BACKENDS: dict[str, BackendEntry] = {
    "triton": BackendEntry(_make_triton, _triton_obstacle, devices=("cuda",)),
    "torch": BackendEntry(TorchOps, lambda device: None),
    "sige": BackendEntry(_make_sige, _sige_obstacle, devices=()),
}


def select_ops(name: str = "auto", device: torch.device = CPU) -> TorchOps:
    """The operators of a backend by name, or of the best one for the device for "auto".

    Raises:
        ValueError: an unknown name, or a backend that does not run on the device.
    """
    if name == "auto":
        return next(e.make() for e in BACKENDS.values() if e.suits(device))
    if name not in BACKENDS:
        raise ValueError(f"Backend {name!r} is unknown; known are {', '.join(BACKENDS)}.")
    obstacle = BACKENDS[name].obstacle(device)
    if obstacle is not None:
        raise ValueError(f"Backend {name!r} cannot run here: {obstacle}.")
    return BACKENDS[name].make()
