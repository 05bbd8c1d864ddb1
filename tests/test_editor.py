"""The package in one call: pictures of every kind in, a PIL picture out."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import sgm
from sgm.edited import EditedImage
from sgm.editor import Editor, Session
from sgm.errors import UserError
from sgm.inference.crop import Cropped
from sgm.inference.edit import Edit
from sgm.inference.pipeline import EditResult
from sgm.inference.presets import PUBLISHED
from sgm.io.given import Picture, read, to_levels
from sgm.specs import SamplingParams
from tests.conftest import ROOT, max_error

SIZE = (64, 128)


def to_tensor(picture: Picture) -> torch.Tensor:
    """A picture as the networks take it."""
    return read(picture).seen


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
    assert all(np.array_equal(to_levels(mask, size).numpy(), marked) for mask in masks)


def test_arrays_that_are_no_pictures_are_refused(pixels, marked) -> None:
    with pytest.raises(ValueError, match=r"from 0 to 255; expected"):
        to_tensor(pixels.astype(np.float32))
    with pytest.raises(ValueError, match=r"shape \(69, 137\)"):
        to_tensor(torch.zeros(69, 137))
    with pytest.raises(ValueError, match="mask of the picture's size"):
        to_levels(marked, (64, 64))


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


def test_what_a_session_keeps_can_be_less(editor: Editor, pixels, marked, tmp_path: Path) -> None:
    def size(session: Session) -> int:
        store = session.edits.recordings.store
        return sum(store.get(name).size_in_bytes() for name in store.names())

    whole = editor.session(pixels, steps=2)
    small = editor.session(pixels, steps=2, mask=marked, recording_precision="int8")
    assert small.edits.report.place == "device" and size(small) < size(whole) / 4
    near, far = (np.asarray(s.inpaint(marked, "a horse"), float) for s in (small, whole))
    assert 0 < np.abs(near - far).mean() < 1
    with pytest.raises(UserError, match="record a larger region"):
        small.inpaint(~marked, "a horse")
    words = {"recording_memory": "disk", "recording_folder": tmp_path}
    session = editor.session(pixels, steps=2, **words)
    assert session.edits.report.place == "disk" and list(tmp_path.iterdir())
    assert np.array_equal(np.asarray(session.inpaint(marked, "a horse")), far)
    with pytest.raises(UserError, match=r"is not a recording precision; choose one of full"):
        editor.session(pixels, recording_precision="int4")


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


def large_picture() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [620, 900, 3], of more than four times the pixels that the tiny model was trained for,
    and a small mask."""
    pixels = np.random.default_rng(0).integers(90, 110, (620, 900, 3), dtype=np.uint8)
    mask = np.zeros(pixels.shape[:2], dtype=bool)
    mask[300:330, 500:560] = True
    return pixels, mask


@pytest.mark.parametrize("task", ["inpainting", "sdedit"])
def test_of_a_large_picture_the_network_sees_a_crop(
    editor: Editor, task: str, monkeypatch, caplog
) -> None:
    pixels, mask = large_picture()
    drawn = np.where(mask[..., None], 255, pixels).astype(np.uint8)
    seen: list[Edit] = []

    def edit(wanted: Edit, params: SamplingParams, progress: bool) -> EditResult:
        seen.append(wanted)
        image = torch.from_numpy(pixels).permute(2, 0, 1) / 255
        return EditResult(image, {})

    monkeypatch.setattr(editor.pipeline, "edit", edit)

    def run(**settings: int | str) -> Edit:
        if task == "inpainting":
            editor.inpaint(pixels, mask, "a horse", **settings)
        else:
            editor.sdedit(pixels, drawn, "a horse", **settings)
        return seen[-1]

    cropped = run()
    assert isinstance(cropped, Cropped) and cropped.size == (256, 512)
    assert cropped.source.shape == (3, 620, 900) and not caplog.records
    margin = run(padding_mask_crop=20)
    assert isinstance(margin, Cropped) and margin.window.height < cropped.window.height
    whole = run(padding_mask_crop="none")
    assert not isinstance(whole, Cropped) and whole.size == (640, 960)
    assert "trained at 512x256 (width x height) and the picture is 900x620" in caplog.text
    with pytest.raises(ValueError, match="padding_mask_crop is -1; give pixels, 'auto' or 'none'"):
        run(padding_mask_crop=-1)
    # As published, nothing is cropped unasked; a crop that is asked for is put in with a blend.
    published = replace(editor.pipeline, recipe=PUBLISHED)
    monkeypatch.setattr(published, "edit", edit)
    monkeypatch.setattr(editor, "pipeline", published)
    assert not isinstance(run(), Cropped)
    asked = run(padding_mask_crop="auto")
    assert isinstance(asked, Cropped) and not asked.blend.match_border


