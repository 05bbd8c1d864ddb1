"""Masks: every way to write one down gives the same booleans; nonsense is refused."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgm.errors import UserError
from sgm.io.maskio import load_levels, load_mask

MASK = np.zeros((6, 8), dtype=bool)
MASK[1:4, 2:7] = True
SIZE = MASK.shape
RAMP = np.linspace(0, 1, MASK.size).reshape(SIZE)


def saved(tmp_path: Path, values: np.ndarray) -> Path:
    """A `.npy` file of an array."""
    np.save(tmp_path / "mask.npy", values)
    return tmp_path / "mask.npy"


def same(mask: torch.Tensor) -> bool:
    """Whether a loaded mask is MASK, as a bool tensor."""
    return mask.dtype == torch.bool and np.array_equal(mask.numpy(), MASK)


ARRAYS = {
    "bool": MASK,
    "0/1 bytes": MASK.astype(np.uint8),
    "0/255 bytes": MASK.astype(np.uint8) * 255,
    "0/255 as int64": MASK.astype(np.int64) * 255,
    "0/255 as floats": MASK * 255.0,
    "grey levels": np.where(MASK, 200, 90).astype(np.uint8),
    "two labels": MASK * 2,
    "0/100": MASK.astype(np.uint8) * 100,
    "16-bit array": MASK.astype(np.uint16) * 65535,
    "a red label": np.dstack([MASK * 255, MASK * 0, MASK * 0]).astype(np.uint8),
    "floats": np.where(MASK, 0.51, 0.5),
    "half floats": MASK.astype(np.float16),
    "big-endian": MASK.astype(">f4"),
    "Fortran order": np.asfortranarray(MASK),
    "one channel": MASK[..., None],
    "three channels": np.repeat(MASK[..., None], 3, 2),
    "opaque alpha": np.dstack([MASK * 255] * 3 + [np.full(SIZE, 255)]).astype(np.uint8),
    "alpha": np.dstack([np.zeros(SIZE)] * 3 + [MASK]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name: str, tmp_path: Path) -> None:
    assert same(load_mask(saved(tmp_path, ARRAYS[name]), SIZE))


@pytest.mark.parametrize(
    "arrays", [{"anything": MASK}, {"mask": MASK, "other": ~MASK}, {"arr_0": MASK, "x": ~MASK}]
)
def test_archives(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "m.npz", **arrays)
    assert same(load_mask(tmp_path / "m.npz", SIZE))


def test_archive_with_unclear_names_lists_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", first=MASK, second=MASK)
    with pytest.raises(UserError, match="first, second"):
        load_mask(tmp_path / "m.npz", SIZE)


BAD_ARRAYS = {
    "NaN": (np.where(MASK, np.nan, 0), "NaN"),
    "negative": (-MASK.astype(float), "from -1 to -0|from -1 to 0"),
    "floats too large": (np.where(MASK, 1.5, RAMP), "from 0 to 1.5"),
    "three labels": (MASK + MASK[::-1] * 2, "from 0 to 3"),
    "16-bit grey": ((RAMP * 65535).astype(np.uint16), "from 0 to 65535"),
    "nearly nothing": (RAMP * 0.4, "brightest at"),
    "text": (np.full(SIZE, "yes"), "<U3"),
    "complex": (MASK.astype(complex), "complex128"),
    "one axis": (MASK.ravel(), r"shape \(48,\)"),
    "scalar": (np.array(True), r"shape \(\)"),
    "channels first": (MASK[None], r"shape \(1, 6, 8\)"),
    "four axes": (MASK[None, ..., None], r"shape \(1, 6, 8, 1\)"),
    "nothing": (MASK[:0], "holds nothing"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_are_no_mask(name: str, tmp_path: Path) -> None:
    values, expected = BAD_ARRAYS[name]
    with pytest.raises(UserError, match=expected) as caught:
        load_mask(saved(tmp_path, values), SIZE)
    assert str(caught.value).endswith(".")


class Bomb:
    """Unpickling this would make a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_pickles_are_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    np.save(tmp_path / "m.npy", np.array([Bomb(str(trace))], dtype=object), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Bomb(str(trace))))
    np.savez(tmp_path / "m.npz", mask=np.array([Bomb(str(trace))], dtype=object))
    for name in ("m.npy", "bare.npy", "m.npz"):
        with pytest.raises(UserError, match=r"Python objects|damaged"):
            load_mask(tmp_path / name, SIZE)
    assert not trace.exists()


