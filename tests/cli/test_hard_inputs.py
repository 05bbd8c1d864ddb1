"""Pictures and masks as people have them, as files on the command line, with the tiny network.

The network has random weights and runs one step: what counts is that the edit comes out whole, at
the size of the picture that went in, or that one sentence says why not.
"""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from sgm.cli import main as cli
from sgm.cli.program import run_program
from sgm.inference.pipeline import Pipeline
from sgm.io.checkpoint import build_model
from sgm.specs import ModelSpec
from sgm.words import RunType
from tests.conftest import ROOT, tiny_weights

CONFIGS = ROOT / "configs"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights of the tiny model."""
    model = build_model(CONFIGS / "tiny-original.yaml")
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    folder = tmp_path_factory.mktemp("weights")
    save_file(tiny_weights(shapes), folder / "tiny_base.safetensors")
    return folder


@pytest.fixture(scope="module")
def load() -> Callable[..., Pipeline]:
    """`Pipeline.load`, which loads each network once for all tests here."""
    original, loaded = Pipeline.load, {}

    def once(spec: ModelSpec, run_type: RunType, *rest: object, **options: object) -> Pipeline:
        if run_type not in loaded:
            loaded[run_type] = original(spec, run_type, *rest, **options)
        return loaded[run_type]

    return once


@pytest.fixture
def run(
    weights: Path,
    load: Callable[..., Pipeline],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., dict[str, object]]:
    """Runs one command in a fresh folder; the figures of `--json`, or the words of a refusal."""
    monkeypatch.setattr(Pipeline, "load", load)
    monkeypatch.chdir(tmp_path)
    common = ["--prompt", "a horse", "--model", "tiny", "--steps", "1", "--device", "cpu"]
    common += ["--weight_path", str(weights), "--config_path", str(CONFIGS), "--json", "-"]

    def command(*words: str) -> dict[str, object]:
        before = sorted(tmp_path.iterdir())
        code = run_program("run.py", lambda: cli.main([*common, *words]))
        out, err = capsys.readouterr()
        if code == 0:
            return json.loads(out)
        assert code == 2 and not out and sorted(tmp_path.iterdir()) == before
        last = err.splitlines()[-1]
        assert last.startswith("run.py: ") and last.endswith(".")
        return {"refused": last}

    return command


def inpaint(*words: str) -> tuple[str, ...]:
    return ("--init_img", "picture", "--mask_path", "mask.npy", *words)


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)


def rotated() -> tuple[Image.Image, dict[str, object]]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return RGB, {"format": "JPEG", "exif": exif}


PNG: dict[str, object] = {"format": "PNG"}
# How to save each, and the size (height, width) that comes out.
PICTURES = {
    "grey": (RGB.convert("L"), PNG, (40, 24)),
    "palette": (RGB.convert("P"), PNG, (40, 24)),
    "palette-transparent": (RGB.convert("P"), PNG | {"transparency": 3}, (40, 24)),
    "rgba": (Image.merge("RGBA", [*RGB.split(), RGB.convert("L")]), PNG, (40, 24)),
    "la": (Image.merge("LA", RGB.split()[:2]), PNG, (40, 24)),
    "cmyk": (RGB.convert("CMYK"), {"format": "JPEG"}, (40, 24)),
    "cmyk-tiff": (RGB.convert("CMYK"), {"format": "TIFF"}, (40, 24)),
    "16-bit": (Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), PNG, (40, 24)),
    "1-bit": (RGB.convert("1"), PNG, (40, 24)),
    "rotated": (*rotated(), (24, 40)),
    "animated": (
        RGB,
        {"format": "GIF", "save_all": True, "append_images": [RGB.rotate(180)]},
        (40, 24),
    ),
    "1x1": (RGB.crop((0, 0, 1, 1)), PNG, (1, 1)),
    "1-wide": (RGB.crop((0, 0, 1, 40)), PNG, (40, 1)),
    "37x1001": (RGB.resize((1001, 37)), PNG, (37, 1001)),
    "65x63": (RGB.resize((63, 65)), PNG, (65, 63)),
}


@pytest.mark.parametrize("run_type", ["original", "sige"])
@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture_is_edited_at_its_own_size(
    name: str,
    run_type: str,
    run: Callable[..., dict[str, object]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    image, options, size = PICTURES[name]
    with open("picture", "wb") as file:
        image.save(file, **options)
    mask = np.zeros(size, dtype=bool)
    mask[: -(-size[0] // 2), : -(-size[1] // 3)] = True
    np.save("mask.npy", mask)
    figures = run(*inpaint("--run_type", run_type, "--output_path", "out.png"))
    assert figures["size"] == list(size)
    with Image.open("out.png") as result:
        transparent = name in ("rgba", "la", "palette-transparent")
        assert (result.mode, result.size) == ("RGBA" if transparent else "RGB", size[::-1])
    if name == "animated":
        assert "2 frames; the first one is used" in caplog.text


ALL = slice(None)
# Where a mask is True.
MASKED: dict[str, list[tuple[object, object]]] = {
    "one-pixel": [(11, 17)],
    "corner": [(-1, -1)],
    "frame": [([0, -1], ALL), (ALL, [0, -1])],
    "islands": [(slice(None, None, 7), slice(None, None, 7))],
    "diagonal": [(range(70), range(70))],
    "row": [(31, ALL)],
    "column": [(ALL, 64)],
    "checkerboard": [(slice(0, None, 2), slice(1, None, 2))],
    "all-but-one": [(ALL, slice(1, None)), (slice(1, None), ALL)],
}


def masked(name: str) -> np.ndarray:
    """bool [70, 100], neither empty nor full."""
    mask = np.zeros((70, 100), dtype=bool)
    for where in MASKED[name]:
        mask[where] = True
    assert mask.any() and not mask.all()
    return mask


def test_there_are_a_hundred_islands() -> None:
    assert masked("islands").sum() >= 100


@pytest.mark.parametrize("suffix", ["npy", "png"])
@pytest.mark.parametrize("name", MASKED)
def test_masks_of_every_shape_run_sparsely(
    name: str, suffix: str, run: Callable[..., dict[str, object]]
) -> None:
    mask = masked(name)
    RGB.resize((100, 70)).save("picture", "PNG")
    file = f"mask.{suffix}"
    np.save(file, mask) if suffix == "npy" else Image.fromarray(mask).save(file)
    words = ("--mask_path", file, "--run_type", "sige", "--output_path", "out.png")
    figures = run("--init_img", "picture", *words)
    assert figures["run_type"] == "sige" and figures["size"] == [70, 100]
    assert figures["edit_ratio"] == pytest.approx(mask.mean())
    assert 0 <= figures["changed_outside"] <= 100


@pytest.mark.parametrize("name", ["one-pixel", "frame", "islands", "diagonal"])
def test_drawings_of_every_shape_run_sparsely(
    name: str, run: Callable[..., dict[str, object]]
) -> None:
    mask = masked(name)
    pixels = np.asarray(RGB.resize((100, 70)))
    Image.fromarray(pixels).save("before.png")
    Image.fromarray(np.where(mask[..., None], 255 - pixels, pixels)).save("after.png")
    words = ("--init_img", "before.png", "--edited_img", "after.png", "--run_type", "sige")
    figures = run("--task", "sdedit", *words, "--strength", "1", "--output_path", "out.png")
    assert figures["run_type"] == "sige" and figures["size"] == [70, 100]


def test_two_runs_give_the_same_bytes(run: Callable[..., dict[str, object]]) -> None:
    RGB.save("picture", "PNG")
    np.save("mask.npy", np.eye(40, 24, dtype=bool))
    for name in ("first.png", "second.png"):
        run(*inpaint("--run_type", "sige", "--seed", "7", "--output_path", name))
    assert Path("first.png").read_bytes() == Path("second.png").read_bytes()
    run(*inpaint("--run_type", "sige", "--seed", "8", "--output_path", "third.png"))
    assert Path("third.png").read_bytes() != Path("first.png").read_bytes()


def header_of(width: int, height: int) -> bytes:
    """A PNG that claims a size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    return start + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + bytes(8)


