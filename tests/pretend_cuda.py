"""A CUDA device for machines without one: tensors that say `cuda:0` and hold CPU numbers, or of the
meta device none.

What a card would refuse is refused: an operator that mixes devices, and in a graph's capture
anything that waits for the device, copies from ordinary memory, or frees the recording of it. What
a card would be slow at is counted: kernels launched, and the lines of this package that make the
host wait or copy between host and device.

    with PretendCuda() as card:
        ...                    # torch.device("cuda") works; tensors made there are `OnCard`s
    card.launches, card.waits, card.uploads
"""

from __future__ import annotations

import contextlib
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.conftest import ROOT

CARD, HOST, META = (torch.device(name) for name in ("cuda:0", "cpu", "meta"))

# Operators, by the start of their names, that launch no kernel.
VIEWS = (
    *("_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach", "diagonal"),
    *("empty", "expand", "is_", "lift_fresh", "movedim", "narrow", "new_empty", "permute"),
    *("record_stream", "reshape", "resize", "select.", "set_", "size", "slice", "split"),
    *("squeeze", "stride", "sym_", "transpose", "unbind", "unflatten", "unsqueeze", "view"),
)
# Operators whose result, or its size, the host has to wait for.
WAITS = {
    *("_local_scalar_dense", "_unique", "_unique2", "allclose", "bincount", "equal", "is_nonzero"),
    *("item", "masked_select", "nonzero", "repeat_interleave", "unique_consecutive", "unique_dim"),
}
MOVES = {"_to_copy", "copy_", "to"}  # of which `copy_` comes here only between two of the card
INDEXING = {"_index_put_impl_", "index", "index_put", "index_put_"}


class DeviceMix(RuntimeError):
    """An operator got tensors of the host and of the card."""


class CaptureError(RuntimeError):
    """A capture would fail here on a card."""


def place() -> str:
    """The innermost line of this package (not of the tests) that is running."""
    for frame in reversed(traceback.extract_stack()):
        for folder in ("sgm", "benchmarks"):
            if frame.filename.startswith(str(ROOT / folder)):
                return f"{frame.filename[len(str(ROOT)) + 1 :]}:{frame.lineno}"
    return "tests"


def on_card(device: object) -> bool:
    """Whether an argument names the card."""
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


class OnCard(Tensor):
    """A tensor of the card; `numbers` are its values, on the host."""

    numbers: Tensor
    card: PretendCuda

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor, card: PretendCuda) -> OnCard:
        made = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=CARD,
        )
        made.numbers, made.card = numbers, card
        return made

    def __repr__(self) -> str:
        return f"OnCard({tuple(self.shape)}, {self.dtype})"

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def record_stream(self, stream: _Stream) -> None:
        """Nothing: this memory is never used again before the tensor has gone."""

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.numbers.untyped_storage()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        first = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, OnCard))
        return first.card.run(func, args, kwargs or {})


