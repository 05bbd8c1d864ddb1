"""Building a network from YAML and loading its weights: on the meta device, memory-mapped, strict.

Only `.safetensors` files are read; nothing is ever unpickled.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from sgm.config import instantiate_from_config, load_config
from sgm.diagnosis import family, why_unreadable
from sgm.errors import UserError

logger = logging.getLogger(__name__)

# Published files hold it; it numbers the token positions 0..76, which the tower counts itself.
IGNORED_KEYS = frozenset({"conditioner.embedders.0.transformer.text_model.embeddings.position_ids"})


class CheckpointError(UserError):
    """A weights file that cannot be used; one sentence with the cause and what to do."""


def build_model(config_path: Path) -> nn.Module:
    """The network of a YAML file, on the meta device: no memory until weights are assigned."""
    entry = load_config(config_path).get("model")
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"Config file {config_path} has no `model` entry.")
    with torch.device("meta"):
        return instantiate_from_config(entry)


def fit(tensor: Tensor, wanted: Tensor) -> Tensor:
    """A stored tensor in the shape a network wants: linear [o, i] weights of published files serve
    1x1 convolutions [o, i, 1, 1]. Any other difference is left for the strict load to report."""
    if tensor.ndim == 2 and tuple(wanted.shape) == (*tensor.shape, 1, 1):
        return tensor[:, :, None, None]
    return tensor


def load_weights(
    model: nn.Module, path: Path, device: torch.device, dtype: torch.dtype, progress: bool = True
) -> None:
    """Assign the weights of a file to a network, cast and moved tensor by tensor.

    Args:
        model: may be on the meta device.
        path: a `.safetensors` file.
        device, dtype: of the loaded weights; integer tensors keep their type.
        progress: show a bar on stderr.

    Raises:
        CheckpointError: the file cannot be read, or does not hold exactly this network.
    """
    wanted = model.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            _check_keys(path, names, wanted)
            weights = {}
            bar = tqdm(sorted(wanted), desc="loading", unit="tensor", disable=not progress)
            for name in bar:
                tensor = fit(file.get_tensor(name), wanted[name])
                _check_finite(path, name, tensor)
                kind = dtype if tensor.is_floating_point() else tensor.dtype
                weights[name] = tensor.to(device=device, dtype=kind)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"Weights file {path} cannot be read as safetensors: {why_unreadable(path)}."
        ) from error
    _check_shapes(path, weights, wanted)
    model.load_state_dict(weights, assign=True)


def _check_finite(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and tensor.numel():
        # One pass without a copy; NaN and infinities come through to the extremes.
        low, high = torch.aminmax(tensor)
        if not (low.isfinite() and high.isfinite()):
            raise CheckpointError(
                f"Weights file {path} is damaged: tensor {name} holds NaN or infinite values; "
                "download it again."
            )


def _listed(names: Iterable[str]) -> str:
    """The first three of some names, and how many there are."""
    names = sorted(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check_keys(path: Path, names: set[str], wanted: Mapping[str, Tensor]) -> None:
    missing = set(wanted) - names
    unexpected = names - set(wanted) - IGNORED_KEYS
    if missing or unexpected:
        parts = [
            f"{len(keys)} {word} ({_listed(keys)})"
            for word, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        found, expected = family(names), family(wanted)
        cause = "check --model, --run_type and the file"
        if found is not None and found != expected:
            cause = f"it looks like {found}"
            cause += f", and {expected} is needed" if expected else ""
        raise CheckpointError(
            f"Weights file {path} is not for this network: of its tensors {' and '.join(parts)}; "
            f"{cause}."
        )


def _check_shapes(path: Path, weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    wrong = [name for name, t in weights.items() if t.shape != wanted[name].shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"Weights file {path} is not for this network: {len(wrong)} tensors differ in shape, "
            f"first {name}, {list(weights[name].shape)} instead of {list(wanted[name].shape)}."
        )