def test_damaged_arrays(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, MASK)
    for suffix in (".npy", ".npz"):
        for content in (b"junk", buffer.getvalue()[:-5], buffer.getvalue()[:20], b"PK\3\4junk"):
            (tmp_path / f"m{suffix}").write_bytes(content)
            with pytest.raises(UserError, match="cannot be read"):
                load_mask(tmp_path / f"m{suffix}", SIZE)
    with pytest.raises(UserError, match="does not exist"):
        load_mask(tmp_path / "none.npy", SIZE)


GREY = Image.fromarray(MASK.astype(np.uint8) * 255)
PICTURES = {
    "grey": GREY,
    "1 bit": GREY.convert("1"),
    "RGB": GREY.convert("RGB"),
    "palette": GREY.convert("P"),
    "16 bits": Image.fromarray(MASK.astype(np.uint16) * 65535),
    "16 bits, dim": Image.fromarray(np.where(MASK, 40000, 30000).astype(np.uint16)),
    "0 and 1": Image.fromarray(MASK.astype(np.uint8)),
    "0 and 1 in 16 bits": Image.fromarray(MASK.astype(np.uint16)),
    "opaque alpha": GREY.convert("RGBA"),
    "alpha only": Image.merge("LA", (Image.new("L", GREY.size, 0), GREY)),
    "RGBA": Image.merge("RGBA", [Image.new("L", GREY.size, 9)] * 3 + [GREY]),
}


def layer(colour: tuple[int, int, int], alpha: np.ndarray, canvas: int = 0) -> Image.Image:
    """A brush layer: one colour where it was painted, a canvas that is not seen elsewhere."""
    painted = np.where((alpha > 0)[..., None], colour, canvas)
    return Image.fromarray(np.dstack([painted, alpha]).astype(np.uint8))


OPAQUE = np.full(SIZE, 255)
SPECK, EDGE = OPAQUE.copy(), OPAQUE.copy()
SPECK[0, 0], EDGE[5] = 254, 0
PHOTO = np.random.default_rng(2).integers(30, 220, (*SIZE, 3))
VOC = Image.fromarray(MASK.astype(np.uint8), "P")
VOC.putpalette([0, 0, 0, 128, 0, 0])
PICTURES |= {
    "two values": Image.fromarray(np.where(MASK, 2, 0).astype(np.uint8)),
    "dim": Image.fromarray(np.where(MASK, 100, 0).astype(np.uint8)),
    "labels of a palette": VOC,
    **{
        name: Image.fromarray(np.where(MASK[..., None], colour, 0).astype(np.uint8))
        for name, colour in {"red": (255, 0, 0), "blue": (0, 0, 255), "dark": (128, 0, 0)}.items()
    },
    "blue on red": Image.fromarray(
        np.where(MASK[..., None], (255, 0, 0), (0, 0, 255)).astype(np.uint8)
    ),
    "one pixel of alpha 254": Image.fromarray(
        np.dstack([MASK * 255] * 3 + [SPECK]).astype(np.uint8)
    ),
    "a transparent edge": Image.fromarray(np.dstack([MASK * 255] * 3 + [EDGE]).astype(np.uint8)),
    "black strokes on a white canvas": layer((0, 0, 0), MASK * 255, 255),
    "red strokes": layer((255, 0, 0), MASK * 255),
    "erased from a photograph": Image.fromarray(
        np.dstack([PHOTO, np.where(MASK, 0, 255)]).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, tmp_path: Path) -> None:
    PICTURES[name].save(tmp_path / "mask.png")
    assert same(load_mask(tmp_path / "mask.png", SIZE))


@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 0)], ids=["white", "red"])
def test_a_lossy_mask_keeps_its_two_values(colour: tuple[int, int, int], tmp_path: Path) -> None:
    large = MASK.repeat(8, 0).repeat(8, 1)
    picture = Image.fromarray(np.where(large[..., None], colour, 0).astype(np.uint8))
    picture.save(tmp_path / "mask.jpg", quality=85)
    levels = load_levels(tmp_path / "mask.jpg", large.shape).numpy()
    assert np.array_equal(levels > 0.5, large)
    assert np.isin(levels, (0, 1)).mean() > 0.9