class PretendCuda:
    """The card, and what it has been asked for.

    Attributes:
        kernels: launches by operator.
        waits, uploads: by place, how often the host waited, and how often it copied from ordinary
            memory to the card.
        capturing: the tape of the graph that is being captured.
        problems: what was refused, also where the error was caught.
    """

    def __init__(self) -> None:
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self.problems: list[str] = []
        self.capturing: list[Callable[[], object]] | None = None
        self._exit = contextlib.ExitStack()

    @property
    def launches(self) -> int:
        return sum(self.kernels.values())

    def reset(self) -> None:
        """Forget what was counted."""
        for counter in (self.kernels, self.waits, self.uploads):
            counter.clear()

    def __enter__(self) -> PretendCuda:
        for patch in self._patches():
            self._exit.enter_context(patch)
        self._exit.enter_context(self.modes())
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    @contextlib.contextmanager
    def modes(self) -> Iterator[None]:
        """What makes torch's functions know the card, in this thread."""
        with _Functions(self), _Dispatch(self):
            yield

    # What happens on the card.

    def up(self, numbers: Tensor) -> OnCard:
        """Numbers of the host as a tensor of the card, not counted."""
        return OnCard(numbers, self)

    def _refuse(self, kind: type[RuntimeError], what: str) -> None:
        self.problems.append(f"{kind.__name__}: {what} at {place()}")
        raise kind(self.problems[-1])

    def wait(self) -> None:
        """The host waits for the card here."""
        self.waits[place()] += 1
        if self.capturing is not None:
            self._refuse(CaptureError, "the host waits for the device in a capture")

    def upload(self) -> None:
        """A copy from ordinary memory of the host."""
        self.uploads[place()] += 1
        if self.capturing is not None:
            self._refuse(CaptureError, "a copy from the host's memory in a capture")

    def launch(self, name: str, again: Callable[[], object]) -> None:
        """A kernel has run; `again` computes its result anew, in place."""
        self.kernels[name] += 1
        if self.capturing is not None:
            self.capturing.append(again)

    def run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """An operator of torch, where a tensor or an argument is the card's."""
        name = func.name().partition("::")[2]
        short = name.partition(".")[0]
        leaves = tree_leaves((args, kwargs))
        ours = [x for x in leaves if isinstance(x, OnCard)]
        others = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnCard)]
        target = next((x for x in leaves if isinstance(x, torch.device)), None)
        if not ours and not on_card(target):
            return func(*args, **kwargs)
        if short in INDEXING:
            self._index(args, others)
        elif ours and short not in MOVES and any(x.dim() > 0 for x in others):
            shapes = [(str(x.device), tuple(x.shape)) for x in ours + others]
            self._refuse(DeviceMix, f"{name} of {shapes}")
        down = self._moves(short, args, target, ours)
        if short in WAITS:
            self.wait()
        unwrapped, named = _unwrapped(args, kwargs)
        named = {k: v for k, v in named.items() if k not in ("pin_memory", "non_blocking")}
        out = func(*unwrapped, **named)
        if down:
            return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, out)
        if not (name.startswith(VIEWS) or short in WAITS | {"t"}):
            self.launch(short, lambda: _repeat(func, unwrapped, named, out))
            if short.startswith("_foreach") and len({x.dtype for x in args[0]}) > 1:
                self.kernels[short] += len(args[0]) - 1  # of one dtype they are one launch
        known = {id(x.numbers): x for x in ours}
        known |= {id(x): x for x in others}
        return tree_map(lambda x: self._wrapped(x, known), out)

    def _wrapped(self, x: object, known: dict[int, Tensor]) -> object:
        """A result; of an operator in place it is the very tensor that came."""
        return known.get(id(x), OnCard(x, self)) if isinstance(x, Tensor) else x

    def _moves(
        self, short: str, args: tuple, target: torch.device | None, ours: list[OnCard]
    ) -> bool:
        """Count a copy between host and card; whether its result is the host's."""
        if short in MOVES and target is not None:
            if ours and not on_card(target):
                self.wait()
                return True
            if not ours and on_card(target):
                self.upload()
        return False

    def _index(self, args: tuple, others: list[Tensor]) -> None:
        """Indices of the host are copied up; those that are masks have to be waited for."""
        if not isinstance(args[0], OnCard):
            self._refuse(DeviceMix, "a tensor of the host is indexed by one of the card")
        if any(x.dim() > 0 for x in others):
            self.upload()
        if any(isinstance(t, OnCard) and t.dtype == torch.bool for t in tree_leaves(args[1])):
            self.wait()

    def item(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """`x[...]` and `x[...] = value`, which ask for a CUDA context before they dispatch."""
        me, index, *value = args
        parts = [t for t in tree_leaves(index) if isinstance(t, Tensor)]
        if not isinstance(me, OnCard):
            if any(isinstance(t, OnCard) for t in parts):
                self._refuse(DeviceMix, "a tensor of the host is indexed by one of the card")
            if any(isinstance(v, OnCard) for v in value):
                self.wait()
            return func(*tree_map(_numbers, args), **kwargs)
        if any(
            not isinstance(t, OnCard) and t.dim() > 0
            for t in (*parts, *value)
            if isinstance(t, Tensor)
        ):
            self.upload()
        if any(t.dtype == torch.bool or t.dim() == 0 for t in parts if isinstance(t, OnCard)):
            self.wait()
        (numbers, where, *new), _ = _unwrapped(args, {})
        out = func(numbers, where, *new)
        if value:
            self.launch("index_put", lambda: func(numbers, where, *new))
            return None
        if parts:
            self.launch("index", lambda: out.copy_(func(numbers, where)))
        return OnCard(out, self)

    def copy(self, target: Tensor, source: Tensor) -> Tensor:
        """`target.copy_(source)`."""
        if not isinstance(target, OnCard):
            self.wait()
        elif not isinstance(source, OnCard):
            self.upload()
        old, new = _numbers(target), _numbers(source)
        old.copy_(new)
        if isinstance(target, OnCard):
            self.launch("copy_", lambda: old.copy_(new))
        return target

    def generic(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """A function that asks for a CUDA context before it dispatches: on the numbers."""
        leaves = tree_leaves((args, kwargs))
        ours = [x for x in leaves if isinstance(x, OnCard)]
        if any(isinstance(x, Tensor) and not isinstance(x, OnCard) and x.dim() for x in leaves):
            self._refuse(DeviceMix, func.__name__)
        if func.__name__ in WAITS:
            self.wait()
        if func is Tensor.new_tensor:
            self.upload()
        unwrapped, named = _unwrapped(args, kwargs)
        out = func(*unwrapped, **named)
        known = {id(x.numbers): x for x in ours}
        if any(isinstance(x, Tensor) and id(x) not in known for x in tree_leaves(out)):
            name = func.__name__
            self.launch(name, lambda: _repeat(func, unwrapped, named, out))
        return tree_map(lambda x: self._wrapped(x, known), out)

    # What `torch.cuda` says.

    def synchronize(self, device: object = None) -> None:
        self.wait()

    @contextlib.contextmanager
    def graph(self, graph: _Graph, *rest: object, **options: object) -> Iterator[None]:
        """In place of `torch.cuda.graph`."""
        assert self.capturing is None, "two captures at once"
        self.capturing = graph.tape
        try:
            yield
        finally:
            self.capturing = None

    def _patches(self) -> Iterator[contextlib.AbstractContextManager]:
        """In place of torch's own, which ask for a driver."""
        facts = {"multi_processor_count": 132, "name": "pretended", "major": 9, "minor": 0}
        properties = types.SimpleNamespace(**facts, total_memory=80 << 30)
        stream = _Stream(self)
        instead: dict[str, object] = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: "pretended",
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_properties": lambda device=None: properties,
            "mem_get_info": lambda device=None: (70 << 30, 80 << 30),
            "synchronize": self.synchronize,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda device=None: None,
            "max_memory_allocated": lambda device=None: 1,
            "is_bf16_supported": lambda *rest, **options: True,
            "Stream": lambda *rest, **options: _Stream(self),
            "Event": lambda *rest, **options: _Event(self),
            "CUDAGraph": lambda: _Graph(self),
            "graph": self.graph,
            "current_stream": lambda device=None: stream,
            "default_stream": lambda device=None: stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "device": lambda device: contextlib.nullcontext(),
        }
        for name, value in instead.items():
            yield mock.patch.object(torch.cuda, name, value)
        # A module that is moved here gets new parameters: `data` cannot be set to these tensors.
        yield mock.patch.object(torch.__future__, "_overwrite_module_params_on_conversion", True)
        # These tensors have no version counters, which inference mode asks for; and a mode belongs
        # to a thread, so every thread that would enter inference mode gets ours.
        yield mock.patch.object(torch, "inference_mode", self._no_grad)

    @contextlib.contextmanager
    def _no_grad(self) -> Iterator[None]:
        inside = any(
            isinstance(m, _Functions) for m in torch.overrides._get_current_function_mode_stack()
        )
        with torch.no_grad(), contextlib.nullcontext() if inside else self.modes():
            yield


def _numbers(x: object) -> object:
    """What the host computes with in place of an argument."""
    if isinstance(x, OnCard):
        return x.numbers
    return HOST if isinstance(x, torch.device) else x


def _flash_attention(*args: Any, **named: Any) -> Tensor:
    """Attention as the fused kernels of a card make it: one kernel, whose result [B, heads, N, d]
    lies in memory as [B, N, heads, d]."""
    out = torch.nn.functional.scaled_dot_product_attention(*args, **named)
    return out.transpose(-3, -2).contiguous().transpose(-3, -2)


def _unwrapped(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments that the host computes with: of the meta device all, if one is."""
    args, kwargs = tree_map(_numbers, args), tree_map(_numbers, kwargs)
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if not any(x.is_meta for x in leaves):
        return args, kwargs

    def shapes(x: object) -> object:
        return x.to("meta") if isinstance(x, Tensor) else META if x == HOST else x

    return tree_map(shapes, args), tree_map(shapes, kwargs)


def _repeat(func: Any, args: tuple, kwargs: dict, out: object) -> None:
    """Compute an operator's results anew, in place."""
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    read = {t.untyped_storage().data_ptr() for t in tensors}
    new = func(*args, **kwargs)
    pairs = zip(tree_leaves(out), tree_leaves(new), strict=True)
    for old, result in pairs:
        if isinstance(old, Tensor) and old.untyped_storage().data_ptr() not in read:
            old.copy_(result)


class _Dispatch(TorchDispatchMode):
    """Operators that make tensors on the card, or get none of it."""

    def __init__(self, card: PretendCuda) -> None:
        super().__init__()
        self.card = card

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return self.card.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Python functions that would ask for a CUDA context before they dispatch."""

    def __init__(self, card: PretendCuda) -> None:
        super().__init__()
        self.card = card

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        card, kwargs = self.card, dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        if func is Tensor.is_cuda.__get__:
            return isinstance(args[0], OnCard)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            tensors = [t for t in tree_leaves(args) if isinstance(t, OnCard)]
            return card.item(func, args, kwargs) if tensors else func(*args, **kwargs)
        if func is torch.nn.functional.scaled_dot_product_attention and isinstance(args[0], OnCard):
            return card.generic(_flash_attention, args, kwargs)
        if func in (Tensor.to, Tensor.cuda):
            return self._move(func, args, kwargs)
        if func is Tensor.copy_ and any(isinstance(x, OnCard) for x in args):
            return card.copy(*args[:2])
        if func in (Tensor.tolist, Tensor.numpy, Tensor.item) and isinstance(args[0], OnCard):
            card.wait()
            return func(args[0].numbers)
        if on_card(kwargs.get("device")) and not any(isinstance(x, OnCard) for x in args):
            return self._make(func, args, kwargs)
        try:
            return func(*args, **kwargs)
        except (RuntimeError, AssertionError) as error:
            if not any(told in str(error) for told in ("support for cuda", "CUDA enabled")):
                raise
            return card.generic(func, args, kwargs)

    def _make(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """A function that makes a tensor on the card."""
        out = func(*args, **kwargs | {"device": "cpu"})
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            self.card.upload()
        elif "empty" not in func.__name__:
            made = kwargs | {"device": "cpu"}
            self.card.launch(func.__name__, lambda: _repeat(func, args, made, out))
        return tree_map(lambda x: self.card.up(x) if isinstance(x, Tensor) else x, out)

    def _move(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """`to` and `cuda`, which ask for a context where the card is the target."""
        me, *rest = args
        target = kwargs.pop("device", "cuda" if func is Tensor.cuda else None)
        for number, word in enumerate(rest):
            if isinstance(word, str | torch.device):
                target = word
                del rest[number]
                break
            if isinstance(word, Tensor):
                target, rest[number] = word.device, word.dtype
                break
        # After the device come dtype, non_blocking and copy; the last two change nothing here.
        dtype = next((word for word in rest if isinstance(word, torch.dtype)), None)
        kwargs |= {} if dtype is None else {"dtype": dtype}
        if not on_card(target):
            device = {} if target is None else {"device": target}
            return Tensor.to(me, **kwargs, **device)
        kwargs.pop("non_blocking", None)
        changed = Tensor.to(me, **kwargs) if kwargs else me
        if isinstance(me, OnCard):
            return changed
        if me.is_meta:
            return self.card.up(changed)  # shapes alone
        self.card.upload()
        return self.card.up(changed.detach().clone())


class _Stream:
    """A stream; all work of the card is done at once."""

    cuda_stream = 0

    def __init__(self, card: PretendCuda) -> None:
        self.card = card

    def wait_stream(self, other: _Stream) -> None: ...

    def synchronize(self) -> None:
        self.card.wait()


class _Event:
    """An event; every two are a millisecond apart."""

    def __init__(self, card: PretendCuda) -> None:
        self.card = card

    def record(self, *stream: object) -> None: ...

    def synchronize(self) -> None:
        self.card.wait()

    def elapsed_time(self, other: _Event) -> float:
        return 1.0


class _Graph:
    """A graph: the kernels of its capture, run again on the same tensors."""

    def __init__(self, card: PretendCuda) -> None:
        self.card, self.tape = card, []

    def replay(self) -> None:
        self.card.kernels["graph replay"] += 1
        for again in self.tape:
            again()
