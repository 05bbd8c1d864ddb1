"""Random and damaged files of every kind that a user can hand in: a result or one clean error.

`pytest --hypothesis-profile=long tests/test_fuzz.py` tries many more than the suite does.
"""

import contextlib
import io
import json
import logging
import signal
import struct
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn

from sgm.config import load_config
from sgm.errors import UserError
from sgm.io import convert
from sgm.io.checkpoint import build_model, load_weights
from sgm.io.describe import describe
from sgm.io.imageio import load_picture
from sgm.io.maskio import load_mask
from sgm.specs import Weights
from tests.conftest import ROOT

HANG = 60  # seconds after which a single file counts as a hang
# Fewer examples where one takes longer; a profile with more of them multiplies.
SCALE = max(1, settings().max_examples // 100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@contextlib.contextmanager
def no_hang() -> Iterator[None]:
    """Ends what does not end."""

    def stop(number: int, frame: types.FrameType | None) -> None:
        raise AssertionError(f"still busy after {HANG} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def only_clean_errors(read: Callable[[], object]) -> None:
    """Calls a reader; the only exception that may come out is a sentence for a user."""
    logging.disable(logging.WARNING)  # notices of what was read
    try:
        with no_hang(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other packages' remarks on damaged files
            read()
    except UserError as error:
        message = str(error)
        assert message.endswith(".") and not message.endswith(".."), message
        assert "\n" not in message and len(message) < 2000, message
    finally:
        logging.disable(logging.NOTSET)


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of some files with bytes changed, cut out, doubled or cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "insert", "remove", "double", "cut"]))
        if kind == "change":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=9))
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
        else:
            del data[at:]
    return bytes(data)


# --- weights -----------------------------------------------------------------------------------

WEIGHTS = {"0.weight": torch.ones(2, 3).half(), "0.bias": torch.ones(2), "1.weight": torch.ones(4)}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F16", "F32", "I64", "F8_E4M3", "F4", "BOOL", "X"]) | JSON,
        "shape": st.lists(st.integers(-1, 2**64), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | JSON,
    }
)
HEADERS = st.dictionaries(st.sampled_from([*WEIGHTS, "__metadata__", "x"]), ENTRY | JSON) | JSON


def with_header(header: bytes, claimed: int | None = None) -> bytes:
    """A file of some header and 40 bytes of tensors."""
    return struct.pack("<Q", len(header) if claimed is None else claimed) + header + bytes(40)


def load_everywhere(path: Path) -> None:
    """What the commands do with a weights file: look at it, plan its conversion, load it."""
    model = nn.ModuleDict({"0": nn.Linear(3, 2), "1": nn.BatchNorm1d(4, affine=False)})
    only_clean_errors(lambda: describe(path, ROOT / "configs"))
    only_clean_errors(lambda: convert.plan(path, torch.float32, conv=True))
    only_clean_errors(
        lambda: load_weights(
            model, Weights(path), torch.device("cpu"), torch.float32, progress=False
        )
    )


@given(
    damaged([save(WEIGHTS), save(WEIGHTS, {"made": "here"})])
    | HEADERS.map(lambda value: with_header(json.dumps(value).encode()))
    | st.builds(with_header, st.binary(max_size=60), st.integers(0, 2**64 - 1))
)
@example(with_header(b"[" * 100_000))
@example(with_header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000))
@example(with_header(b'{"0.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8.5]}}'))
@example(with_header(b'{"0.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,1e999]}}'))
@example(with_header(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'))
@example(with_header(b'{"a\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'))
@example(b"")
@settings(max_examples=150 * SCALE)
def test_weights(folder: Path, content: bytes) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(content)
    load_everywhere(path)


# --- masks -------------------------------------------------------------------------------------


def array_file(save_as: Callable[..., None] = np.save, shape: tuple[int, ...] = (6, 8)) -> bytes:
    buffer = io.BytesIO()
    save_as(buffer, np.eye(*shape, dtype=bool))
    return buffer.getvalue()


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(48)


DTYPES = ["|b1", "<f4", ">i2", "<U3", "|O", "<M8[s]", "V7", "x", [("a", "<f4")]]
NPY_HEADERS = st.builds(
    lambda descr, order, shape: repr(
        {"descr": descr, "fortran_order": order, "shape": tuple(shape)}
    ).encode(),
    st.sampled_from(DTYPES),
    st.booleans() | st.none(),
    st.lists(st.integers(-2, 9) | st.integers(2**31, 2**65), max_size=4),
)


@given(
    damaged([array_file()]) | NPY_HEADERS.map(npy) | st.binary(max_size=200).map(npy),
    st.sampled_from([".npy", ".npz"]),
)
@example(npy(b"(" * 5000), ".npy")
@example(npy(b"-" * 60000), ".npy")
@settings(max_examples=200 * SCALE)
def test_arrays(folder: Path, content: bytes, suffix: str) -> None:
    path = folder / f"mask{suffix}"
    path.write_bytes(content)
    only_clean_errors(lambda: load_mask(path, (6, 8)))


@given(damaged([array_file(np.savez), array_file(np.savez_compressed)]))
@settings(max_examples=100 * SCALE)
def test_archives(folder: Path, content: bytes) -> None:
    path = folder / "mask.npz"
    path.write_bytes(content)
    only_clean_errors(lambda: load_mask(path, (6, 8)))


# --- configurations ----------------------------------------------------------------------------

CONFIG = (ROOT / "configs" / "tiny-original.yaml").read_bytes()


@given(damaged([CONFIG]) | st.text(max_size=80).map(lambda text: text.encode(errors="ignore")))
@example(b"model: " + b"[" * 3000 + b"]" * 3000)
@example(b"model: ${model}")
@example(b"a: ${b}\nb: ${a}\nmodel: ${a}")
@example(b"model: !!int twelve")
@example(b"model: !!timestamp 2001-13-45")
@example(b"model: !!binary '*'")
@example(b"model: !!python/object/apply:os.getcwd []")
@example(b"model: &a [*a]")
@example(b"? [a, b]\n: 1")
@example(b"model: {target: sgm.models.diffusion.DiffusionEngine, params: [1]}")
@example(b"model: {target: sgm.models.diffusion.DiffusionEngine, params: {scale_factor: x}}")
@settings(max_examples=60 * SCALE)
def test_configurations(folder: Path, content: bytes) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    only_clean_errors(lambda: load_config(path))
    only_clean_errors(lambda: build_model(path))


# --- pictures ----------------------------------------------------------------------------------


def picture_file(kind: str, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


PNGS = [picture_file("PNG", mode) for mode in ("RGB", "P", "LA", "1", "I;16")]
OTHERS = [picture_file(kind) for kind in ("JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "TGA")]


@given(damaged(PNGS) | damaged(OTHERS) | st.binary(max_size=99).map(lambda b: PNGS[0][:33] + b))
@settings(max_examples=300 * SCALE)
def test_pictures(folder: Path, content: bytes) -> None:
    path = folder / "picture.png"
    path.write_bytes(content)
    only_clean_errors(lambda: load_picture(path))
    only_clean_errors(lambda: load_mask(path, (16, 24)))
