"""What a file says besides its pixels goes in and comes out."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from sgm.io.imageio import to_bytes
from sgm.io.photos import Photo, load_photo
from tests.profiles import ROTATED, WIDE, rgb_profile

SIZE = (24, 40)
PIXELS = np.random.default_rng(3).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)
TOUCHED = np.zeros(SIZE, dtype=bool)
TOUCHED[5:12, 10:30] = True


def shown(image: Image.Image) -> np.ndarray:
    """What a viewer that knows profiles shows, int [H, W, 3] in sRGB."""
    rgb, data = image.convert("RGB"), image.info.get("icc_profile")
    if data:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(data)), ImageCms.createProfile("sRGB")
        rgb = ImageCms.profileToProfile(rgb, own, srgb, outputMode="RGB")
    return np.asarray(rgb).astype(int)


def edited(photo: Photo, path: Path) -> Image.Image:
    """A photo whose touched part is inverted, as it comes back from its file."""
    inverted, touched = 255 - to_bytes(photo.image), torch.from_numpy(TOUCHED)
    photo.with_edit(inverted, touched, blended=True).save(path)
    return opened(path)


def opened(path: Path) -> Image.Image:
    """A picture with all that its file says, and the file closed."""
    with Image.open(path) as image:
        image.load()
        image.getexif()
        return image


@pytest.mark.parametrize("colorants", [WIDE, ROTATED], ids=["wide", "rotated"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_colours_come_back_in_their_own_space(
    colorants: tuple[tuple[float, ...], ...], suffix: str, tmp_path: Path
) -> None:
    # Not the most saturated colours, which sRGB has no numbers for.
    muted = Image.fromarray((PIXELS // 4 + 90).repeat(4, 0).repeat(4, 1)[: SIZE[0], : SIZE[1]])
    muted.save(tmp_path / f"in{suffix}", icc_profile=rgb_profile(colorants), quality=95)
    photo, before = load_photo(tmp_path / f"in{suffix}"), opened(tmp_path / f"in{suffix}")
    assert np.abs(np.asarray(photo.image) - shown(before)).max() <= 3
    after = edited(photo, tmp_path / "out.png")
    assert after.info["icc_profile"] == rgb_profile(colorants)
    assert np.array_equal(np.asarray(after)[~TOUCHED], np.asarray(before.convert("RGB"))[~TOUCHED])
    wanted = 255 - np.asarray(photo.image).astype(int)
    assert np.abs(shown(after) - wanted)[TOUCHED].max() <= 6


def test_a_profile_as_good_as_srgb_changes_no_byte(tmp_path: Path) -> None:
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    RGB.save(tmp_path / "in.png", icc_profile=data)
    photo = load_photo(tmp_path / "in.png")
    assert np.array_equal(np.asarray(photo.image), PIXELS)
    after = edited(photo, tmp_path / "out.png")
    assert after.info["icc_profile"] == data
    assert np.array_equal(np.asarray(after)[TOUCHED], 255 - PIXELS[TOUCHED])


def test_damaged_profiles_and_exif_are_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    RGB.save(tmp_path / "in.png", icc_profile=b"nonsense" * 40)
    assert np.array_equal(np.asarray(load_photo(tmp_path / "in.png").image), PIXELS)
    assert "colour profile of" in caplog.text


def test_a_camera_file_keeps_what_it_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = 6, "Camera", "(c) somebody"
    RGB.rotate(90, expand=True).save(tmp_path / "in.png", exif=exif, dpi=(300, 300))
    photo = load_photo(tmp_path / "in.png")
    assert np.array_equal(np.asarray(photo.image), PIXELS)  # upright
    for suffix in (".png", ".jpg", ".tif"):
        after = edited(photo, tmp_path / f"out{suffix}")
        found = after.getexif()
        assert (found[0x010F], found[0x8298]) == ("Camera", "(c) somebody")
        assert found.get(0x0112, 1) == 1 and after.size == SIZE[::-1]
        assert [round(float(value)) for value in after.info["dpi"]] == [300, 300]


def test_exif_that_a_jpeg_cannot_hold_is_left_out(tmp_path: Path, caplog) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera" * 10_000
    RGB.save(tmp_path / "in.png", exif=exif)
    photo = load_photo(tmp_path / "in.png")
    photo.save(tmp_path / "out.png")
    assert opened(tmp_path / "out.png").getexif()[0x010F] == exif[0x010F] and not caplog.records
    photo.save(tmp_path / "out.jpg")
    assert not opened(tmp_path / "out.jpg").getexif()
    assert "out.jpg cannot hold so much EXIF data; it is left out." in caplog.text


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_a_cut_out_stays_one(suffix: str, tmp_path: Path) -> None:
    alpha = np.full(SIZE, 255, np.uint8)
    alpha[:, :8] = 0
    alpha[6:9, 12:16] = 90
    Image.fromarray(np.dstack([PIXELS, alpha])).save(tmp_path / "in.png")
    photo = load_photo(tmp_path / "in.png")
    assert np.array_equal(np.asarray(photo.image), PIXELS)
    after = edited(photo, tmp_path / f"out{suffix}")
    assert after.mode == "RGBA" and np.array_equal(np.asarray(after)[..., 3], alpha)
    seen = ~TOUCHED & (alpha > 0)
    assert np.array_equal(np.asarray(after)[..., :3][seen], PIXELS[seen])


def test_what_is_painted_into_a_hole_is_seen(tmp_path: Path) -> None:
    alpha = np.where(TOUCHED, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([PIXELS, alpha])).save(tmp_path / "in.png")
    after = edited(load_photo(tmp_path / "in.png"), tmp_path / "out.png")
    assert np.asarray(after)[..., 3].min() == 255


def test_formats_without_transparency_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = np.full(SIZE, 200, np.uint8)
    Image.fromarray(np.dstack([PIXELS, alpha])).save(tmp_path / "in.png")
    after = edited(load_photo(tmp_path / "in.png"), tmp_path / "out.jpg")
    assert after.mode == "RGB" and "cannot hold transparency" in caplog.text


def deep_png() -> bytes:
    """RGB with 16 bits per channel, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in PIXELS.astype(np.uint16) * 257)

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", SIZE[1], SIZE[0], 16, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits_say_that_they_become_eight(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "rgb.png").write_bytes(deep_png())
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(tmp_path / "grey.png")
    RGB.save(tmp_path / "plain.png")
    load_photo(tmp_path / "plain.png")
    assert not caplog.text
    assert np.array_equal(np.asarray(load_photo(tmp_path / "rgb.png").image), PIXELS)
    load_photo(tmp_path / "grey.png")
    assert "rgb.png has more than 8 bits" in caplog.text and "grey.png has more" in caplog.text


def test_how_it_was_made_stands_in_a_png(tmp_path: Path) -> None:
    RGB.save(tmp_path / "in.png")
    photo = load_photo(tmp_path / "in.png")
    for text in ("a horse\nSteps: 20", "ein Pferd \u2713", None):
        photo.save(tmp_path / "out.png", text)
        assert opened(tmp_path / "out.png").info.get("parameters") == text
