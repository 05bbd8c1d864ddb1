"""Files of the tiny network with random weights, as the tests of loading change them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sgm.io.checkpoint import build_model, load_weights
from sgm.io.names import diffusers_places
from sgm.io.sources import kind_of, read_contents
from sgm.specs import Weights
from tests.conftest import ROOT, tiny_weights

CONFIG = ROOT / "configs" / "tiny-original.yaml"
CPU = torch.device("cpu")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TOWER = "conditioner.embedders.1.model."


def random_tensors(config: Path = CONFIG) -> dict[str, Tensor]:
    """The tensors of a whole file for a network, half precision."""
    shapes = {name: list(t.shape) for name, t in build_model(config).state_dict().items()}
    return {name: tensor.half() for name, tensor in tiny_weights(shapes).items()}


def saved(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    """A file, in a folder that may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def loaded(
    weights: Weights, dtype: torch.dtype = torch.float32, config: Path = CONFIG
) -> dict[str, Tensor]:
    """The weights of a network after they were loaded."""
    model = build_model(config, kind_of(read_contents(weights), weights.prediction))
    load_weights(model, weights, CPU, dtype, progress=False)
    return model.state_dict()


def folder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The same weights by component and name as diffusers saves them."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, place in diffusers_places(tensors).items():
        tensor = tensors[name].t() if place.transposed else tensors[name]
        # Linear where diffusers has linear layers.
        if tensor.ndim == 4 and (".proj_" in place.names[0] or ".to_" in place.names[0]):
            tensor = tensor[:, :, 0, 0]
        pieces = tensor.chunk(len(place.names)) if len(place.names) > 1 else [tensor]
        found.setdefault(place.component, {}).update(zip(place.names, pieces, strict=True))
    return found
