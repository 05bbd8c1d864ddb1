"""What a weights file really is, when it is not what was asked for."""

import json
import struct
from collections.abc import Collection
from pathlib import Path

# safetensors refuses longer headers; a length beyond it is some other format's first bytes.
MAX_HEADER_BYTES = 100_000_000
# First bytes of files that are often found under a weights file's name, and what to do.
_LFS = "a git-LFS pointer and not the file; fetch it with `git lfs pull`"
_MAGIC = (
    (b"version https://git-lfs", _LFS),
    (b"PK\x03\x04", "a pickled PyTorch archive; pickles are never opened, get the .safetensors"),
    (b"\x80", "a Python pickle; pickles are never opened, get the .safetensors"),
    (b"\x1f\x8b", "gzip-compressed; unpack it first"),
)
# Tensors that only one family of models has, by a part of their names, in order of precedence.
_FAMILIES = (
    ("lora", "a LoRA, which is no whole model"),
    ("cond_stage_model.", "Stable Diffusion 1 or 2"),
    ("down_blocks.", "a diffusers UNet; name the folder that unet is in"),
    ("conditioner.embedders.1.", "SDXL base or turbo"),
    ("conditioner.embedders.0.model.", "the SDXL refiner"),
    ("double_blocks.", "a Flux model"),
)


def why_unreadable(path: Path) -> str:
    """The likely reason why a file is no readable safetensors file, and the remedy."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
            if size == 0:
                return "it is empty; download it again"
            if size < 8:
                return f"it ends after {size} bytes; download it again"
            (length,) = struct.unpack("<Q", head[:8])
            if length > MAX_HEADER_BYTES and 8 + length > size:  # so these bytes are no length
                return f"it is {_other_format(head)}"
            if length > MAX_HEADER_BYTES:
                return (
                    f"its header claims {length} bytes, more than the {MAX_HEADER_BYTES} that the "
                    "format allows; download it again"
                )
            if 8 + length > size:
                return f"it ends inside its header, at {size} bytes; download it again"
            file.seek(8)
            header = json.loads(file.read(length))
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
        if wanted != size:
            return f"it has {size} bytes instead of {wanted}; download it again"
    except OSError as error:
        return f"the system says: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return "its header is damaged; download it again"
    return "its header contradicts itself; download it again"


def _other_format(head: bytes) -> str:
    """The format that the first bytes of a file speak of."""
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page; log in to the download page or accept the licence there"
    meanings = (meaning for magic, meaning in _MAGIC if head.startswith(magic))
    return next(meanings, "another kind of file; download the .safetensors file")


def family(names: Collection[str]) -> str | None:
    """What kind of model tensors of these names belong to; None if that is not known."""
    for part, meaning in _FAMILIES:
        if any(part in name for name in names):
            return meaning
    return None
