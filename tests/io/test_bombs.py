"""Files of a few bytes that claim, or unpack to, far more than anybody has memory for.

Each ends in one sentence or is read, in little time and memory.
"""

import json
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sgm.config import MAX_BYTES, load_config
from sgm.errors import UserError
from sgm.io import convert
from sgm.io.checkpoint import load_weights
from sgm.io.imageio import load_picture
from sgm.io.maskio import MAX_VALUES, load_mask
from sgm.specs import Weights
from tests.test_fuzz import no_hang, npy

# Bytes that reading may take. Pillow lets 64 MiB of a picture's texts pass, twice over meanwhile.
MEMORY = 200 * 2**20
UNPACKED = 2**28  # bytes that a bomb holds: more than MEMORY
ZEROS = zlib.compress(bytes(2**20 - 1), 9)


def header(shape: tuple[int, ...], descr: str = "|b1") -> bytes:
    return repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()


def archive(path: Path, head: bytes) -> None:
    """A compressed archive whose one array has a header and then `UNPACKED` zeros."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("mask.npy", "w") as member,
    ):
        member.write(head)
        for _ in range(UNPACKED // 2**20):
            member.write(bytes(2**20))


def version_1(shape: tuple[int, ...]) -> bytes:
    return npy(header(shape))[:-48]


def version_2(length: int) -> bytes:
    """The beginning of a header that claims a length."""
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", length)


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (8, 8), rows: bytes = b"") -> bytes:
    """A picture with chunks before its pixels."""
    start = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    pixels = zlib.compress(rows or bytes((size[0] * 3 + 1) * size[1]))
    parts = [(b"IHDR", start), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    made = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def weights(head: bytes, claimed: int | None = None) -> bytes:
    return struct.pack("<Q", len(head) if claimed is None else claimed) + head


def entry(shape: list[int], end: int) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()


def unfolding(first: str, repeat: Callable[[int], str], levels: int) -> bytes:
    """A file in which every line repeats the one before nine times."""
    lines = [f"a{i}: &a{i} [{', '.join([repeat(i - 1)] * 9)}]" for i in range(1, levels)]
    return "\n".join([f"a0: &a0 {first}", *lines]).encode()


# A name, what makes the file, and what is said of it; nothing if it is read.
BOMBS: dict[str, tuple[str, bytes | Callable[[Path], None], str | None]] = {
    "array, many values": ("m.npy", npy(header((10**6, 10**6))), "claims 1,000,000,000,000 values"),
    "array, at the limit": ("m.npy", npy(header((MAX_VALUES, 1), "<f8")), "it is damaged"),
    "array, many axes": ("m.npy", npy(header((2,) * 64)), "claims"),
    "array, long text": ("m.npy", npy(header((9, 9), "<U400000000")), "expected bool"),
    "array, long header": ("m.npy", version_2(2**32 - 1) + b" " * 99, "it is damaged"),
    "archive": ("m.npz", lambda p: archive(p, version_1((UNPACKED, 1))), "claims 268,435,456"),
    "archive, long header": ("m.npz", lambda p: archive(p, version_2(UNPACKED)), "it is damaged"),
    "archive, small array": ("m.npz", lambda p: archive(p, version_1((6, 8))), None),
    "text": ("p.png", png((b"zTXt", b"k\0\0" + zlib.compress(bytes(2**28)))), "(?i)too large"),
    "international text": (
        "p.png",
        png((b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(2**28)))),
        "(?i)too large",
    ),
    "many texts": ("p.png", png(*[(b"zTXt", b"%d\0\0" % i + ZEROS) for i in range(99)]), "much"),
    "profile": ("p.png", png((b"iCCP", b"k\0\0" + zlib.compress(bytes(2**28)))), "(?i)too large"),
    "pixels": ("p.png", png(rows=bytes(2**28)), None),
    "size": ("p.png", png(size=(60_000, 60_000), rows=b"0"), "not safe to open"),
    "aliases": ("c.yaml", unfolding("[lol, lol]", "*a{}".format, 30), "aliases"),
    "few aliases": ("c.yaml", unfolding(f"[{'x, ' * 4000}]", "*a{}".format, 2), "expansion"),
    "interpolations": ("c.yaml", unfolding("lol", "${{a{}}}".format, 30), "interpolations"),
    "nested lists": ("c.yaml", b"[" * (MAX_BYTES // 4), "cannot be used|not valid YAML"),
    "nested mappings": ("c.yaml", b"{a: " * (MAX_BYTES // 4), "cannot be used|not valid YAML"),
    "more nested than the stack": ("c.yaml", b"[" * 100_000, "more than 20000 bytes"),
    "header beyond the file": ("w.safetensors", weights(b"{}", 2**63), "another kind of file"),
    "header of a petabyte": (
        "w.safetensors",
        weights(b"{}" + bytes(99), 10**8),
        "inside its header",
    ),
    "tensor of exabytes": ("w.safetensors", weights(entry([2**30, 2**30], 2**62)), "it has"),
    "shape that overflows": (
        "w.safetensors",
        weights(entry([2**40, 2**40], 8)) + bytes(8),
        "header",
    ),
    "nested header": ("w.safetensors", weights(b'{"a":' * 50_000), "damaged"),
}


def read(path: Path) -> None:
    """What the commands do with a file of this kind."""
    if path.suffix == ".safetensors":
        with pytest.raises(UserError):
            convert.plan(path, torch.float32, conv=True)
        model = nn.ParameterDict({"a": nn.Parameter(torch.ones(1))})
        load_weights(model, Weights(path), torch.device("cpu"), torch.float32, progress=False)
    elif path.suffix == ".yaml":
        load_config(path)
    elif path.suffix == ".png":
        assert np.asarray(load_picture(path)).shape == (8, 8, 3)
    else:
        assert not load_mask(path, (6, 8)).any()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on broken chunks
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_go_off(name: str, tmp_path: Path) -> None:
    file, content, expected = BOMBS[name]
    path = tmp_path / file
    path.write_bytes(content) if isinstance(content, bytes) else content(path)
    assert path.stat().st_size < 2**21
    tracemalloc.start()
    try:
        with no_hang():
            if expected is None:
                read(path)
            else:
                with pytest.raises(UserError, match=expected) as caught:
                    read(path)
                message = str(caught.value)
                assert file in message and message.endswith(".") and len(message) < 500
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def test_a_few_references_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("size: &size 8\nmodel:\n  width: *size\n  height: ${size}\n")
    config = load_config(tmp_path / "c.yaml")
    assert config == {"size": 8, "model": {"width": 8, "height": 8}}


def test_files_that_extend_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UserError, match=r"b\.yaml extends 'a\.yaml'; expected another file"):
        load_config(tmp_path / "a.yaml")
