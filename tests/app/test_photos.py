"""Photos that somebody sends: what is read, what is refused, and at which size it is edited."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgm.app.photos import MAX_UPLOAD, check_upload, open_photo, working_size
from sgm.app.preview import LatentColours
from sgm.errors import UserError


def png_of_size(path: Path, width: int, height: int) -> Path:
    """A PNG whose header says a size, and which holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    return path


def test_a_photo_is_opened_at_its_own_size_or_smaller(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (300, 200), "red").save(path)
    photo, before = open_photo(path, 300 * 200)
    assert photo.image.size == (300, 200) and before is None
    photo, before = open_photo(path, 15_000)
    assert photo.image.size == (150, 100) and before == (300, 200)


def test_too_many_pixels_are_refused_before_they_are_read(tmp_path: Path) -> None:
    side = int(MAX_UPLOAD**0.5)
    with pytest.raises(UserError, match=f"has {side} × {side + 1} pixels and at most 64 million"):
        check_upload(png_of_size(tmp_path / "large.png", side, side + 1))
    with pytest.raises(UserError, match="not safe to open"):
        check_upload(png_of_size(tmp_path / "huge.png", 2**20, 2**20))
    check_upload(png_of_size(tmp_path / "fits.png", side, side))


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("nothing")
    with pytest.raises(UserError, match="is not a picture"):
        open_photo(tmp_path / "a.png", 1000)


@pytest.mark.parametrize("size", [(1, 1), (64, 4000), (4000, 3000), (3000, 4001), (100, 99)])
def test_a_working_size_keeps_the_proportions(size: tuple[int, int]) -> None:
    height, width = working_size(size, 256 * 512)
    assert height * width <= 256 * 512 * 1.01 and height <= size[0] and width <= size[1]
    assert abs(height / width - size[0] / size[1]) <= size[0] / size[1] / min(height, width)


def test_a_strip_is_refused() -> None:
    with pytest.raises(UserError, match="too long and narrow"):
        working_size((1, 60_000), 256 * 512)


def test_latents_as_colours_recover_a_linear_picture() -> None:
    torch.manual_seed(0)
    z, linear = torch.randn(1, 4, 6, 10), 0.2 * torch.randn(4, 3)
    small = torch.einsum("bchw,ck->bkhw", z, linear).clamp(-1, 1) * 0.5 + 0.1
    picture = small[0].repeat_interleave(8, 1).repeat_interleave(8, 2)
    shown = LatentColours(z, picture)(z)
    assert shown.shape == (3, 48, 80)
    centres = shown.unflatten(1, (6, 8)).unflatten(3, (10, 8))[:, :, 3:5, :, 3:5].mean((2, 4))
    assert np.corrcoef(centres.flatten(), (small[0] / 2 + 0.5).flatten())[0, 1] > 0.95


def test_a_picture_of_one_colour_gives_that_colour() -> None:
    shown = LatentColours(torch.ones(1, 4, 2, 2), torch.full((3, 16, 16), 0.5))(
        torch.ones(1, 4, 2, 2)
    )
    assert torch.allclose(shown, torch.tensor(0.75))
