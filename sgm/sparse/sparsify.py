"""`sparsify(network)`: a dense network gets sparse passes, by a table of its layers.

Classes of layers are set, and nothing else: parameters, buffers and their names stay, so that
checkpoints, adapters and saving work as before, and outside of the scopes below every pass is the
library's own.
"""

import importlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sgm.sparse.backends.torch_ref import TorchOps
from sgm.sparse.layers import SparseConv1x1, TextAttention
from sgm.sparse.masks import MaskPyramid
from sgm.sparse.network import Site, SparseModule, SparseRoot, is_sparse
from sgm.sparse.recording import Recording
from sgm.sparse.state import Mode, SparseState
from sgm.sparse.swap import NotSparseError, adapter_in_the_way, child_of, parts_of, turn

# Where the tables of the networks are that a package's classes make; imported only when
# such a network comes.
TABLES = {"diffusers": "sgm.sparse.rules.diffusers", "sgm": "sgm.sparse.rules.sgm"}


@dataclass(frozen=True)
class Rule:
    """A child of an owner becomes another class.

    Attributes:
        owner: class of the owner, and those derived from it.
        child: dotted name of the child; empty for the owner itself.
        become: what it becomes: a class that derives from that of the child.
        when: whether the rule holds for an owner, by its dotted name in the network and itself.
        required: whether a child of another class (a quantised one, say) is refused; otherwise it
            stays what it is. False is for children that work pixel by pixel, whose sparse class is
            only faster.
    """

    owner: type[nn.Module]
    child: str
    become: type[nn.Module]
    when: Callable[[str, nn.Module], bool] = lambda name, owner: True
    required: bool = True

    def apply(self, name: str, owner: nn.Module) -> None:
        """Turn the child of an owner, by its name in the network, where the rule holds for it.

        Raises:
            NotSparseError: the child cannot be turned.
        """
        if not (isinstance(owner, self.owner) and self.when(name, owner)):
            return
        child = child_of(owner, self.child)
        if child is None:
            return
        for part in parts_of(child) if self.child else [child]:
            turn(f"{name}.{self.child}".strip("."), part, self.become, self.required)


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
    network: nn.Module,
    table: Table | None = None,
    ops: TorchOps | None = None,
    graphs: bool | None = None,
) -> "Sparse":
    """Give a network sparse passes.

    Args:
        network: one of this package, or a UNet, encoder or decoder of diffusers; changed in place.
        table: by default the one for its class.
        ops: who runs the sparse operators; by default the best that runs on a CPU.
        graphs: whether sparse passes run as CUDA graphs; by default where the network is on a CUDA
            device now.

    Returns:
        The handle, whose scopes say what a pass of the network does.

    Raises:
        NotSparseError: there are no rules for the network, or for one of its layers.
    """
    handle = Sparse(network, table or table_of(network), ops)
    if graphs or (graphs is None and next(network.parameters()).is_cuda):
        handle.use_graphs()
    return handle


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


@dataclass(frozen=True, eq=False)
class Pass:
    """A pass of a network in somebody else's sampling loop.

    Attributes:
        number: of the pass, from 0, in its scope.
        run: makes the pass, in whatever scope is open, and returns its result.
        network, args, named: the network, and what it was called with.
    """

    number: int
    run: Callable[[], Any]
    network: SparseRoot
    args: tuple[Any, ...]
    named: Mapping[str, Any]

    def zeros(self) -> Tensor:
        """Zeros in place of its result, if it is not run."""
        return self.network.zeros(self.args, self.named)

    def text(self) -> Tensor | None:
        """The text [B, T, C] that its cross-attentions get; None where they get something else."""
        return self.network.text_of(self.args, self.named)