def test_soft_masks_keep_their_softness(tmp_path: Path) -> None:
    soft = np.clip(RAMP * 3 - 1, 0, 1)
    np.save(tmp_path / "mask.npy", soft)
    Image.fromarray((soft * 255).round().astype(np.uint8)).save(tmp_path / "mask.png")
    for name in ("mask.npy", "mask.png"):
        levels = load_levels(tmp_path / name, SIZE).numpy()
        assert np.abs(levels - soft).max() < 0.05 and len(np.unique(levels)) > 10
        assert (
            np.abs(load_levels(tmp_path / name, SIZE, invert=True).numpy() + levels - 1).max() == 0
        )
        assert len(np.unique(load_levels(tmp_path / name, (12, 16)))) > 10


UNCLEAR = {
    "a photograph": PHOTO,
    "three labels": np.stack([MASK * 255, MASK[::-1] * 255, MASK * 0], -1),
    "a dark photograph": np.clip(PHOTO - 180, 0, 255),
    "greys": np.repeat(((RAMP * 0.6 + 0.2) * 255)[..., None], 3, 2),
    "greys up to white": np.repeat(((RAMP * 0.9 + 0.1) * 255)[..., None], 3, 2),
    "one colour": np.full((*SIZE, 3), (255, 0, 0)),
}


def test_one_transparent_pixel_is_no_erased_part(tmp_path: Path) -> None:
    photo = PHOTO.repeat(8, 0).repeat(8, 1)
    alpha = np.full(photo.shape[:2], 255)
    alpha[0, 0] = 0
    Image.fromarray(np.dstack([photo, alpha]).astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="is not clear"):
        load_mask(tmp_path / "mask.png", photo.shape[:2])


@pytest.mark.parametrize("name", UNCLEAR)
def test_unclear_pictures_are_refused(name: str, tmp_path: Path) -> None:
    Image.fromarray(UNCLEAR[name].astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=r"is not clear.*paint white"):
        load_mask(tmp_path / "mask.png", SIZE)


@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_swapped_sides_are_named(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mask{suffix}"
    np.save(path, MASK.T) if suffix == ".npy" else Image.fromarray(MASK.T).save(path)
    with pytest.raises(UserError, match=r"is 6x8 and the picture 8x6.*sides are swapped"):
        load_mask(path, SIZE)


def test_float_picture(tmp_path: Path) -> None:
    Image.fromarray(MASK.astype(np.float32)).save(tmp_path / "mask.tif")
    assert same(load_mask(tmp_path / "mask.tif", SIZE))


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.fromarray(MASK.astype(np.uint8), "L").convert("P")
    image.save(tmp_path / "mask.png", transparency=0)
    assert same(load_mask(tmp_path / "mask.png", SIZE))


def test_rotation_of_a_mask_picture_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    GREY.rotate(180).save(tmp_path / "mask.png", exif=exif)
    assert same(load_mask(tmp_path / "mask.png", SIZE))


@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_another_size_is_resized_with_a_notice(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"mask{suffix}"
    double = MASK.repeat(2, 0).repeat(2, 1)
    np.save(path, double) if suffix == ".npy" else Image.fromarray(double).save(path)
    assert same(load_mask(path, SIZE))
    assert "from 16x12 to the picture's 8x6" in caplog.text


def test_empty_and_full_masks_are_masks(tmp_path: Path) -> None:
    assert not load_mask(saved(tmp_path, np.zeros(SIZE)), SIZE).any()
    assert load_mask(saved(tmp_path, np.ones(SIZE, np.uint8)), SIZE).all()
    assert load_mask(saved(tmp_path, np.full(SIZE, 255, np.uint8)), SIZE).all()


def test_published_mask(golden) -> None:
    from tests.conftest import SHARED

    path = SHARED / "data" / "inpainting" / "masks" / "0.npy"
    if not path.is_file():
        pytest.skip(f"published mask not found at {path}")
    mask = load_mask(path, (512, 1024))
    expected = torch.zeros(512, 1024, dtype=torch.bool)
    expected[280:470, 590:910] = True
    assert torch.equal(mask, expected)
