"""Where each tensor of a network is stored: in one file, in a file and another VAE, in a folder.

Real files differ in ways that do not matter. They carry tensors that nobody reads, name some of
them otherwise, or come as diffusers' folder of several files. All of that ends here.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from sgm.errors import UserError
from sgm.io.names import COMPONENTS, UNET, VAE, Place, diffusers_places, older_vae_name
from sgm.io.weights_file import CheckpointError, Part, catalogue, content_key
from sgm.specs import MASKED_CHANNELS, Weights
from sgm.words import Prediction

# `torch.compile` puts it into every name of a network that was saved in its compiled form.
COMPILED = "_orig_mod."
# What every published file holds and nobody reads: the token positions 0..76, which the tower
# counts itself, and a number of training.
COMMON = ("position_ids", "logit_scale")
# Empty tensors with which trainers mark a checkpoint; and how its metadata say the same.
V_MARK, ZERO_SNR_MARK = "v_pred", "ztsnr"
V_WORDS = {"v", "v_prediction", "v-prediction"}
# diffusion_pytorch_model.fp16-00001-of-00002.safetensors, and with fewer of its parts
_FILE_NAME = re.compile(
    r"(?P<stem>diffusion_pytorch_model|model)(?P<early>\.\w+)?"
    r"(-\d+-of-(?P<count>\d+))?(?P<late>\.\w+)?\.safetensors"
)


@dataclass(frozen=True)
class Source:
    """A tensor of a network as it is stored: its parts are joined along the first axis, and then
    the two axes are exchanged if it is `transposed`."""

    parts: tuple[Part, ...]
    transposed: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the tensor is in its file as it is."""
        return len(self.parts) == 1 and not self.transposed

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole; empty where the parts do not fit each other."""
        first, *others = (part.shape for part in self.parts)
        if not others:
            return first[::-1] if self.transposed else first
        rows = sum(part.shape[0] for part in self.parts if part.shape)
        return (rows, *first[1:]) if all(x[1:] == first[1:] for x in others) else ()


@dataclass(frozen=True)
class Contents:
    """What the files of a model hold."""

    path: Path  # of the checkpoint, a file or a folder
    parts: Mapping[str, Mapping[str, Part]]  # by component and name; a file's component is ""
    vae: Mapping[str, Part] | None  # of another autoencoder's file
    metadata: Mapping[str, str]  # of a single file
    scheduler: Mapping[str, object]  # a folder's `scheduler_config.json`

    @property
    def is_folder(self) -> bool:
        """Whether this is a diffusers folder."""
        return "" not in self.parts

    @property
    def groups(self) -> list[Mapping[str, Part]]:
        """The components, and another autoencoder where there is one."""
        return [*self.parts.values(), self.vae or {}]

    @property
    def names(self) -> list[str]:
        """Of all tensors of the checkpoint; in a folder after that of their component."""
        found = ((group, name) for group, parts in self.parts.items() for name in parts)
        return [f"{group}/{name}" if group else name for group, name in found]


@dataclass(frozen=True)
class Kind:
    """What the files say about the network that belongs to them.

    It may have been trained on a schedule that ends in noise alone, or be for inpainting, and read
    the mask and the masked picture as further input channels.
    """

    prediction: Prediction = Prediction.EPSILON
    zero_terminal_snr: bool = False
    reads_mask: bool = False

    def __str__(self) -> str:
        zero = " on a schedule of zero terminal SNR" * self.zero_terminal_snr
        inpainting = ", inpainting (9 input channels)" * self.reads_mask
        return f"prediction of {self.prediction}{zero}{inpainting}"


def read_contents(weights: Weights) -> Contents:
    """Look into the files of a model; no tensor is read.

    Raises:
        CheckpointError: one cannot be read, or a folder is none of diffusers'.
    """
    path = weights.checkpoint
    vae = None if weights.vae is None else _component(weights.vae, "the VAE")
    if not path.is_dir():
        parts, metadata = catalogue(path)
        return Contents(path, {"": _plain(parts)}, vae, metadata, {})
    if not (path / "unet").is_dir():
        raise CheckpointError(
            f"Folder {path} holds no folder unet, as diffusers saves it; name that folder or a "
            ".safetensors file."
        )
    present = [name for name in COMPONENTS if (path / name).is_dir()]
    wanted = [name for name in present if not (name == "vae" and vae is not None)]
    found = {name: _component(path / name, f"{path} ({name})") for name in wanted}
    return Contents(path, found, vae, {}, _scheduler(path / "scheduler/scheduler_config.json"))


def _plain(parts: Mapping[str, Part]) -> dict[str, Part]:
    return {name.replace(COMPILED, ""): part for name, part in parts.items()}


def _component(path: Path, what: str) -> dict[str, Part]:
    """The tensors of a network that is one file, or a folder of one or more."""
    if not path.is_dir():
        return _plain(catalogue(path)[0])
    groups: dict[str, list[Path]] = {}
    counts: dict[str, int] = {}
    for file in sorted(path.iterdir()):
        if match := _FILE_NAME.fullmatch(file.name):
            variant = (match["early"] or match["late"] or "").removeprefix(".")
            sharded = "" if match["count"] is None else "*"
            groups.setdefault(variant + sharded, []).append(file)
            counts[variant + sharded] = int(match["count"] or 1)
    if not groups:
        raise CheckpointError(
            f"Folder {path} of {what} holds no .safetensors file; get it in that format, since "
            "pickles are never opened."
        )
    # Full precision in one file, then in several; then half, then what else there is.
    order = ["", "*", "fp16", "fp16*"]
    chosen = min(groups, key=lambda v: (order.index(v) if v in order else len(order), v))
    if len(groups[chosen]) != counts[chosen]:
        raise CheckpointError(
            f"Folder {path} holds {len(groups[chosen])} of {counts[chosen]} files of {what}; "
            "download the others."
        )
    found = {}
    for file in groups[chosen]:
        found |= _plain(catalogue(file)[0])
    return found


def _scheduler(path: Path) -> dict[str, object]:
    """A scheduler's configuration; empty where a folder has none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON; download it again.") from error


