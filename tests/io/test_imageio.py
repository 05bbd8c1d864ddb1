"""Pictures: every mode and damage, sizes, rounding, and files that appear whole or not at all."""

import io
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from sgm.errors import UserError
from sgm.io import imageio
from sgm.io.files import PICTURE_SUFFIXES

GRADIENT = np.arange(24 * 16 * 3, dtype=np.uint8).reshape(24, 16, 3)  # [H, W, 3]


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    (image or Image.fromarray(GRADIENT)).save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_every_8_bit_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("L", (5, 3), 255)
    source = grey.convert("RGBA").convert(mode) if mode == "RGBa" else grey
    if mode in ("La", "PA"):
        source = grey.convert("LA" if mode == "La" else "P").convert(mode)
    result = imageio.to_rgb(source.convert(mode) if source.mode != mode else source)
    assert (result.mode, result.size) == ("RGB", (5, 3))
    assert np.asarray(result).min() >= 254


def test_lab_becomes_rgb() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = Image.fromarray(GRADIENT)
    stored = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    result = np.asarray(imageio.to_rgb(stored)).astype(int)
    assert np.abs(result - GRADIENT).mean() < 4  # 8-bit LAB is coarse


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bits_are_scaled_not_cut(mode: str, tmp_path: Path) -> None:
    values = np.array([[0, 128, 257], [32768, 65534, 65535]], dtype=np.uint16)
    image = Image.fromarray(values.astype(np.int32), "I") if mode == "I" else None
    if image is None:
        dtype = ">u2" if mode == "I;16B" else "<u2"
        image = Image.frombytes(mode, (3, 2), values.astype(dtype).tobytes())
    result = np.asarray(imageio.to_rgb(image))
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(result, np.repeat(expected[..., None], 3, 2))


def test_16_bit_png_file(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 51 * 257, np.uint16)).save(path)
    assert np.unique(np.asarray(imageio.load_picture(path))).tolist() == [51]


@pytest.mark.parametrize(
    ("white", "reason"),
    [(1, "floats from 0 to 1"), (255, "floats up to 255"), (65535, "floats up to 65535")],
)
def test_float_pictures_by_their_range(white: float, reason: str) -> None:
    image = Image.fromarray(np.array([[0.0, white]], dtype=np.float32))
    assert np.asarray(imageio.to_rgb(image))[0, :, 0].tolist() == [0, 255], reason


def test_float_picture_with_nan_is_refused() -> None:
    with pytest.raises(UserError, match="NaN"):
        imageio.to_rgb(Image.fromarray(np.array([[np.nan, 1]], dtype=np.float32)))


def test_alpha_is_dropped_as_published(tmp_path: Path) -> None:
    rgba = np.dstack([GRADIENT, np.zeros((24, 16), np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    assert np.array_equal(np.asarray(imageio.load_picture(tmp_path / "clear.png")), GRADIENT)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by a quarter turn
    (tmp_path / "turned.png").write_bytes(encoded("PNG", exif=exif))
    picture = imageio.load_picture(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(picture), np.rot90(GRADIENT, -1))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "lime")]
    data = encoded(kind, frames[0], save_all=True, append_images=frames[1:])
    (tmp_path / "moving").write_bytes(data)
    picture = imageio.load_picture(tmp_path / "moving")
    assert np.abs(np.asarray(picture).astype(int) - [255, 0, 0]).max() <= 4
    assert "3 frames" in caplog.text


def test_bad_files_end_in_one_sentence(tmp_path: Path) -> None:
    png = encoded("PNG", Image.effect_noise((64, 64), 80))
    cases = {
        "missing.png": (None, "does not exist"),
        "empty.png": (b"", "is empty"),
        "text.png": (b"hello there, this is text", "is not a picture"),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid x", "Git LFS pointer"),
        "cut.png": (png[: len(png) // 2], "cannot be read"),
        "huge.png": (_png_of_size(60000, 60000), "pixels"),
    }
    for name, (content, expected) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=expected) as caught:
            imageio.load_picture(tmp_path / name)
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is a folder"):
        imageio.load_picture(tmp_path)
    with pytest.raises(UserError, match=r"did you mean text\.png"):
        imageio.load_picture(tmp_path / "txt.png")
    # Python versions differ in whether they call an impossible name absent or an error.
    for name in ("a\0b.png", "n" * 300 + ".png"):
        with pytest.raises(UserError, match=r"does not exist|cannot be opened"):
            imageio.load_picture(name)


def _png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size; its checksum is right, its content tiny."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk
    return start + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT" + b"\0" * 8


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on broken TIFF tags
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "TGA", "ICO"])
def test_damaged_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    data = encoded(kind)
    generator = np.random.default_rng(0)
    path = tmp_path / "damaged"
    for trial in range(40):
        broken = bytearray(data)
        if trial % 2:
            broken = broken[: generator.integers(1, len(broken))]
        for _ in range(trial % 5):
            broken[generator.integers(len(broken))] = generator.integers(256)
        path.write_bytes(broken)
        try:
            assert imageio.load_picture(path).mode == "RGB"
        except UserError as error:
            assert str(error).endswith(".")


