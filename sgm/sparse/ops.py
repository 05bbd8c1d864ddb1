"""Choice of the backend that runs the sparse operators."""

from collections.abc import Callable
from dataclasses import dataclass

from sgm.sparse.backends.base import Prologue, SparseOps
from sgm.sparse.backends.torch_ref import TorchOps

__all__ = ["BACKENDS", "Prologue", "SparseOps", "select_ops"]


@dataclass(frozen=True)
class BackendEntry:
    """A backend that can be chosen: how to make it, and why it cannot run here (None: it can)."""

    make: Callable[[], SparseOps]
    obstacle: Callable[[], str | None]


# In order of preference for "auto".
BACKENDS: dict[str, BackendEntry] = {
    "torch": BackendEntry(TorchOps, lambda: None),
}


def select_ops(name: str = "auto") -> SparseOps:
    """The operators of a backend by name, or of the first one that runs here for "auto".

    Raises:
        ValueError: an unknown name, or a backend that does not run on this machine.
    """
    if name == "auto":
        return next(e.make() for e in BACKENDS.values() if e.obstacle() is None)
    if name not in BACKENDS:
        raise ValueError(f"Backend {name!r} is unknown; known are {', '.join(BACKENDS)}.")
    obstacle = BACKENDS[name].obstacle()
    if obstacle is not None:
        raise ValueError(f"Backend {name!r} cannot run here: {obstacle}.")
    return BACKENDS[name].make()
