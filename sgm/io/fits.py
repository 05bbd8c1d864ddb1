"""Whether the files of a model hold a network, and the sentence where they do not."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from sgm.io.names import UNET, VAE
from sgm.io.sources import Contents, Source
from sgm.io.weights_file import DTYPES, CheckpointError

# Tensors that only one family of models has, by a part of their names, in order of precedence.
_FAMILIES = (
    ("lora", "a LoRA, which is no whole model"),
    ("cond_stage_model.", "Stable Diffusion 1 or 2"),
    ("down_blocks.", "a diffusers UNet; name the folder that unet is in"),
    ("conditioner.embedders.1.", "SDXL base or turbo"),
    ("conditioner.embedders.0.model.", "the SDXL refiner"),
    ("double_blocks.", "a Flux model"),
)


def listed(names: Iterable[str]) -> str:
    """The first three of some names, and whether there are more."""
    names = sorted(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def fit(tensor: Tensor, wanted: Tensor) -> Tensor:
    """A stored tensor in the shape a network wants: linear [o, i] weights of published files serve
    1x1 convolutions [o, i, 1, 1], and the other way round. Any other difference is refused before
    (`check_network`)."""
    if tensor.ndim == 2 and tuple(wanted.shape) == (*tensor.shape, 1, 1):
        # Strides of channels-last, which `[:, :, None, None]` would not have.
        return tensor[:, None, None, :].permute(0, 3, 1, 2)
    if tensor.ndim == 4 and tuple(tensor.shape) == (*wanted.shape, 1, 1):
        return tensor[:, :, 0, 0]
    return tensor


def wrong_shapes(sources: Mapping[str, Source], wanted: Mapping[str, Tensor]) -> list[str]:
    """The tensors that are stored in a shape which does not serve a network."""
    shapes = {name: source.shape for name, source in sources.items()}
    fitted = {n: fit(torch.empty(s, device="meta"), wanted[n]) for n, s in shapes.items()}
    return [name for name, tensor in fitted.items() if tensor.shape != wanted[name].shape]


def check_network(
    contents: Contents,
    sources: Mapping[str, Source],
    unused: Collection[str],
    wanted: Mapping[str, Tensor],
) -> None:
    """Every tensor of a network must be there, in a type that is read and in its shape.

    Without memory, so that a wrong file of gigabytes is refused before it is read. `find` gives
    where the wanted tensors are stored and what else is in the files.

    Raises:
        CheckpointError: one sentence with counts, the first names and the likely cause.
    """
    if missing := set(wanted) - set(sources):
        kind = "folder" if contents.is_folder else "file"
        counts = f"{len(missing)} missing ({listed(missing)})"
        if unused and not contents.is_folder:
            counts += f" and {len(unused)} unexpected ({listed(unused)})"
        raise CheckpointError(
            f"Weights {kind} {contents.path} is not for this network: of its tensors {counts}; "
            f"{_cause(contents, missing, wanted)}."
        )
    if scaled := [name for name in unused if name.endswith("scale_weight")]:
        raise CheckpointError(
            f"Weights file {contents.path} holds float8 numbers with scales beside them "
            f"({listed(scaled)}), which are not read here; get it in fp16 or bf16."
        )
    parts = [part for source in sources.values() for part in source.parts]
    if strange := {part.name for part in parts if part.word not in DTYPES}:
        raise CheckpointError(
            f"Weights file {contents.path} holds {len(strange)} tensors of a type that is not read "
            f"here ({listed(strange)}); get it in fp16, bf16 or fp32."
        )
    if wrong := wrong_shapes(sources, wanted):
        name = wrong[0]
        raise CheckpointError(
            f"Weights file {sources[name].parts[0].path} is not for this network: {len(wrong)} "
            f"tensors differ in shape, first {name}, {list(sources[name].shape)} instead of "
            f"{list(wanted[name].shape)}."
        )


def _cause(contents: Contents, missing: Collection[str], wanted: Mapping[str, Tensor]) -> str:
    """Why tensors may be missing, and what to do."""
    if all(name.startswith(VAE) for name in missing):
        if contents.vae is not None:
            return "the file of --vae holds no such autoencoder"
        return "it comes without a VAE (autoencoder); name one with --vae"
    if contents.parts.get("") and all(name.startswith(UNET) for name in contents.names):
        return "it holds the UNet alone, without text encoders and VAE; get the whole checkpoint"
    found, expected = family(contents.names), family(wanted)
    if found is None or found == expected:
        return f"check --model, --run_type and the {'folder' if contents.is_folder else 'file'}"
    return f"it looks like {found}" + (f", and {expected} is needed" if expected else "")


def family(names: Collection[str]) -> str | None:
    """What kind of model tensors of these names belong to; None if that is not known."""
    for part, meaning in _FAMILIES:
        if any(part in name for name in names):
            return meaning
    return None
