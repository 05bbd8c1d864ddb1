"""`sparsify(network)`: a dense network gets sparse passes, by a table of its layers.

Classes of layers are set, and nothing else: parameters, buffers and their names stay, so that
checkpoints, adapters and saving work as before, and outside of the scopes below every pass is the
library's own.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sgm.sparse.layers import TextAttention
from sgm.sparse.masks import MaskPyramid
from sgm.sparse.network import Site, SparseModule, SparseRoot, state_of
from sgm.sparse.ops import SparseOps
from sgm.sparse.recording import Recording
from sgm.sparse.state import Mode, SparseState

# Where the tables of the networks are that a package's classes make; imported only when
# such a network comes.
TABLES = {"diffusers": "sgm.sparse.rules.diffusers", "sgm": "sgm.sparse.rules.sgm"}


class NotSparseError(ValueError):
    """A network, or a layer of it, that no rule makes sparse; one sentence that names it."""


def always(name: str, owner: nn.Module) -> bool:
    """The condition of a rule that holds for every owner."""
    return True


@dataclass(frozen=True)
class Rule:
    """A child of an owner becomes another class.

    Attributes:
        owner: class of the owner, and those derived from it.
        child: dotted name of the child; empty for the owner itself.
        become: what it becomes: a class that derives from that of the child.
        when: whether the rule holds for an owner, by its dotted name in the network and itself.
    """

    owner: type[nn.Module]
    child: str
    become: type[nn.Module]
    when: Callable[[str, nn.Module], bool] = always


@dataclass(frozen=True)
class Table:
    """The rules of a family of networks.

    Attributes:
        roots: what each class of network becomes, as a whole.
        rules: of its layers; at most one holds for a layer.
        obstacle: why a layer cannot be made sparse, by its name and itself; None if it can.
        pixelwise: whether active pixels alone are handed on between layers, so that a layer without
            a rule which looks further than one pixel is refused.
    """

    roots: Mapping[type[nn.Module], type[SparseRoot]]
    rules: tuple[Rule, ...]
    obstacle: Callable[[str, nn.Module], str | None] = lambda name, layer: None
    pixelwise: bool = True

    def root_of(self, network: nn.Module) -> type[SparseRoot] | None:
        """What a network becomes; None if it is none of this table."""
        return next((self.roots[c] for c in type(network).__mro__ if c in self.roots), None)


def sparsify(
    network: nn.Module, table: Table | None = None, ops: SparseOps | None = None
) -> "Sparse":
    """Give a network sparse passes.

    Args:
        network: one of this package, or a UNet, encoder or decoder of diffusers; changed in place.
        table: by default the one for its class.
        ops: who runs the sparse operators; by default the best that runs on a CPU.

    Returns:
        The handle, whose scopes say what a pass of the network does.

    Raises:
        NotSparseError: there are no rules for the network, or for one of its layers.
    """
    return Sparse(network, table or table_of(network), ops)


def table_of(network: nn.Module) -> Table:
    """The table for a network's class.

    Raises:
        NotSparseError: there is none.
    """
    packages = {cls.__module__.partition(".")[0] for cls in type(network).__mro__}
    for package, module in TABLES.items():
        if package in packages:
            table: Table = importlib.import_module(module).table_for(network)
            if table.root_of(network) is not None:
                return table
    raise NotSparseError(
        f"There are no rules for a {type(network).__name__}; expected a UNet, an encoder or a "
        "decoder of this package or of diffusers."
    )


class Sparse(SparseState):
    """The handle of a network with sparse passes.

    Outside of its scopes the network is dense. The table is applied again at every recording, so
    adapters (LoRA) may be added, scaled, fused and removed between two recordings.
    """

    def __init__(self, network: nn.Module, table: Table, ops: SparseOps | None = None) -> None:
        super().__init__(ops)
        self.network, self.table = network, table
        self._each: Callable[[Callable[[], Any]], Any] | None = None
        self.bind()

    def bind(self) -> None:
        """Apply the table to the layers that are there now, and give each its place.

        Raises:
            NotSparseError: a layer cannot be made sparse.
        """
        root = self.table.root_of(self.network)
        if root is None:
            raise NotSparseError(f"The table has no rule for a {type(self.network).__name__}.")
        _turn("the network", self.network, root)
        modules = list(self.network.named_modules())
        for name, owner in modules:
            for rule in self.table.rules:
                if isinstance(owner, rule.owner) and rule.when(name, owner):
                    _apply(rule, name, owner)
        layers = {name: layer for name, layer in modules if isinstance(layer, SparseModule)}
        for name, layer in modules:
            self._check(name, layer)
            if isinstance(layer, SparseModule | SparseRoot):
                layer.site = Site(self, name)
        if layers.keys() != self.layers.keys():
            self.clear()
        self.layers = layers

    def _check(self, name: str, layer: nn.Module) -> None:
        """NotSparseError for a layer that stands in the way."""
        obstacle = self.table.obstacle(name, layer)
        if obstacle is not None:
            raise NotSparseError(f"{name or 'The network'} {obstacle}.")
        wide = isinstance(layer, nn.Conv2d) and tuple(layer.kernel_size) != (1, 1)
        looks_further = wide or isinstance(layer, nn.GroupNorm)
        if self.table.pixelwise and looks_further and not isinstance(layer, SparseModule):
            raise NotSparseError(
                f"There is no rule for {name}, a {type(layer).__name__} that looks further than "
                "one pixel."
            )

    @contextmanager
    def recording(
        self, masks: MaskPyramid | None = None, dtype: torch.dtype | None = None
    ) -> Iterator[Recording]:
        """Scope in which passes are dense and make a new recording; see `SparseState.recording`.

        Raises:
            NotSparseError: a layer that came since cannot be made sparse.
        """
        self.bind()
        with super().recording(masks, dtype) as record:
            yield record

    def set_text(self, context: Tensor) -> None:
        """Project a text once for all sparse passes until the next call, or until `clear`. Those
        passes read nothing else of the text that they are called with.

        Args:
            context: text tokens [B, T, C] as the cross-attentions get them, in the network's dtype.
        """
        layers = {n: layer for n, layer in self.layers.items() if isinstance(layer, TextAttention)}
        for name, layer in layers.items():
            found = layer.project_text(context)
            if self.static is not None:
                found = self.static.hold(("text", name), found)
            self.text[name] = found

    def run(
        self, forward: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Any:
        """A pass of the network, as the scope of many passes asks for it; see `SparseState.run`."""
        if self._each is None or self.mode is not Mode.DENSE:
            return super().run(forward, args, named)
        ordinary = super().run
        return self._each(lambda: ordinary(forward, args, named))

    @contextmanager
    def recording_steps(self, masks: MaskPyramid | None = None) -> Iterator[list[Recording]]:
        """Scope in which every pass of the network is recorded by itself, in somebody else's
        sampling loop.

        Args:
            masks: as in `recording`.

        Yields:
            A list that gets one recording a pass.
        """
        kept: list[Recording] = []

        def record(run: Callable[[], Any]) -> Any:
            with self.recording(masks):
                out = run()
            kept.append(self.kept())
            return out

        with self._each_pass(record):
            yield kept

    @contextmanager
    def replaying(
        self, kept: Sequence[Recording] | Callable[[int], Recording], masks: MaskPyramid
    ) -> Iterator[None]:
        """Scope in which every pass is a sparse one from the recording of the same number.

        Args:
            kept: the recordings of `recording_steps`, or the one for a pass, counted from 0.
        """
        number = 0

        def replay(run: Callable[[], Any]) -> Any:
            nonlocal number
            self.use(kept(number) if callable(kept) else kept[number])
            number += 1
            with self.sparse(masks):
                return run()

        with self._each_pass(replay):
            yield

    @contextmanager
    def _each_pass(self, do: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
        self._each = do
        try:
            yield
        finally:
            self._each = None


def handle_of(network: nn.Module) -> Sparse:
    """The handle of a network that was made sparse.

    Raises:
        TypeError: it is dense.
    """
    state = state_of(network)
    assert isinstance(state, Sparse)  # nothing else binds a whole network
    return state


def _child(owner: nn.Module, path: str) -> nn.Module | None:
    """A child by its dotted name; None where there is none."""
    found: Any = owner
    for name in path.split(".") if path else ():
        found = getattr(found, name, None)
    return found


def parts_of(layer: nn.Module) -> list[nn.Module]:
    """The layers that read what a layer reads: itself; of one that peft wrapped, the base and the
    first factor of every adapter. The second factors work pixel by pixel; peft makes them of the
    class of the base, and they go back to the library's."""
    if not hasattr(layer, "base_layer"):
        return [layer]
    for second in layer.lora_B.values():
        if isinstance(second, SparseModule):
            second.__class__ = _library_class(type(second))
    return [layer.base_layer, *layer.lora_A.values()]


def _library_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class behind a sparse one."""
    ours = (SparseModule, SparseRoot)
    return next(c for c in cls.__mro__ if issubclass(c, nn.Module) and not issubclass(c, ours))


def _apply(rule: Rule, name: str, owner: nn.Module) -> None:
    """Make the child of an owner (by its name in the network) what a rule says."""
    child = _child(owner, rule.child)
    if child is not None:
        for part in parts_of(child) if rule.child else [child]:
            _turn(f"{name}.{rule.child}".strip("."), part, rule.become)


def _turn(name: str, layer: nn.Module, become: type[nn.Module]) -> None:
    """Set the class of a layer; NotSparseError where that would not do."""
    if type(layer) is become:
        return
    base = _library_class(become)
    if "forward" in vars(layer):
        raise NotSparseError(
            f"{name} has a forward of its own, as offloading and casting hooks set it; call "
            "sparsify before they are installed."
        )
    if type(layer) is not base and not isinstance(layer, SparseModule):
        raise NotSparseError(f"{name} is a {type(layer).__name__}, expected a {base.__name__}.")
    layer.__class__ = become