def test_a_session_of_a_large_picture_says_so(editor: Editor, monkeypatch, caplog) -> None:
    monkeypatch.setattr("sgm.editor.EditSession", lambda *what, **how: None)
    editor.session(large_picture()[0])
    assert "the picture is 900x620; a smaller one will look better." in caplog.text


def test_a_crop_is_put_back_into_the_large_picture(editor: Editor) -> None:
    pixels, mask = large_picture()
    edited = np.asarray(editor.inpaint(pixels, mask, "a horse", steps=2))
    assert edited.shape == pixels.shape
    assert np.array_equal(edited[:280], pixels[:280])
    assert not np.array_equal(edited[mask], pixels[mask])


def test_a_drawing_of_another_size_is_refused(editor: Editor, pixels, marked) -> None:
    drawn = pixels[1:]  # padded, both would have one size
    with pytest.raises(ValueError, match="137x68 pixels, expected 137x69"):
        editor.sdedit(pixels, drawn, "a sun", steps=2)
    with pytest.raises(ValueError, match="137x68 pixels, expected 137x69"):
        editor.session(pixels, steps=2).sdedit(drawn, "a sun")


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys, sgm; print([m for m in sys.modules if m in ('torch', 'PIL', 'numpy')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def painted(marked: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """A layer of a paint program: one colour where it was painted, else transparent."""
    layer = np.full((*marked.shape, 4), (*colour, 0), np.uint8)
    layer[marked, 3] = 255
    return Image.fromarray(layer)


MASK_PICTURES = {
    "painted in white": lambda marked: painted(marked, (255, 255, 255)),
    "painted in black": lambda marked: painted(marked, (0, 0, 0)),
    "red on black": lambda marked: Image.fromarray(marked[..., None] * np.uint8([255, 0, 0])),
    "labels 0 and 1": lambda marked: Image.fromarray(marked.astype(np.uint8)),
    "palette": lambda marked: Image.fromarray(marked.astype(np.uint8)).convert("P"),
    "16 bits": lambda marked: Image.fromarray(marked.astype(np.uint16) * 255),
    "floats": lambda marked: Image.fromarray(marked.astype(np.float32)),
    "twice as large": lambda marked: Image.fromarray(marked.repeat(2, 0).repeat(2, 1)),
}


@pytest.mark.parametrize("name", MASK_PICTURES)
def test_a_mask_in_memory_means_what_its_file_does(name: str, marked, tmp_path: Path) -> None:
    image = MASK_PICTURES[name](marked)
    found = to_levels(image, marked.shape)
    assert np.array_equal(found.numpy(), marked)
    image.save(tmp_path / "mask.tif")
    assert torch.equal(found, to_levels(tmp_path / "mask.tif", marked.shape))


def test_masks_in_memory_that_are_none_are_refused(pixels, marked) -> None:
    size = marked.shape
    for mask, message in (
        (Image.fromarray(pixels), "^The mask is not clear.*paint white"),
        (Image.fromarray(marked.T.copy()), "^The mask is 69x137 .*sides are swapped"),
        (np.full(size, np.nan), "^The mask holds NaN"),
        (marked + 2 * marked[::-1], "^The mask holds .* from 0 to 3"),
        (torch.zeros(3, *size), "shape"),
        (None, "^The mask holds object values; expected a path"),
    ):
        with pytest.raises(UserError, match=message):
            to_levels(mask, size)


def test_a_soft_border_in_memory_stays_soft(editor: Editor, pixels, tmp_path: Path) -> None:
    soft = np.clip(np.linspace(-2, 3, pixels.shape[1]), 0, 1)[None].repeat(pixels.shape[0], 0)
    image = Image.fromarray((soft * 255).round().astype(np.uint8))
    image.save(tmp_path / "mask.png")
    file = to_levels(tmp_path / "mask.png", soft.shape)
    for mask in (image, soft, torch.from_numpy(soft).bfloat16()[None]):
        levels = to_levels(mask, soft.shape)
        assert max_error(levels, file) < 0.02 and len(levels.unique()) > 10
    edits = [editor.inpaint(pixels, mask, "a sky", steps=2) for mask in (image, soft > 0.5)]
    assert not np.array_equal(*map(np.asarray, edits))


def test_pictures_of_other_channels_and_depths(pixels) -> None:
    grey, deep = pixels[..., 0], pixels.astype(np.uint16) * 257
    as_rgb = to_tensor(grey[..., None].repeat(3, 2))
    assert torch.equal(to_tensor(grey), as_rgb) and torch.equal(to_tensor(grey[..., None]), as_rgb)
    rgb, layer = to_tensor(pixels), np.full((*grey.shape, 1), 7, np.uint8)
    assert torch.equal(to_tensor(np.concatenate([pixels, layer], 2)), rgb)
    assert max_error(to_tensor(deep), rgb) < 1e-6
    assert torch.equal(to_tensor(torch.from_numpy(pixels).permute(2, 0, 1)), rgb)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ([[0]], "is of type list; expected a path, a PIL picture"),
        (np.zeros((5, 0, 3)), r"shape \(5, 0, 3\)"),
        (np.zeros((3, 5, 7), np.uint8), r"shape \(3, 5, 7\); expected an array \[H, W, 3\]"),
        (np.zeros((5, 7, 3), complex), "holds complex128 values"),
        (np.full((5, 7, 3), np.nan), "holds float64 values from nan to nan; expected uint8"),
        (torch.zeros(3, 5, 7) - 1, r"holds float32 values from -1 to -1; expected"),
    ],
)
def test_what_is_no_picture_is_told(picture: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_tensor(picture)


def test_a_rotation_that_is_not_applied_is_told(pixels, tmp_path: Path, caplog) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    assert to_tensor(tmp_path / "photo.png").shape == (3, pixels.shape[1], pixels.shape[0])
    assert not caplog.text
    with Image.open(tmp_path / "photo.png") as photo:
        assert to_tensor(photo).shape == (3, *pixels.shape[:2])
    assert "exif_transpose" in caplog.text


def test_the_share_that_was_edited_is_of_the_picture(editor: Editor, pixels, marked) -> None:
    """And not of what it was padded to."""
    share = pytest.approx(marked.mean())
    drawn = pixels.copy()
    drawn[marked] = (255, 0, 0)
    session = editor.session(pixels, steps=2)
    assert editor.inpaint(pixels, marked, "a sky", steps=2).edit_ratio == share
    assert editor.sdedit(pixels, drawn, "a sun", steps=2).edit_ratio == share
    assert session.inpaint(marked, "a sky").edit_ratio == share
    assert session.sdedit(drawn, "a sun").edit_ratio == share


def test_a_session_makes_variants(editor: Editor, pixels, marked) -> None:
    session = editor.session(pixels, steps=2, seed=1)
    drawn = pixels.copy()
    drawn[marked] = (255, 0, 0)
    for make in (session.inpaint, session.sdedit):
        given = marked if make == session.inpaint else drawn
        first, again, other = (np.asarray(make(given, "a sun", seed=n)) for n in (5, 5, 6))
        assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_nothing_to_edit_is_told(editor: Editor, pixels, marked) -> None:
    for edit in (
        editor.sdedit,
        lambda before, *rest: editor.session(before, steps=2).sdedit(*rest),
    ):
        with pytest.raises(UserError, match="pictures are the same; draw"):
            edit(pixels, pixels, "a sun")
    with pytest.raises(ValueError, match="needs the unedited picture"):
        editor.sdedit(None, pixels, "a sun", marked, steps=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0; give a whole number from 1 to 1000"),
        ({"steps": 2.5}, "steps is 2.5; give a whole number"),
        ({"steps": "5"}, "steps is '5'"),
        ({"seed": -1}, "seed is -1; give a whole number from 0 to 18446744073709551615"),
        ({"scale": float("nan")}, "scale is nan; give a number from 0 to 1000"),
        ({"strength": 2}, "strength is 2; give a number from 0 to 1"),
        ({"sampler": "eular"}, r"'eular' is not a sampler; choose one of .*did you mean euler\?"),
        ({"spacing": "even"}, "'even' is not a spacing"),
        ({"prompt": None}, "prompt is None; give a text"),
        ({"negative_prompt": 3}, "negative_prompt is 3; give a text"),
        ({"padding_mask_crop": True}, "padding_mask_crop is True; give pixels"),
    ],
)
def test_values_out_of_range_are_told(editor: Editor, pixels, marked, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        editor.inpaint(pixels, marked, **{"prompt": "a sky", "steps": 2, **settings})


def test_numbers_of_numpy_are_numbers() -> None:
    SamplingParams("", seed=np.int64(3), steps=np.uint8(4), scale=np.float32(3)).check()


def test_values_of_a_session_are_checked(editor: Editor, pixels, marked) -> None:
    session = editor.session(pixels, steps=2)
    with pytest.raises(UserError, match="seed is -1"):
        session.inpaint(marked, "a sky", seed=-1)
    with pytest.raises(UserError, match="strength is 2"):
        session.sdedit(pixels, "a sky", strength=2)
    with pytest.raises(UserError, match="'inpaint' is not a task; choose one of inpainting"):
        editor.session(pixels, task="inpaint")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "quick"}, "'quick' is not a preset; choose one of published, fast"),
        ({"run_type": "turbos"}, r"'turbos' is not a run type; .*did you mean turbo\?"),
        ({"loras": "style.safetensors"}, "give a dict of paths"),
        ({"loras": {"style.safetensors": 1.0}}, "File style.safetensors does not exist"),
        ({"checkpoint": "mine.safetensors"}, "File mine.safetensors does not exist; check"),
        ({"vae": Path("README.ckpt")}, "File README.ckpt does not exist"),
        ({"weight_path": "nowhere"}, r"Checkpoint nowhere.tiny_base.safetensors does not exist"),
        ({"model": "sdxl", "weight_path": "nowhere"}, "download it from https.* --model tiny"),
    ],
)
def test_what_cannot_be_loaded_is_told(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sgm.load(**{"model": "tiny", "device": "cpu", **options})


def test_prompts_are_read_as_by_the_command_line(editor: Editor, pixels, marked, caplog) -> None:
    def edit(prompt: str, **settings: object) -> np.ndarray:
        return np.asarray(editor.inpaint(pixels, marked, prompt, steps=2, **settings))

    assert np.array_equal(edit("a red sky"), edit("a red sky", weighted=False))
    assert not caplog.text
    assert not np.array_equal(edit("a (red:1.6) sky"), edit("a (red:1.6) sky", weighted=False))
    assert "'(red:1.6)' is read as text" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_result_is_in_the_colours_of_the_photo(
    editor: Editor, pixels, marked, tmp_path: Path, suffix: str
) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "photo.png", icc_profile=profile)
    session = editor.session(tmp_path / "photo.png", steps=1)
    with Image.open(tmp_path / "photo.png") as photo:
        results = [
            editor.inpaint(photo, marked, "a sky", steps=1),
            editor.inpaint(tmp_path / "photo.png", marked, "a sky", steps=1),
            session.inpaint(marked, "a sky"),
        ]
    for result in results:
        result.save(tmp_path / f"out.{suffix}")
        with Image.open(tmp_path / f"out.{suffix}") as saved:
            assert saved.info["icc_profile"] == profile
    assert "icc_profile" not in editor.inpaint(pixels, marked, "a sky", steps=1).info
