"""Building a network from YAML and loading its weights: on the meta device, mapped, strict."""

import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from sgm.config import instantiate_from_config, load_config
from sgm.io.diagnosis import family
from sgm.io.weights_file import DTYPES, CheckpointError, open_weights, read_in_turn

logger = logging.getLogger(__name__)

# Published files hold it; it numbers the token positions 0..76, which the tower counts itself.
IGNORED_KEYS = frozenset({"conditioner.embedders.0.transformer.text_model.embeddings.position_ids"})


class _NoInit(TorchFunctionMode):
    """While active, `torch.nn.init` leaves tensors as they are.

    Values drawn on the meta device are none, but to draw them there PyTorch loads its compiler,
    which takes longer than the rest of building and loading the tiny model.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":  # getters of attributes have none
            return kwargs["tensor"]
        return func(*args, **kwargs)


def build_model(config_path: Path) -> nn.Module:
    """The network of a YAML file, on the meta device: no memory until weights are assigned."""
    entry = load_config(config_path).get("model")
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"Config file {config_path} has no `model` entry.")
    with torch.device("meta"), _NoInit():
        return instantiate_from_config(entry)


def fit(tensor: Tensor, wanted: Tensor) -> Tensor:
    """A stored tensor in the shape a network wants: linear [o, i] weights of published files serve
    1x1 convolutions [o, i, 1, 1]. Any other difference is left for the strict load to report."""
    if tensor.ndim == 2 and tuple(wanted.shape) == (*tensor.shape, 1, 1):
        # Strides of channels-last, which `[:, :, None, None]` would not have.
        return tensor[:, None, None, :].permute(0, 3, 1, 2)
    return tensor


def load_weights(
    model: nn.Module,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    progress: bool = True,
    exact: tuple[str, ...] = (),
) -> None:
    """Assign the weights of a file to a network, cast and moved tensor by tensor.

    Weights that need no change (the file's own type, on the CPU) stay views of the mapped file.
    The rest is copied, convolutions in channels-last layout, out of mappings that end soon: so
    the process never holds much more than the weights it ends up with.

    Args:
        model: may be on the meta device.
        path: a `.safetensors` file.
        device, dtype: of the loaded weights; integer tensors keep their type.
        progress: show a bar on stderr.
        exact: beginnings of names whose weights are float32 whatever `dtype` is.

    Raises:
        CheckpointError: the file cannot be read, or does not hold exactly this network.
    """
    wanted = model.state_dict()
    kinds = {name: torch.float32 if name.startswith(exact) else dtype for name in wanted}
    weights: dict[str, Tensor] = {}
    with open_weights(path) as file:
        stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, no mapping
        _check_keys(path, set(stored), wanted)
        types = {name: DTYPES.get(stored[name].get_dtype()) for name in wanted}
        _check_types(path, [name for name, kind in types.items() if kind is None])
        shapes = {name: tuple(stored[name].get_shape()) for name in wanted}
        _check_shapes(path, shapes, wanted)
        views = {
            name
            for name in wanted
            if device.type == "cpu" and types[name] is kinds[name] and wanted[name].ndim != 4
        }
        viewed = ((name, file.get_tensor(name)) for name in sorted(views))
        copied = read_in_turn(path, sorted(set(wanted) - views))
        with tqdm(total=len(wanted), desc="loading", unit="tensor", disable=not progress) as bar:
            for name, tensor in chain(viewed, copied):
                _check_finite(path, name, tensor)
                tensor = fit(tensor, wanted[name])
                kind = kinds[name] if tensor.is_floating_point() else tensor.dtype
                layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
                copy = name not in views
                weights[name] = tensor.to(device, kind, copy=copy, memory_format=layout)
                bar.update()
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


def _check_types(path: Path, names: list[str]) -> None:
    if names:
        raise CheckpointError(
            f"Weights file {path} holds {len(names)} tensors of a type that is not read here "
            f"({_listed(names)}); get it in fp16, bf16 or fp32."
        )


def _check_shapes(
    path: Path, shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Tensor]
) -> None:
    # Without memory, so that a wrong file of gigabytes is refused before it is read.
    fitted = {name: fit(torch.empty(s, device="meta"), wanted[name]) for name, s in shapes.items()}
    wrong = [name for name, tensor in fitted.items() if tensor.shape != wanted[name].shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"Weights file {path} is not for this network: {len(wrong)} tensors differ in shape, "
            f"first {name}, {list(shapes[name])} instead of {list(wanted[name].shape)}."
        )
