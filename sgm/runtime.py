"""Device, precision and seed of a run.

Process-wide switches (TF32, the random generator) change only inside a `with` scope, and are put
back when it ends, also when it ends in an error.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgm.errors import UserError, suggestion
from sgm.words import Backend, Precision, Preset

DEVICE_TYPES = ("cpu", "cuda", "mps")
# Distributions whose version can change a result or a timing; absent ones are left out.
REPORTED_PACKAGES = ("torch", "numpy", "pillow", "safetensors", "triton", "sige")
DTYPES = {
    Precision.FP32: torch.float32,
    Precision.TF32: torch.float32,
    Precision.BF16: torch.bfloat16,
    Precision.FP16: torch.float16,
}


def pick_device(name: str | None = None) -> torch.device:
    """The device of a run: `cpu`, `cuda`, `cuda:<index>` or `mps`; without a name CUDA where there
    is one, else the CPU. UserError for an unknown name, or a device that this machine lacks."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in DEVICE_TYPES or (index and not index.isdecimal()):
        raise UserError(
            f"{name!r} is not a device; expected cpu, cuda, cuda:<number> or mps"
            f"{suggestion(kind, DEVICE_TYPES)}."
        )
    if kind == "cuda":
        if not torch.cuda.is_available():
            built = torch.version.cuda is not None
            why = "PyTorch finds no GPU" if built else "this PyTorch has no CUDA support"
            raise UserError(f"Device {name} is not available ({why}); use --device cpu.")
        count = torch.cuda.device_count()
        if int(index or 0) >= count:
            last = f"this machine has {count}, so the last is cuda:{count - 1}"
            raise UserError(f"Device {name} does not exist; {last}.")
    elif index and int(index) != 0:
        raise UserError(f"Device {name} does not exist; there is one {kind}, so leave the number.")
    elif kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("Device mps is not available on this machine; use --device cpu.")
    return torch.device(name)


def describe_device(device: torch.device) -> str:
    """Device for a report: `cpu`, or for CUDA its index and the name of the card."""
    if device.type != "cuda":
        return device.type
    index = torch.cuda.current_device() if device.index is None else device.index
    return f"cuda:{index} ({torch.cuda.get_device_name(index)})"


def dtype_of(precision: Precision) -> torch.dtype:
    """Element type of weights and activations; TF32 keeps float32 and rounds in the products."""
    return DTYPES[precision]


def best_precision(preset: Preset, device: torch.device) -> Precision:
    """The precision of a run that asks for none: fp32, but for preset `fast` on a CUDA card bf16,
    or fp16 on cards that do not multiply bf16 natively (compute capability under 8)."""
    if preset is Preset.PUBLISHED or device.type != "cuda":
        return Precision.FP32
    major, _ = torch.cuda.get_device_capability(device)
    return Precision.BF16 if major >= 8 else Precision.FP16


def wants_graphs(asked: bool | None, device: torch.device, backend: Backend) -> bool:
    """Whether sparse passes of the UNet run as CUDA graphs. Unasked they do on a CUDA device, but
    not with the published package, whose kernels know no padded lists of pixels."""
    if asked is None:
        return device.type == "cuda" and backend is not Backend.SIGE
    return asked


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise UserError for a precision that the device cannot run: CPUs lack fast fp16 arithmetic,
    and TF32 is a mode of CUDA cards."""
    if precision is Precision.FP16 and device.type == "cpu":
        raise UserError(
            "Precision fp16 needs a GPU and the device is cpu; use --precision fp32 or bf16."
        )
    if precision is Precision.TF32 and device.type != "cuda":
        raise UserError(
            f"Precision tf32 needs a CUDA device and the device is {device.type}; "
            "use --precision fp32."
        )


# cuDNN's attention is left out: it spends tens of milliseconds on every new number of pixels.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def precision_scope(precision: Precision, device: torch.device) -> Iterator[None]:
    """Scope with the TF32 switches and the attention kernels of a run; UserError as of
    `check_precision`.

    For every precision but tf32, matrix products (also those of oneDNN on the CPU) and convolutions
    compute in the type of their inputs; cuDNN's own default allows TF32 in convolutions.
    """
    check_precision(precision, device)
    tf32 = precision is Precision.TF32
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        with sdpa_kernel(ATTENTION):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Scope in which the global CPU generator is seeded (0 to 2**64 - 1). Every random draw of a
    run comes from it, on any device: the order of draws is part of the published behaviour."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def versions() -> dict[str, str]:
    """Versions that a figure depends on: Python, the installed packages, CUDA where built in."""
    found = {"python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
