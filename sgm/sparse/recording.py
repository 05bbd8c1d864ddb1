"""What a full pass leaves for sparse ones."""

from collections.abc import Callable

from torch import Tensor

from sgm.sparse.masks import MaskPyramid, Resolution
from sgm.sparse.norm import Affine, Moments

Recorded = Tensor | Affine | Moments | Resolution


def tensors_of(value: Recorded) -> tuple[Tensor, ...]:
    """The tensors of a recorded value."""
    match value:
        case Affine():
            return (value.scale, value.shift)
        case Moments():
            return (value.mean, value.square)
        case Tensor():
            return (value,)
    return ()


def with_tensors(value: Recorded, change: Callable[[int, Tensor], Tensor]) -> Recorded:
    """A recorded value with each of its tensors (by number) replaced by another."""
    parts = [change(number, part) for number, part in enumerate(tensors_of(value))]
    match value:
        case Affine() | Moments():
            return type(value)(*parts)
        case Tensor():
            return parts[0]
    return value


def each_tensor(recording: "Recording", change: Callable[[Tensor], Tensor]) -> "Recording":
    """A recording of the results of `change` for every tensor."""
    changed = Recording(recording.masks)
    for key, value in recording.values.items():
        changed.values[key] = with_tensors(value, lambda number, part: change(part))
    return changed


class Recording:
    """What one full pass left for sparse ones, by layer and name.

    Args:
        masks: of the only sparse passes that it serves, for which it keeps nothing else; None if it
            serves any.
    """

    def __init__(self, masks: MaskPyramid | None = None) -> None:
        self.masks = masks
        self.values: dict[tuple[str, str], Recorded] = {}

    @property
    def mask_specific(self) -> bool:
        """Whether it serves the sparse passes of one mask only."""
        return self.masks is not None

    def of_layer(self, name: str) -> dict[str, Recorded]:
        """The values of a layer by their names."""
        return {key: value for (layer, key), value in self.values.items() if layer == name}

    def size_in_bytes(self) -> int:
        """Memory of its tensors."""
        total = 0
        for value in self.values.values():
            total += sum(part.numel() * part.element_size() for part in tensors_of(value))
        return total
