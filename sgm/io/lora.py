"""LoRAs merged into weights as these are loaded: W + weight * alpha / rank * up @ down.

There are two families of names: kohya's (`lora_unet_...`, dots as underscores, blocks counted as in
the published file or as in diffusers) and diffusers' and peft's (`unet.....lora_A.weight`). Both
are brought to kohya's form, and looked up in a table made from the network's own names.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sgm.io.fits import listed
from sgm.io.names import CONDITIONER, UNET, VAE, diffusers_places
from sgm.io.weights_file import CheckpointError, open_weights
from sgm.specs import Lora

logger = logging.getLogger(__name__)

# The last words of a tensor's name, by what it is. peft puts the adapter's name before `weight`.
_ROLES = {
    "down": r"lora_down|lora_A|lora\.down|lora_linear_layer\.down|down",
    "up": r"lora_up|lora_B|lora\.up|lora_linear_layer\.up|up",
    "mid": r"lora_mid",
}
_TENSOR = re.compile(
    r"(?P<module>.+?)\.(?:"
    + "|".join(f"(?P<{role}>{words})" for role, words in _ROLES.items())
    + r")(?:\.\w+)?\.weight"
)
_ALPHA = ".alpha"
# Other ways to change a network, by a word of their tensors' names.
_OTHERS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
}
# Beginnings of names, as they are saved, and as kohya's.
_BEGINNINGS = {
    "base_model.model.": "lora_unet_",
    "unet.": "lora_unet_",
    "model.diffusion_model.": "lora_unet_",
    "diffusion_model.": "lora_unet_",
    "text_encoder.": "lora_te1_",
    "text_encoder_2.": "lora_te2_",
}


@dataclass(frozen=True)
class Target:
    """The weight that a LoRA's module changes, or one (`part`) of so many equal ranges (`parts`) of
    its rows; `transposed` if the module's own weight has the two axes exchanged."""

    name: str
    part: int = 0
    parts: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Change:
    """What a LoRA adds to a weight.

    Attributes:
        up: [out, rank] or [out, rank, 1, 1].
        down: [rank, in] or [rank, in, h, w]; with `mid` [rank, in, 1, 1].
        mid: [rank, rank, h, w], or None.
        scale: what the product is multiplied by.
    """

    target: Target
    up: Tensor
    down: Tensor
    mid: Tensor | None
    scale: float

    def product(self) -> Tensor:
        """The change, float32, [out, in] or [out, in, h, w]."""
        up, down = self.up.float().flatten(1), self.down.float()
        if self.mid is None:
            change = (up @ down.flatten(1)).reshape(len(up), *down.shape[1:])
        else:
            middle = self.mid.float()
            change = torch.einsum("or,rshw,si->oihw", up, middle, down.flatten(1))
        change = self.scale * change
        return change.t() if self.target.transposed else change


def merged(tensor: Tensor, changes: Sequence[Change]) -> Tensor:
    """A stored weight with what LoRAs add to it: float32, a copy."""
    result = tensor.float().clone()
    for change in changes:
        rows = result.chunk(change.target.parts)[change.target.part]
        rows += change.product().reshape(rows.shape)
    return result


def is_lora(names: Sequence[str]) -> bool:
    """Whether tensors of these names are those of a LoRA, or of what is like one."""
    return any(_role(name)[1] in ("up", "down") or _kind(name) for name in names)


def read_loras(loras: Sequence[Lora], wanted: Mapping[str, Tensor]) -> dict[str, list[Change]]:
    """What some LoRAs change of a network (its tensors by name), by the names of its weights.
    CheckpointError for a file that cannot be read, is of a kind that is not merged here, or is for
    another model."""
    targets = targets_of(wanted) if loras else {}
    changes: dict[str, list[Change]] = {}
    # In one order, however they are given: sums of three depend on it in the last bit.
    for lora in sorted(loras):
        for change in _read(lora, targets):
            name = change.target.name
            _check_shape(lora.path, change, wanted[name])
            changes.setdefault(name, []).append(change)
    return changes


def targets_of(wanted: Mapping[str, Tensor]) -> dict[str, Target]:
    """The weights that a LoRA may change, by every name of their modules in kohya's form."""
    names = [n for n in wanted if n.endswith("weight") or n.endswith("text_projection")]
    places, targets = diffusers_places(wanted), {}
    start = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    for name in names:
        if name.startswith(VAE) or wanted[name].ndim < 2:
            continue
        if name.startswith(UNET):
            targets[f"lora_unet_{_flat(name.removeprefix(UNET))}"] = Target(name)
        if (place := places.get(name)) is None:
            continue
        for number, theirs in enumerate(place.names):
            target = Target(name, number, len(place.names), place.transposed)
            # transformers 5 names CLIP's tower without the first word.
            for spelling in {theirs, theirs.removeprefix("text_model.")}:
                targets[start[place.component] + _flat(spelling)] = target
    return targets


def _flat(name: str) -> str:
    return name.removesuffix(".weight").replace(".", "_")


