"""Recordings of one edit, each fetched from its store while the step before it runs."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise

import torch

from sgm.inference.stores import Store
from sgm.sparse.recording import Recording, tensors_of


class Prefetch:
    """Reads recordings of a store in a known order, each while the one before is in use.

    A thread fetches; on a GPU it copies on a stream of its own, beside the computation. So the
    device holds one recording more than those in use.

    Args:
        store: what to read.
        order: names in the order of their use; others are fetched when asked for.
        device: of the networks.
    """

    def __init__(self, store: Store, order: Iterable[str], device: torch.device) -> None:
        self.store, self.device = store, device
        self._next = dict(pairwise(order))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._coming: tuple[str, Future[Recording]] | None = None

    def get(self, name: str) -> Recording:
        """A recording of the store, on the device."""
        if self._coming is None or self._coming[0] != name:
            self._fetch(name)
        assert self._coming is not None
        recording = self._coming[1].result()
        if self._stream is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_stream(self._stream)
            # Until `here` is through with it, the memory of a tensor stays its own.
            for value in recording.values.values():
                for tensor in tensors_of(value):
                    tensor.record_stream(here)
        if name in self._next:
            self._fetch(self._next[name])
        return recording

    def _fetch(self, name: str) -> None:
        self._coming = (name, self._thread.submit(self._load, name))

    def _load(self, name: str) -> Recording:
        # Modes and streams belong to a thread.
        on_stream = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with torch.inference_mode(), on_stream:
            return self.store.get(name)

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(self, *error: object) -> None:
        """End the thread; what it was fetching is dropped."""
        self._coming = None
        self._thread.shutdown(cancel_futures=True)
