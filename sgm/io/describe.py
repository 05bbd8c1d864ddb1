"""What the files of a model are, for a person: `convert_weights.py --check`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sgm.config import load_config
from sgm.io.checkpoint import build_model
from sgm.io.convert import PROJECTION
from sgm.io.fits import family, listed, wrong_shapes
from sgm.io.lora import is_lora
from sgm.io.names import CONDITIONER, UNET
from sgm.io.sources import Contents, find, kind_of, read_contents
from sgm.io.weights_file import Part
from sgm.specs import MODELS, Weights

WIDTH = 100  # of a line of metadata


def describe(path: Path, configs: Path) -> str:
    """What a checkpoint, a folder or a LoRA holds, one fact a line, compared with the networks of a
    folder of YAML files.

    Raises:
        UserError: it cannot be read.
    """
    contents = read_contents(Weights(path))
    parts = [part for group in contents.parts.values() for part in group.values()]
    size = sum(file.stat().st_size for file in {part.path for part in parts})
    types = ", ".join(f"{n} {word}" for word, n in sorted(Counter(p.word for p in parts).items()))
    # How the projections around the transformers are stored.
    shapes = ((n, p.shape) for n, p in contents.parts.get("", {}).items())
    axes = frozenset(len(shape) for name, shape in shapes if PROJECTION.search(name))
    forms = {frozenset(): "none", frozenset({2}): "linear", frozenset({4}): "1x1 convolutions"}
    form = forms.get(axes, "mixed")
    lines = [f"{path}: {len(parts)} tensors ({types}), {size / 1e9:.2f} GB, projections: {form}"]
    lines += _facts(contents, configs)
    metadata = sorted(contents.metadata.items())
    return "\n".join(lines + [f"  {_clean(key)}: {_clean(value)}" for key, value in metadata])


def _facts(contents: Contents, configs: Path) -> list[str]:
    """Family, prediction, and what is extra or missing."""
    if is_lora(contents.names):
        return ["  family: a LoRA; give it to --lora"]
    network = _network(contents, configs)
    if network is None:
        return [f"  family: {family(contents.names) or 'not known here'}"]
    name, wanted = network
    sources, unused = find(contents, wanted)
    missing = [n for n in wanted if n not in sources and not n.endswith("logit_scale")]
    return [
        f"  family: {name}",
        f"  made for: {kind_of(contents)}",
        f"  missing: {_counted(missing)}",
        f"  of another shape: {_counted(wrong_shapes(sources, wanted))}",
        f"  not used: {_counted(unused)}",
    ]


def _counted(names: Sequence[str]) -> str:
    """How many names there are, and the first of them."""
    return f"{len(names)} ({listed(names)})" if names else "none"


def _network(contents: Contents, configs: Path) -> tuple[str, Mapping[str, Tensor]] | None:
    """Name and tensors of the network that a checkpoint is for, told by its family and by the
    channels of the UNet's first level."""
    # The refiner's only text encoder is the large one.
    refiner = any(name.startswith(f"{CONDITIONER}0.model.") for name in contents.names)
    if contents.is_folder:
        refiner = "text_encoder" not in contents.parts
    single, unet = contents.parts.get("", {}), contents.parts.get("unet", {})
    first: Part | None = single.get(f"{UNET}input_blocks.0.0.bias") or unet.get("conv_in.bias")
    for spec in MODELS.values():
        path = configs / spec.configs["refiner" if refiner else "original"]
        network = load_config(path)["model"]["params"]["network_config"]["params"]
        if first is not None and first.shape == (network["model_channels"],):
            meaning = "refiner" if refiner else "base or turbo"
            wanted = build_model(path, kind_of(contents)).state_dict()
            return f"{spec.name} {meaning}", wanted
    return None


def _clean(text: str) -> str:
    """One line of bounded length, without what could steer a terminal."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."
