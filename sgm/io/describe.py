"""What the files of a model are, for a person: `convert_weights.py --check`."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from sgm.config import load_config
from sgm.io.checkpoint import build_model
from sgm.io.convert import PROJECTION
from sgm.io.diagnosis import family
from sgm.io.fits import listed, wrong_shapes
from sgm.io.lora import is_lora
from sgm.io.names import CONDITIONER, UNET
from sgm.io.sources import Contents, find, kind_of, read_contents
from sgm.io.weights_file import Part
from sgm.specs import MODELS
from sgm.weights import Weights

WIDTH = 100  # of a line of metadata


def describe(path: Path, configs: Path) -> str:
    """What a checkpoint, a folder or a LoRA holds, one fact a line.

    Args:
        configs: the folder of the YAML files, whose networks it is compared with.

    Raises:
        UserError: it cannot be read.
    """
    contents = read_contents(Weights(path))
    parts = [part for group in contents.parts.values() for part in group.values()]
    size = sum(file.stat().st_size for file in {part.path for part in parts})
    types = ", ".join(f"{n} {word}" for word, n in sorted(Counter(p.word for p in parts).items()))
    form = _projections(contents)
    lines = [f"{path}: {len(parts)} tensors ({types}), {size / 1e9:.2f} GB, projections: {form}"]
    lines += _facts(contents, configs)
    metadata = sorted(contents.metadata.items())
    return "\n".join(lines + [f"  {_clean(key)}: {_clean(value)}" for key, value in metadata])


def _projections(contents: Contents) -> str:
    """How the projections around the transformers are stored; see `sgm.io.convert.PROJECTION`."""
    shapes = ((n, p.shape) for n, p in contents.parts.get("", {}).items())
    axes = {len(shape) for name, shape in shapes if PROJECTION.search(name)}
    form = {frozenset(): "none", frozenset({2}): "linear", frozenset({4}): "1x1 convolutions"}
    return form.get(frozenset(axes), "mixed")


def _facts(contents: Contents, configs: Path) -> list[str]:
    """Family, prediction, and what is extra or missing."""
    if is_lora(contents.names):
        return ["  family: a LoRA; give it to --lora"]
    network = _network(contents, configs)
    if network is None:
        found = family(contents.names)
        return [f"  family: {found or 'not known here'}"]
    name, wanted = network
    kind = kind_of(contents)
    sources, unused = find(contents, wanted)
    missing = [n for n in wanted if n not in sources and not n.endswith("logit_scale")]
    shapes = wrong_shapes(sources, wanted)
    return [
        f"  family: {name}",
        f"  made for: {kind}",
        f"  missing: {_counted(missing)}",
        f"  of another shape: {_counted(shapes)}",
        f"  not used: {_counted(unused)}",
    ]


def _counted(names: Iterable[str]) -> str:
    """How many names there are, and the first of them."""
    names = list(names)
    return f"{len(names)} ({listed(names)})" if names else "none"


def _network(contents: Contents, configs: Path) -> tuple[str, Mapping[str, Tensor]] | None:
    """Name and tensors of the network that a checkpoint is for, told by its family and width."""
    refiner = _is_refiner(contents)
    width = _width(contents)
    for spec in MODELS.values():
        path = configs / spec.configs["refiner" if refiner else "original"]
        network = load_config(path)["model"]["params"]["network_config"]["params"]
        if width == network["model_channels"]:
            meaning = "refiner" if refiner else "base or turbo"
            wanted = build_model(path, kind_of(contents)).state_dict()
            return f"{spec.name} {meaning}", wanted
    return None


def _is_refiner(contents: Contents) -> bool:
    """Whether the only text encoder is the large one, as in the refiner."""
    if contents.is_folder:
        return "text_encoder" not in contents.parts
    return any(name.startswith(f"{CONDITIONER}0.model.") for name in contents.names)


def _width(contents: Contents) -> int | None:
    """Channels of the UNet's first level."""
    single, unet = contents.parts.get("", {}), contents.parts.get("unet", {})
    part: Part | None = single.get(f"{UNET}input_blocks.0.0.bias") or unet.get("conv_in.bias")
    return None if part is None or len(part.shape) != 1 else part.shape[0]


def _clean(text: str) -> str:
    """One line of bounded length, without what could steer a terminal."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."