def kind_of(contents: Contents, prediction: Prediction | None = None) -> Kind:
    """What the files say about their network, by marks, metadata or a scheduler's configuration; a
    `prediction` that a person names stands above them."""
    single = contents.parts.get("", {})
    metadata, scheduler = contents.metadata, contents.scheduler
    stated = {
        metadata.get("modelspec.prediction_type", "").lower(),
        str(scheduler.get("prediction_type")),
    }
    v = V_MARK in single or bool(stated & V_WORDS)
    if prediction is None:
        prediction = Prediction.V if v else Prediction.EPSILON
    zero = ZERO_SNR_MARK in single or scheduler.get("rescale_betas_zero_snr") is True
    zero = zero or metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    first = single.get(f"{UNET}input_blocks.0.0.weight")
    first = first or contents.parts.get("unet", {}).get("conv_in.weight")
    reads_mask = first is not None and first.shape[1:2] == (MASKED_CHANNELS,)
    # A noise prediction says nothing about the picture where there is noise alone.
    return Kind(prediction, zero and prediction is Prediction.V, reads_mask)


def find(contents: Contents, wanted: Collection[str]) -> tuple[dict[str, Source], list[str]]:
    """Where the tensors of a network are stored, by their names.

    Returns:
        By name, those that are there; and the names of stored tensors that no one reads, but for
        `COMMON`.
    """
    places, vae = diffusers_places(wanted), contents.vae
    found = {}
    for name in wanted:
        if vae is not None and name.startswith(VAE):
            theirs = places[name].names[0]
            names = (name, name.removeprefix(VAE), theirs, older_vae_name(theirs))
            source = next((Source((vae[n],)) for n in names if n in vae), None)
        elif contents.is_folder:
            source = _of_folder(contents.parts, places.get(name))
        else:
            source = _of_file(contents.parts[""], name)
        if source is not None:
            found[name] = source
    read = {part for source in found.values() for part in source.parts}
    rest = (n for group in contents.groups for n, part in group.items() if part not in read)
    marks = (V_MARK, ZERO_SNR_MARK)
    return found, [n for n in rest if n not in marks and not n.endswith(COMMON)]


def _of_file(parts: Mapping[str, Part], name: str) -> Source | None:
    if name in parts:
        return Source((parts[name],))
    # As converters of diffusers folders left it.
    if name.endswith(".text_projection") and f"{name}.weight" in parts:
        return Source((parts[f"{name}.weight"],), transposed=True)
    return None


def _of_folder(parts: Mapping[str, Mapping[str, Part]], place: Place | None) -> Source | None:
    if place is None or place.component not in parts:
        return None
    group = parts[place.component]
    found = []
    for name in place.names:
        # transformers 5 saves CLIP's tower without the first word.
        spellings = (name, name.removeprefix("text_model."), older_vae_name(name))
        part = next((group[n] for n in spellings if n in group), None)
        if part is None:
            return None
        found.append(part)
    return Source(tuple(found), place.transposed)


def weights_key(weights: Weights) -> dict[str, str]:
    """What pictures depend on of the files of a model: their content, and how it is used.

    Raises:
        CheckpointError: see `read_contents`.
    """
    contents = read_contents(weights)
    kind = kind_of(contents, weights.prediction)
    files = sorted({part.path for group in contents.groups for part in group.values()})
    loras = (f"{content_key(lora.path)} by {lora.weight}" for lora in weights.loras)
    return {
        "weights": "; ".join(map(content_key, files)),
        "LoRAs": "; ".join(sorted(loras)) or "none",
        "prediction": str(kind).removeprefix("prediction of "),
    }
