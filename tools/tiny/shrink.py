"""A narrower UNet from a wide one: which of its weights the refiner starts with."""

from collections.abc import Mapping

import torch
from torch import Tensor

# The base's deepest level has 128 channels and the refiner's 96: of every 16, which are a group of
# the norms, 12 stay.
GROUP, KEPT = 16, 12
SKIP = 64  # channels of a skip connection that is joined to the deepest level's


def kept(old: int, new: int, name: str, axis: int) -> Tensor:
    """Indices (int64 [new]) of the `old` entries along an axis that stay.

    Args:
        name: of the tensor, in the UNet.
        axis: 0 for outputs, 1 for inputs.

    Raises:
        ValueError: no rule makes `new` of `old`.
    """
    every = torch.arange(old)
    thinned = every[every % GROUP < KEPT]
    inner = (axis == 0) == any(f"attn{n}.to_{part}." in name for n in (1, 2) for part in "qkv")
    if old == new:
        return every
    if axis == 1 and (".attn2.to_k." in name or ".attn2.to_v." in name):
        return every[-new:]  # of the text only the larger tower's part
    if "label_emb" in name or (".attn" in name and inner):
        return every[:new]  # whole heads; pooled text and sizes, whose last is the score now
    if len(thinned) == new:
        return thinned
    joined = torch.cat([thinned[thinned < old - SKIP], every[-SKIP:]])
    if len(joined) != new:
        raise ValueError(f"No rule narrows {name} from {old} to {new}.")
    return joined


def narrowed(weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Weights of a wide UNet for a narrow one with the same names.

    Args:
        weights: by name, of the wide UNet.
        shapes: by name, of the narrow one; names that `weights` lacks are left out.
    """
    result = {}
    for name, shape in shapes.items():
        if name not in weights:
            continue
        tensor = weights[name]
        for axis in range(min(2, tensor.ndim)):
            chosen = kept(tensor.shape[axis], shape[axis], name, axis)
            tensor = tensor.index_select(axis, chosen)
        result[name] = tensor
    return result