def test_tensor_round_trip_is_exact() -> None:
    image = Image.fromarray(GRADIENT)
    x = imageio.to_tensor(image)
    assert (x.shape, x.dtype, x.min().item(), x.max().item()) == (
        (3, 24, 16),
        torch.float32,
        -1.0,
        1.0,
    )
    assert np.array_equal(np.asarray(imageio.to_picture((x + 1) / 2)), GRADIENT)
    assert torch.equal(imageio.to_bytes(image), imageio.to_uint8((x + 1) / 2))


def test_tensor_and_resize_match_the_published_loader(golden) -> None:
    case = golden("io")
    source = Image.fromarray(case.raw("load/source_hwc").numpy()).convert("RGB")
    expected = case["load/float"]
    expected = expected.squeeze(0) if expected.ndim == 4 else expected
    result = imageio.to_tensor(imageio.resize_picture(source, tuple(expected.shape[-2:])))
    # Lanczos may round one level differently between versions of Pillow.
    assert (result - expected).abs().max() <= 2 / 255 + 1e-6


def test_bytes_are_rounded_and_clamped() -> None:
    x = torch.tensor([[-1.0, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 3.0, float("inf")]])
    assert imageio.to_uint8(x).tolist() == [[0, 0, 0, 1, 255, 255, 255, 255]]
    assert imageio.to_uint8(x.bfloat16()).dtype == torch.uint8
    with pytest.raises(ValueError, match="NaN"):
        imageio.to_uint8(torch.full((1, 1), float("nan")))


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((64, 128), "already a multiple"),
        ((100, 70), "padding shorter than the picture"),
        ((37, 1001), "one side reflected, one odd"),
        ((5, 3), "padding many times the picture"),
        ((2, 2), "shortest that reflects"),
        ((1, 1), "nothing to reflect"),
        ((1, 65), "one side repeated"),
    ],
)
def test_padding_reflects_and_crops_back(size: tuple[int, int], reason: str) -> None:
    x = torch.rand(3, *size)
    padded = imageio.pad_to_multiple(x)
    assert padded.shape[-2] % 64 == 0 and padded.shape[-1] % 64 == 0
    assert padded.shape[-2] - size[0] < 64 and padded.shape[-1] - size[1] < 64
    assert torch.equal(imageio.crop_back(padded, size), x), reason
    pads = (0, padded.shape[-1] - size[1], 0, padded.shape[-2] - size[0])
    if pads[1] < size[1] and pads[3] < size[0]:
        assert torch.equal(padded, torch.nn.functional.pad(x[None], pads, "reflect")[0])
    # numpy reflects back and forth and repeats a side of 1: the same rule by other means.
    expected = np.pad(x.numpy(), ((0, 0), (0, pads[3]), (0, pads[1])), mode="reflect")
    assert np.array_equal(padded.numpy(), expected)


def test_padding_keeps_masks_boolean() -> None:
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[2, 2] = True
    padded = imageio.pad_to_multiple(mask, 4)
    assert padded.dtype == torch.bool and padded.shape == (4, 4) and padded.sum() == 1


def test_resizing_says_so_only_when_it_happens(caplog: pytest.LogCaptureFixture) -> None:
    image = Image.fromarray(GRADIENT)
    assert imageio.resize_picture(image, (24, 16)) is image and not caplog.text
    assert imageio.resize_picture(image, (10, 30)).size == (30, 10)
    assert "from 16x24 to 30x10" in caplog.text


@pytest.mark.parametrize("suffix", PICTURE_SUFFIXES)
def test_every_listed_extension_is_written(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"picture{suffix.upper()}"
    imageio.save_picture(torch.from_numpy(GRADIENT).permute(2, 0, 1), path)
    saved = np.asarray(imageio.load_picture(path)).astype(int)
    lossless = suffix not in (".jpg", ".jpeg")
    assert np.abs(saved - GRADIENT).max() <= (0 if lossless else 255)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    imageio.save_picture(Image.fromarray(GRADIENT), path)
    before = path.read_bytes()

    def full_disk(self: Image.Image, file: io.BytesIO, **options: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(UserError, match="No space left"):
        imageio.save_picture(Image.new("RGB", (4, 4)), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_places_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "file").write_text("x")
    image = Image.new("RGB", (2, 2))
    for name, expected in (
        ("a.xyz", r"extension '\.xyz'; end the name in one of \.png"),
        ("a", "no extension"),
        ("file/a.png", "is not a folder"),
        ("file/deeper/a.png", "is not a folder"),
    ):
        with pytest.raises(UserError, match=expected):
            imageio.save_picture(image, tmp_path / name)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        imageio.save_picture(image, tmp_path / "folder.png")
    with pytest.raises(UserError, match="cannot be written"):
        imageio.save_picture(image, tmp_path / ("n" * 300 + ".png"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "folder.png"}