def png() -> bytes:
    buffer = io.BytesIO()
    RGB.save(buffer, "PNG")
    return buffer.getvalue()


BAD = {
    "truncated": (lambda: png()[: len(png()) // 2], "cannot be read"),
    "text": (lambda: b"this is text and no picture", "is not a picture"),
    "empty": (lambda: b"", "is empty"),
    "bomb": (lambda: header_of(50_000, 50_000), "not safe to open"),
    "missing": (None, "does not exist"),
    "folder": ("folder", "is a folder"),
}


@pytest.mark.parametrize("flag", ["--init_img", "--mask_path", "--edited_img"])
@pytest.mark.parametrize("name", BAD)
def test_files_that_are_no_picture(
    name: str, flag: str, run: Callable[..., dict[str, object]]
) -> None:
    content, expected = BAD[name]
    RGB.save("good.png")
    if content == "folder":
        Path("bad.png").mkdir()
    elif content is not None:
        Path("bad.png").write_bytes(content())
    words = ["--init_img", "good.png", "--mask_path", "good.png"]
    if flag == "--edited_img":
        words = ["--task", "sdedit", "--init_img", "good.png", "--run_type", "sige"]
    refused = run(*words, flag, "bad.png")["refused"]
    assert expected in refused and "bad.png" in refused
