"""Building a network from YAML and loading its weights: on the meta device, mapped, strict."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from sgm.config import instantiate_from_config, load_config
from sgm.io.fits import check_network, fit, listed
from sgm.io.lora import merged, read_loras
from sgm.io.sources import Kind, Source, find, read_contents
from sgm.io.weights_file import DTYPES, CheckpointError, open_weights, read_in_turn
from sgm.specs import MASKED_CHANNELS, Weights
from sgm.words import Prediction

logger = logging.getLogger(__name__)

# A number that only training reads: files may lack it or hold NaN.
UNREAD = ("logit_scale",)
MODULES = "sgm.modules.diffusionmodules"


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


def build_model(config_path: Path, kind: Kind | None = None) -> nn.Module:
    """The network of a YAML file, on the meta device: no memory until weights are assigned. `kind`
    is how the weights' files differ from what the YAML file is for."""
    entry = load_config(config_path).get("model")
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"Config file {config_path} has no `model` entry.")
    if kind is not None:
        entry = _of_kind(entry, kind)
    with torch.device("meta"), _NoInit():
        return instantiate_from_config(entry)


def _of_kind(entry: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
    """A `model` entry changed to what the files say."""
    entry = copy.deepcopy(dict(entry))
    params = entry["params"]
    if kind.prediction is Prediction.V:
        denoiser = params["denoiser_config"]["params"]
        denoiser["scaling_config"] = {"target": f"{MODULES}.denoiser_scaling.VScaling"}
        if kind.zero_terminal_snr:
            schedule = denoiser["discretization_config"]
            given = schedule.get("params") or {}
            schedule["params"] = {**given, "zero_terminal_snr": True}
    if kind.reads_mask:
        params["network_config"]["params"]["in_channels"] = MASKED_CHANNELS
    return entry


def load_weights(
    model: nn.Module,
    weights: Weights,
    device: torch.device,
    dtype: torch.dtype,
    progress: bool = True,
    exact: tuple[str, ...] = (),
) -> None:
    """Assign the weights of a model's files to its network, cast and moved tensor by tensor.

    Weights that need no change (the file's own type, on the CPU) stay views of the mapped file.
    The rest is copied, convolutions in channels-last layout, out of mappings that end soon: so
    the process never holds much more than the weights it ends up with.

    Args:
        model: may be on the meta device.
        weights: the files. What is in them beside the network's tensors is named in one notice.
        device, dtype: of the loaded weights; integer tensors keep their type.
        progress: show a bar on stderr.
        exact: beginnings of names whose weights are float32 whatever `dtype` is.

    Raises:
        CheckpointError: a file cannot be read, or does not hold this network.
    """
    wanted = {n: t for n, t in model.state_dict().items() if not n.endswith(UNREAD)}
    contents = read_contents(weights)
    sources, unused = find(contents, wanted)
    check_network(contents, sources, unused, wanted)
    changes = read_loras(weights.loras, wanted)
    if unused:
        logger.info("Not used of %s: %d tensors (%s).", contents.path, len(unused), listed(unused))
    kinds = {name: torch.float32 if name.startswith(exact) else dtype for name in wanted}
    loaded: dict[str, Tensor] = {
        name: torch.zeros(t.shape, device=device, dtype=dtype)
        for name, t in model.state_dict().items()
        if name not in wanted
    }
    views = {
        name
        for name, source in sources.items()
        if device.type == "cpu"
        and source.is_plain
        and DTYPES[source.parts[0].word] is kinds[name]
        and wanted[name].ndim != 4
        and name not in changes
    }
    copied = {name: source for name, source in sources.items() if name not in views}
    stored = chain(_viewed({name: sources[name] for name in views}), _joined(copied))
    with tqdm(total=len(wanted), desc="loading", unit="tensor", disable=not progress) as bar:
        for name, tensor in stored:
            tensor = _checked(sources[name], tensor)
            if name in changes:
                tensor = merged(tensor, changes[name])
            tensor = fit(tensor, wanted[name])
            kind = kinds[name] if tensor.is_floating_point() else tensor.dtype
            layout = torch.channels_last if tensor.ndim == 4 else torch.preserve_format
            own = name not in views
            loaded[name] = tensor.to(device, kind, copy=own, memory_format=layout)
            bar.update()
    model.load_state_dict(loaded, assign=True)


def _by_file(sources: Mapping[str, Source]) -> dict[Path, list[tuple[str, str]]]:
    """The stored tensors of each file, in order, with whose they are: (stored name, our name)."""
    files: dict[Path, list[tuple[str, str]]] = {}
    for name in sorted(sources):
        for part in sources[name].parts:
            files.setdefault(part.path, []).append((part.name, name))
    return files


def _viewed(sources: Mapping[str, Source]) -> Iterator[tuple[str, Tensor]]:
    """Tensors as views of their files."""
    for path, tensors in _by_file(sources).items():
        with open_weights(path) as file:
            for stored, name in tensors:
                yield name, file.get_tensor(stored)


def _joined(sources: Mapping[str, Source]) -> Iterator[tuple[str, Tensor]]:
    """Tensors for a consumer that keeps copies: parts joined (they may be in several files), axes
    exchanged."""
    waiting: dict[str, dict[str, Tensor]] = {}
    for path, tensors in _by_file(sources).items():
        read = read_in_turn(path, [stored for stored, _ in tensors])
        for (_, name), (stored, tensor) in zip(tensors, read, strict=True):
            source = sources[name]
            if len(source.parts) > 1:
                parts = waiting.setdefault(name, {})
                parts[stored] = tensor.clone()  # else it would keep its mapping
                if len(parts) < len(source.parts):
                    continue
                tensor = torch.cat([parts[part.name] for part in source.parts])
                del waiting[name], parts
            yield name, tensor.t() if source.transposed else tensor


def _checked(source: Source, tensor: Tensor) -> Tensor:
    """The tensor if all its values are numbers; float8 widened, which has no such test."""
    if tensor.is_floating_point() and tensor.numel():
        if tensor.dtype.itemsize == 1:
            tensor = tensor.float()
        # One pass without a copy; NaN and infinities come through to the extremes.
        low, high = torch.aminmax(tensor)
        if not (low.isfinite() and high.isfinite()):
            part = source.parts[0]
            raise CheckpointError(
                f"Weights file {part.path} is damaged: tensor {part.name} holds NaN or infinite "
                "values; download it again."
            )
    return tensor