def _module(name: str) -> str:
    """A module's name in kohya's form."""
    for start, ours in _BEGINNINGS.items():
        if name.startswith(start):
            inner = name.removeprefix(start).removeprefix("base_model.model.")
            # Attention processors of 2023: `attn1.processor.to_q_lora`.
            inner = re.sub(r"\.processor\.(to_\w+)_lora$", r".\1", inner)
            return ours + _flat(re.sub(r"\.to_out$", ".to_out.0", inner))
    return name


def _read(lora: Lora, targets: Mapping[str, Target]) -> list[Change]:
    path = lora.path
    with open_weights(path) as file:
        names = list(file.keys())
        _refuse_others(path, names)
        found: dict[str, dict[str, Tensor]] = {}
        unknown = []
        for name in names:
            module, role = _role(name)
            if role is None or _module(module) not in targets:
                unknown.append(name)
            else:
                found.setdefault(module, {})[role] = file.get_tensor(name)
        adapters = _adapters(path, dict(file.metadata() or {}))
    changes = []
    for module, tensors in found.items():
        if "up" not in tensors or "down" not in tensors:
            unknown += [f"{module} ({role})" for role in tensors]
            continue
        up, down = tensors["up"], tensors["down"]
        scale = lora.weight * _scale(module, tensors.get("alpha"), len(down), adapters)
        target = targets[_module(module)]
        changes.append(Change(target, up, down, tensors.get("mid"), scale))
    if not changes:
        raise CheckpointError(
            f"LoRA {path} changes nothing of this model: none of its {len(names)} tensors has a "
            f"name that is known here ({listed(unknown)}); get one that is made for SDXL."
        )
    if unknown:
        logger.warning("Not used of %s: %d tensors (%s).", path, len(unknown), listed(unknown))
    return changes


def _role(name: str) -> tuple[str, str | None]:
    """The module of a tensor, and what it is to it; None if that is not known."""
    if name.endswith(_ALPHA):
        return name.removesuffix(_ALPHA), "alpha"
    match = _TENSOR.fullmatch(name)
    if match is None:
        return name, None
    return match["module"], next(role for role in _ROLES if match[role])


def _kind(name: str) -> str | None:
    """Of which other way to change a network a tensor is, told by its name."""
    return next((kind for word, kind in _OTHERS.items() if word in name), None)


def _refuse_others(path: Path, names: Sequence[str]) -> None:
    for name in names:
        if kind := _kind(name):
            raise CheckpointError(
                f"LoRA {path} is a {kind} ({name}), which is not merged here; get it as a plain "
                "LoRA."
            )
    if any(name.startswith((UNET, CONDITIONER)) and "lora" not in name for name in names):
        raise CheckpointError(f"File {path} is a checkpoint and no LoRA; use --checkpoint.")


def _adapters(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """peft's configurations by component: of diffusers in the metadata, of peft in a file beside.
    CheckpointError if they cannot be read, or are for a kind that is not merged here."""
    beside = path.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            flat = dict(json.loads(metadata["lora_adapter_metadata"]))
        elif path.stem == "adapter_model" and beside.is_file():
            values = dict(json.loads(beside.read_text(encoding="utf-8")))
            flat = {f"unet.{name}": value for name, value in values.items()}
        else:
            return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"LoRA {path} has a configuration that is damaged; download it again."
        ) from error
    adapters: dict[str, dict[str, object]] = {}
    for name, value in flat.items():
        component, _, field = name.partition(".")
        adapters.setdefault(component, {})[field] = value
    if any(adapter.get("use_dora") for adapter in adapters.values()):
        raise CheckpointError(
            f"LoRA {path} is a DoRA, which is not merged here; get it as a plain LoRA."
        )
    return adapters


def _scale(
    module: str, alpha: Tensor | None, rank: int, adapters: Mapping[str, Mapping[str, object]]
) -> float:
    """alpha / rank; alpha is the rank where nothing is said of it."""
    if alpha is not None:
        return float(alpha) / rank
    component, _, inner = module.partition(".")
    adapter = adapters.get("unet" if component == "base_model" else component)
    if adapter is None:
        return 1.0
    patterns = adapter.get("alpha_pattern")
    patterns = patterns if isinstance(patterns, dict) else {}
    fitting = (x for pattern, x in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", inner))
    value = next(fitting, adapter.get("lora_alpha", rank))
    assert isinstance(value, (int, float))
    return value / (rank**0.5 if adapter.get("use_rslora") else rank)


def _check_shape(path: Path, change: Change, wanted: Tensor) -> None:
    rows, rank = wanted.shape[0] // change.target.parts, len(change.down)
    fits = change.up.flatten(1).shape[-1] == rank
    middle = 1 if change.mid is None else change.mid[0, 0].numel()
    count = len(change.up) * change.down[0].numel() * middle
    if not fits or count != rows * wanted[0].numel():
        raise CheckpointError(
            f"LoRA {path} is not for this model: it changes {change.target.name} by "
            f"{len(change.up)} x {change.down[0].numel()} numbers, and that weight is "
            f"{list(wanted.shape)}; get one that is made for SDXL."
        )
