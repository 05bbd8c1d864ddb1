"""The package in one call: pictures of every kind in, a PIL picture out."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sgm
from sgm.editor import EditedImage, Editor, to_mask, to_tensor
from tests.conftest import ROOT, max_error

SIZE = (64, 128)


@pytest.fixture(scope="module")
def editor() -> Editor:
    return sgm.load("tiny", preset="fast", device="cpu")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """uint8 [H, W, 3], of a size that is no multiple of 64."""
    across = np.linspace(0, 255, SIZE[1] + 9)
    down = np.linspace(0, 255, SIZE[0] + 5)[:, None]
    planes = np.broadcast_arrays(across, down, 255 - across)
    return np.stack(planes, axis=2).astype(np.uint8)


@pytest.fixture(scope="module")
def marked(pixels: np.ndarray) -> np.ndarray:
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    mask[20:40, 40:90] = True
    return mask


def test_the_smallest_program(editor: Editor, pixels, marked, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    Image.fromarray(marked).save(tmp_path / "mask.png")
    paths = (str(tmp_path / "photo.png"), tmp_path / "mask.png")
    edited = editor.inpaint(*paths, "a horse", steps=2, seed=7)
    assert isinstance(edited, Image.Image) and isinstance(edited, EditedImage)
    assert edited.size == (pixels.shape[1], pixels.shape[0])
    assert set(edited.seconds) == {"encode", "sample", "decode"}
    assert 0 < edited.edit_ratio < 0.2
    edited.save(tmp_path / "outputs" / "out.png")  # the folder is made
    with Image.open(tmp_path / "outputs" / "out.png") as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(edited))
    assert not np.array_equal(np.asarray(edited)[marked], pixels[marked])
    assert np.array_equal(np.asarray(edited)[:15], pixels[:15])  # preset fast: nothing but the edit


def test_pictures_and_masks_of_every_kind_mean_the_same(editor: Editor, pixels, marked) -> None:
    tensor = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    pictures = [Image.fromarray(pixels), pixels, pixels / 255.0, tensor]
    found = [to_tensor(picture) for picture in pictures]
    assert all(max_error(x, found[0]) < 1e-6 for x in found)
    masks = [
        marked,
        marked.astype(np.uint8),
        marked.astype(np.uint8) * 255,
        marked.astype(np.float32),
        torch.from_numpy(marked),
        Image.fromarray(marked),
    ]
    size = marked.shape
    assert all(np.array_equal(to_mask(mask, size).numpy(), marked) for mask in masks)


def test_arrays_that_are_no_pictures_are_refused(pixels, marked) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 255; expected"):
        to_tensor(pixels.astype(np.float32))
    with pytest.raises(ValueError, match=r"shape \(69, 137\)"):
        to_tensor(torch.zeros(69, 137))
    with pytest.raises(ValueError, match="mask of the picture's size"):
        to_mask(marked, (64, 64))


def test_a_session_edits_many_times(editor: Editor, pixels, marked) -> None:
    session = editor.session(pixels, "a sky", steps=3)
    with pytest.raises(ValueError, match="no edit to accept"):
        session.accept()
    first = session.inpaint(marked, "a horse")
    session.accept()
    drawn = np.array(first)
    drawn[44:54, 100:120] = (255, 200, 0)
    second = np.asarray(session.sdedit(drawn, "a sun", strength=0.8))
    assert second.shape == pixels.shape
    assert np.array_equal(second[:10, :30], pixels[:10, :30])


def test_sdedit_and_an_unknown_setting(editor: Editor, pixels) -> None:
    drawn = pixels.copy()
    drawn[10:20, 10:30] = 255
    edited = editor.sdedit(pixels, drawn, "a sun", steps=2, strength=0.6)
    assert edited.size == (pixels.shape[1], pixels.shape[0])
    assert np.array_equal(np.asarray(edited)[:, 70:], pixels[:, 70:])
    with pytest.raises(TypeError, match="stepps"):
        editor.sdedit(pixels, drawn, "a sun", stepps=2)
    with pytest.raises(TypeError, match="presett"):
        sgm.load("tiny", presett="fast")


def as_jpeg(pixels: np.ndarray) -> Image.Image:
    """Pixels as a paint program saved them."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return Image.open(buffer)


def test_the_drawing_is_found_in_a_jpeg_also_from_a_session(editor: Editor, pixels) -> None:
    drawn = pixels.copy()
    drawn[20:40, 40:60] = (255, 0, 0)
    saved = as_jpeg(drawn)
    assert (np.abs(np.asarray(saved).astype(int) - pixels) > 2).any(2).mean() > 0.2
    edited = editor.sdedit(pixels, saved, "a sun", steps=4, strength=0.6)
    session = editor.session(pixels, steps=4)
    for found in (edited, session.sdedit(saved, "a sun", strength=0.6)):
        assert 0.03 < found.edit_ratio < 0.1
        assert np.array_equal(np.asarray(found)[:, 80:], pixels[:, 80:])


def test_a_mask_says_where_it_was_drawn(editor: Editor, pixels, marked) -> None:
    drawn = pixels.copy()
    drawn[20:40, 40:90] = drawn[60:66, 120:130] = 255
    edited = np.asarray(editor.sdedit(pixels, drawn, "a sun", marked, steps=4, strength=0.6))
    assert np.array_equal(edited[55:, 110:], pixels[55:, 110:])
    assert not np.array_equal(edited[marked], pixels[marked])


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys, sgm; print([m for m in sys.modules if m in ('torch', 'PIL', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