class Sparse(SparseState):
    """The handle of a network with sparse passes.

    Outside of its scopes the network is dense. The table is applied again at every recording, so
    adapters (LoRA) may be added, scaled, fused and removed between two recordings.
    """

    def __init__(self, network: nn.Module, table: Table, ops: TorchOps | None = None) -> None:
        super().__init__(ops)
        self.network, self.table = network, table
        self._each: Callable[[Pass], Any] | None = None
        self._passes = 0
        self.bind()

    def bind(self) -> None:
        """Apply the table to the layers that are there now, and give each its place; done anew at
        every recording.

        Raises:
            NotSparseError: a layer cannot be made sparse.
        """
        root = self.table.root_of(self.network)
        if root is None:
            raise NotSparseError(f"The table has no rule for a {type(self.network).__name__}.")
        modules = list(self.network.named_modules())
        for name, layer in modules:
            obstacle = self.table.obstacle(name, layer)
            if obstacle is not None:
                raise NotSparseError(f"{name or 'The network'} {obstacle}.")
        turn("The network", self.network, root)
        for name, owner in modules:
            for rule in self.table.rules:
                rule.apply(name, owner)
        layers = {name: layer for name, layer in modules if isinstance(layer, SparseModule)}
        for name, layer in modules:
            self._check(name, layer)
            if isinstance(layer, SparseModule | SparseRoot):
                layer.site = Site(self, name)
        if layers.keys() != self.layers.keys():
            self.clear()
        self.layers = layers

    def _check(self, name: str, layer: nn.Module) -> None:
        """NotSparseError for a layer, once the rules were applied, with which no sparse pass would
        be right."""
        adapter = adapter_in_the_way(layer)
        if adapter is not None:
            raise NotSparseError(f"{name} {adapter}.")
        wide = isinstance(layer, nn.Conv2d) and tuple(layer.kernel_size) != (1, 1)
        looks_around = isinstance(layer, SparseModule) and not isinstance(layer, SparseConv1x1)
        if isinstance(layer, nn.Conv2d) and looks_around:
            kind = (tuple(layer.kernel_size), layer.groups, tuple(layer.dilation))
            if kind != ((3, 3), 1, (1, 1)) or layer.padding_mode != "zeros":
                raise NotSparseError(f"{name} is no plain 3x3 convolution: {layer}.")
        looks_further = wide or isinstance(layer, nn.GroupNorm)
        if self.table.pixelwise and looks_further and not isinstance(layer, SparseModule):
            raise NotSparseError(
                f"There is no rule for {name}, a {type(layer).__name__} that looks further than "
                "one pixel."
            )

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
        """A pass of the network: within `each_pass` what that scope does with it, otherwise the
        pass of the mode."""
        if self._each is None or self.mode is not Mode.DENSE:
            return super().run(forward, args, named)
        assert isinstance(self.network, SparseRoot)  # it is the caller
        ordinary = super().run
        one = Pass(self._passes, lambda: ordinary(forward, args, named), self.network, args, named)
        self._passes += 1
        return self._each(one)

    @contextmanager
    def each_pass(self, do: Callable[[Pass], Any]) -> Iterator[None]:
        """Scope, in somebody else's sampling loop, in which `do` stands for every pass of the
        network: it runs the pass in a scope of its choice, or does not, and returns the result."""
        self._each, self._passes = do, 0
        try:
            yield
        finally:
            self._each = None

    @contextmanager
    def recording_steps(
        self, masks: MaskPyramid | None = None, only: Container[int] | None = None
    ) -> Iterator[list[Recording]]:
        """Scope in which every pass of the network is recorded by itself, in somebody else's
        sampling loop.

        Args:
            masks: as in `recording`.
            only: numbers of the passes to record, from 0. The others are not run and result in
                zeros, so this is for loops that do not use the results. None for all.

        Yields:
            A list to which each recorded pass appends its recording.
        """
        kept: list[Recording] = []

        def record(one: Pass) -> Any:
            if only is not None and one.number not in only:
                return one.zeros()
            with self.recording(masks):
                out = one.run()
            kept.append(self.kept())
            return out

        with self.each_pass(record):
            yield kept

    @contextmanager
    def replaying(
        self,
        kept: Sequence[Recording] | Callable[[int], Recording],
        masks: MaskPyramid | Callable[[int], MaskPyramid],
    ) -> Iterator[None]:
        """Scope in which every pass is a sparse one from the recording of the same number. A text
        is projected once, when the first pass comes with it.

        Args:
            kept: the recordings of `recording_steps`, or the one for a pass, counted from 0.
            masks: of all passes, or those for a pass.
        """
        last: Tensor | None = None

        def replay(one: Pass) -> Any:
            nonlocal last
            self.use(kept(one.number) if callable(kept) else kept[one.number])
            text = one.text()
            if text is not last:  # no weights change in here, so the same tensor stays projected
                last, self.text = text, {}
                if text is not None:
                    self.set_text(text)
            with self.sparse(masks(one.number) if callable(masks) else masks):
                return one.run()

        with self.each_pass(replay):
            try:
                yield
            finally:
                self.text = {}


def handle_of(network: nn.Module) -> Sparse:
    """The handle of a network that was made sparse.

    Raises:
        TypeError: it is dense.
    """
    if not is_sparse(network):
        raise TypeError(f"{type(network).__name__} has no sparse pass; call sparsify on it first")
    handle = network.site.state
    assert isinstance(handle, Sparse)  # nothing else binds a whole network
    return handle
