"""Setting the class of a layer: what is refused, adapters that wrap it, hooks that hide it."""

from types import MethodType
from typing import Any

from torch import nn

from sgm.sparse.network import SparseModule, SparseRoot


class NotSparseError(ValueError):
    """A network, or a layer of it, that no rule makes sparse; one sentence that names it."""


def child_of(owner: nn.Module, path: str) -> nn.Module | None:
    """A child by its dotted name (empty: the owner itself); None where there is none."""
    found: Any = owner
    for name in path.split(".") if path else ():
        found = getattr(found, name, None)
    return found


def parts_of(layer: nn.Module) -> list[nn.Module]:
    """The layers that read what a layer reads: itself; of one that peft wrapped, the base and the
    first factor of every LoRA. The second factors work pixel by pixel; peft makes them of the
    class of the base, and they go back to the library's."""
    if not hasattr(layer, "base_layer"):
        return [layer]
    firsts, seconds = (getattr(layer, name, {}) for name in ("lora_A", "lora_B"))
    for second in seconds.values():
        if isinstance(second, SparseModule):
            _set_class(second, library_class(type(second)))
    return [layer.base_layer, *firsts.values()]


def adapter_in_the_way(layer: nn.Module) -> str | None:
    """Why an adapter around a layer cannot run on active pixels; None if it can.

    A plain LoRA can, and so can what is merged into the weights. Others (DoRA, LoHa, LoKr) run a
    convolution with weights of their own on a whole map.
    """
    base = getattr(layer, "base_layer", None)
    if not (isinstance(base, nn.Conv2d) and isinstance(base, SparseModule)):
        return None
    if getattr(layer, "merged", False) or getattr(layer, "disable_adapters", False):
        return None
    if hasattr(layer, "lora_A") and not getattr(layer, "lora_variant", None):
        return None
    return (
        f"has an adapter that is no plain LoRA ({type(layer).__name__}), on a convolution that "
        "reads neighbours; fuse it into the weights first"
    )


def library_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The library's class from which a sparse one derives."""
    ours = (SparseModule, SparseRoot)
    return next(c for c in cls.__mro__ if issubclass(c, nn.Module) and not issubclass(c, ours))


def turn(name: str, layer: nn.Module, become: type[nn.Module], required: bool = True) -> None:
    """Set the class of a layer.

    Args:
        become: the new class, which derives from the library's.
        required: whether a layer that cannot be set is refused; otherwise it stays as it is.

    Raises:
        NotSparseError: it is of another class, or something hides the forward of its class.
    """
    if type(layer) is become:
        return
    base = library_class(become)
    wrong = None
    if _has_other_forward(layer):
        wrong = (
            f"{name} has a forward of its own, as casting and grouped offloading set it; call "
            "sparsify before they are installed."
        )
    elif type(layer) is not base and not isinstance(layer, SparseModule):
        wrong = f"{name} is a {type(layer).__name__}, expected a {base.__name__}."
    if wrong is None:
        _set_class(layer, become)
    elif required:
        raise NotSparseError(wrong)


def _is_own(layer: nn.Module, forward: object) -> bool:
    """Whether this is the forward of a layer's class, bound to it."""
    return isinstance(forward, MethodType) and forward.__func__ is type(layer).forward


def _has_other_forward(layer: nn.Module) -> bool:
    """Whether a pass of a layer would not come to the forward of its class.

    Hooks of accelerate (offloading) stand before it, as `forward`, and go on to `_old_forward`.
    """
    own = vars(layer).get("_old_forward", vars(layer).get("forward"))
    return own is not None and not _is_own(layer, own)


def _set_class(layer: nn.Module, become: type[nn.Module]) -> None:
    """Set the class of a layer. What was bound to the forward of the old class is bound to that of
    the new one."""
    bound = [name for name in ("forward", "_old_forward") if _is_own(layer, vars(layer).get(name))]
    layer.__class__ = become
    for name in bound:
        setattr(layer, name, MethodType(become.forward, layer))
