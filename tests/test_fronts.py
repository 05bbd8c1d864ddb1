"""The command line and Python are two fronts of one program: from the same file they make the same.

Files are compared byte for byte, which holds pixels, mode, profile, EXIF and resolution.
"""

import io
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import sgm
from sgm.cli import generate
from sgm.cli import main as cli
from sgm.cli.record import recipe_of
from sgm.edited import EditedImage
from sgm.editor import Editor
from sgm.inference.pipeline import Pipeline
from sgm.inference.presets import RECIPES
from sgm.specs import RunOptions
from sgm.words import Preset
from tests.conftest import ROOT
from tests.profiles import ROTATED, WIDE, cmyk_profile, grey_profile, rgb_profile

HEIGHT, WIDTH = 60, 130  # no multiples of 64
STEPS = 2
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[20:40, 40:90] = True
FAR = np.zeros((HEIGHT, WIDTH), dtype=bool)  # from the mask, its ring included
FAR[:12], FAR[48:], FAR[:, 100:] = True, True, True
CAMERA = 0x010F


def pixels() -> np.ndarray:
    """Smooth colours, some as saturated as can be."""
    across = np.linspace(0, 255, WIDTH)
    down = np.linspace(0, 255, HEIGHT)[:, None]
    return np.stack(np.broadcast_arrays(across, down, 255 - across), axis=2).astype(np.uint8)


RGB = Image.fromarray(pixels())


def exif(turned: int | None = None) -> Image.Exif:
    found = Image.Exif()
    found[CAMERA] = "a camera"
    if turned:
        found[0x0112] = turned
    return found


def cut_out() -> Image.Image:
    """Transparent in the mask and beyond it, half transparent at the right."""
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[10:45, 30:95], alpha[:, 110:] = 0, 77
    return Image.fromarray(np.dstack([pixels(), alpha]))


# A picture, and how it is saved.
PICTURES: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
    "wide": (RGB, "png", {"icc_profile": rgb_profile(WIDE), "exif": exif(), "dpi": (300, 300)}),
    "rotated colours": (RGB, "jpg", {"icc_profile": rgb_profile(ROTATED), "quality": 95}),
    "cut out": (cut_out(), "png", {"icc_profile": rgb_profile(WIDE)}),
    "grey": (RGB.convert("L"), "png", {}),
    "grey with a profile": (RGB.convert("L"), "png", {"icc_profile": grey_profile()}),
    "grey and alpha": (cut_out().convert("LA"), "png", {"icc_profile": grey_profile()}),
    "palette": (RGB.quantize(), "png", {"icc_profile": rgb_profile(WIDE)}),
    "cmyk": (RGB.convert("CMYK"), "jpg", {"quality": 95}),
    "cmyk with a profile": (RGB.convert("CMYK"), "jpg", {"icc_profile": cmyk_profile()}),
    "turned": (RGB.rotate(90, expand=True), "jpg", {"exif": exif(turned=6), "dpi": (72, 72)}),
    "tiff": (RGB, "tif", {"exif": exif(turned=1), "dpi": (200, 200)}),
}


def saved(name: str, folder: Path) -> Path:
    picture, suffix, options = PICTURES[name]
    picture.save(folder / f"photo.{suffix}", **options)
    return folder / f"photo.{suffix}"


def opened(path: Path) -> Image.Image:
    """A picture with all that its file says, and the file closed."""
    with Image.open(path) as image:
        image.load()
        return image


@pytest.fixture(scope="module")
def editor() -> Editor:
    return sgm.load("tiny", preset="fast", device="cpu")


@pytest.fixture
def run(
    editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Image.Image]:
    """Runs the command line with the editor's networks; what it wrote to `--output_path`."""

    def load(options: RunOptions, refiner: bool = False, progress: bool = True) -> Pipeline:
        pipeline = replace(editor.pipeline, sparse=options.run_type.sparse)
        return pipeline.with_recipe(recipe_of(options))

    def command(photo: Path | None, output: str, *words: str) -> Path:
        common = ["--model", "tiny", "--device", "cpu", "--run_type", "sige", "--preset", "fast"]
        common += ["--prompt", "a horse", "--steps", str(STEPS), "--seed", "7", "--no_metadata"]
        common += [
            "--weight_path",
            str(ROOT / "pretrained"),
            "--config_path",
            str(ROOT / "configs"),
        ]
        common += ["--output_path", str(tmp_path / output)]
        common += ["--init_img", str(photo)] if photo else []
        assert cli.main([*common, *words]) == 0
        return tmp_path / output

    monkeypatch.setattr(generate, "load_pipeline", load)
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    return command


def inpaint(editor: Editor, picture: Path | Image.Image) -> EditedImage:
    return editor.inpaint(picture, MASK, "a horse", steps=STEPS, seed=7)


@pytest.mark.parametrize("name", PICTURES)
def test_an_inpainting_is_the_same(name: str, editor: Editor, run, tmp_path: Path) -> None:
    photo = saved(name, tmp_path)
    wanted = run(photo, "wanted.png", "--mask_path", str(tmp_path / "mask.png"))
    lossy = run(photo, "wanted.jpg", "--mask_path", str(tmp_path / "mask.png"))
    in_memory = Image.open(photo)
    if name == "turned":
        in_memory = ImageOps.exif_transpose(in_memory)
    for given in (photo, in_memory):
        edited = inpaint(editor, given)
        assert edited.size == (WIDTH, HEIGHT) and edited.mode == opened(wanted).mode
        assert edited.getexif() == opened(wanted).getexif()
        edited.save(tmp_path / "found.png")
        edited.save(tmp_path / "found.jpg")
        assert (tmp_path / "found.png").read_bytes() == wanted.read_bytes()
        assert (tmp_path / "found.jpg").read_bytes() == lossy.read_bytes()
    # What is the same is right, too.
    says, rgb = PICTURES[name][2], name not in ("grey with a profile", "cmyk with a profile")
    result = opened(wanted)
    assert result.mode == ("RGBA" if name in ("cut out", "grey and alpha") else "RGB")
    if "icc_profile" in says and rgb and name != "grey and alpha":
        assert edited.info["icc_profile"] == result.info["icc_profile"] == says["icc_profile"]
    if "exif" in says and name != "tiff":
        assert dict(result.getexif()) == {CAMERA: "a camera"}
    source = ImageOps.exif_transpose(opened(photo))
    if source.mode in ("RGB", "RGBA", "P"):
        source = np.asarray(source.convert("RGB"))
        assert np.array_equal(np.asarray(result.convert("RGB"))[FAR], source[FAR])


def test_a_picture_in_memory_stays_as_it_lies(editor: Editor, tmp_path: Path, caplog) -> None:
    """Its result is shown as it is: turned by the same EXIF data."""
    photo = saved("turned", tmp_path)
    result = editor.inpaint(Image.open(photo), MASK.T, "a horse", steps=STEPS)
    assert caplog.text.count("exif_transpose") == 1
    assert result.size == (HEIGHT, WIDTH) and dict(result.getexif()) == dict(exif(turned=6))
    result.save(tmp_path / "out.jpg")
    assert opened(tmp_path / "out.jpg").getexif()[0x0112] == 6


def test_the_callers_picture_is_its_own(editor: Editor) -> None:
    """What is drawn on it later, or on a result, is no part of later edits."""
    picture = RGB.copy()
    session = editor.session(picture, steps=STEPS)
    picture.paste((0, 0, 0), (0, 0, WIDTH, HEIGHT))
    first = session.inpaint(MASK, "a horse")
    kept = np.array(first)
    assert np.array_equal(kept[FAR], pixels()[FAR])
    first.paste((0, 0, 0), (0, 0, WIDTH, HEIGHT))
    assert np.array_equal(np.asarray(session.inpaint(MASK, "a horse")), kept)


@pytest.mark.parametrize("first", ["wide", "cut out", None])
@pytest.mark.parametrize("preset", ["fast", "published"])
def test_a_drawing_is_the_same(
    first: str | None, preset: str, editor: Editor, run, tmp_path: Path, monkeypatch
) -> None:
    """A blended edit is made to the unedited picture, another to the one that was drawn on."""
    photo, drawn = first and saved(first, tmp_path), np.array(RGB)
    drawn[20:40, 40:60] = (255, 0, 0)
    exif_drawn, profile = exif(), rgb_profile(WIDE)
    exif_drawn[CAMERA] = "a paint program"
    Image.fromarray(drawn).save(tmp_path / "drawn.png", exif=exif_drawn, icc_profile=profile)
    words = ["--task", "sdedit", "--edited_img", str(tmp_path / "drawn.png"), "--preset", preset]
    words += ["--mask_path", str(tmp_path / "mask.png"), "--strength", "1"]
    # A dense run: sparse ones need both pictures, and have other layers with each preset.
    if first is None or preset == "published":
        words += ["--run_type", "original"]
        dense = replace(editor.pipeline, sparse=False, recipe=RECIPES[Preset(preset)])
        monkeypatch.setattr(editor, "pipeline", dense)
    wanted = run(photo, "wanted.png", *words)
    how = {"steps": STEPS, "seed": 7, "strength": 1.0}
    found = editor.sdedit(photo, tmp_path / "drawn.png", "a horse", MASK, **how)
    found.save(tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes() == wanted.read_bytes()
    kept = first if preset == "fast" else None
    made_by = {"wide": "a camera", "cut out": None, None: "a paint program"}[kept]
    assert found.getexif().get(CAMERA) == made_by
    assert found.mode == ("RGBA" if kept == "cut out" else "RGB")


def test_a_drawn_array_is_in_the_colours_of_the_photo(editor: Editor, tmp_path: Path) -> None:
    photo = saved("wide", tmp_path)
    drawn = np.array(opened(photo))
    drawn[20:40, 40:60] = (255, 0, 0)
    as_picture, session = Image.fromarray(drawn), editor.session(photo, steps=STEPS)
    as_picture.info["icc_profile"] = rgb_profile(WIDE)
    how = {"steps": STEPS, "strength": 1.0}
    found = [editor.sdedit(photo, x, "a sun", **how) for x in (drawn, as_picture)]
    found += [session.sdedit(x, "a sun", strength=1.0) for x in (drawn, as_picture)]
    share = pytest.approx(400 / drawn[..., 0].size)
    assert [one.edit_ratio for one in found] == [share] * 4
    assert np.array_equal(*found[:2]) and np.array_equal(*found[2:])


def test_a_session_is_the_same_as_a_recording(editor: Editor, run, tmp_path: Path) -> None:
    photo, mask = saved("cut out", tmp_path), str(tmp_path / "mask.png")
    folder = str(tmp_path / "recording")
    run(photo, "none.png", "--prompt", "a sky", "--record", folder)
    wanted = run(photo, "wanted.png", "--mask_path", mask, "--recording", folder)
    session = editor.session(photo, "a sky", steps=STEPS, seed=7)
    session.inpaint(MASK, "a horse").save(tmp_path / "found.png")
    assert (tmp_path / "found.png").read_bytes() == wanted.read_bytes()


@pytest.mark.parametrize("given", ["a path", "in memory"])
def test_accepted_edits_stay_and_so_does_the_rest(
    given: str, editor: Editor, tmp_path: Path, caplog
) -> None:
    photo = saved("cut out", tmp_path)
    session = editor.session(opened(photo) if given == "in memory" else photo, steps=STEPS)
    first = session.inpaint(MASK, "a horse")
    session.accept()
    assert np.array_equal(session.photo.picture, first)
    # A larger edit on ground that is seen: what the first one made opaque stays so.
    other = np.zeros_like(MASK)
    other[3:8, 3:100] = other[52:57, 3:100] = True
    second = session.inpaint(other, "a sun")
    before, one, two = (np.asarray(picture) for picture in (cut_out(), first, second))
    assert (one[MASK, 3] == 255).all() and np.array_equal(two[MASK], one[MASK])
    assert not np.array_equal(two[other], one[other])
    untouched = np.zeros_like(MASK)
    untouched[:, 115:] = untouched[28:32, :30] = True
    assert np.array_equal(two[untouched], before[untouched])
    # A drawing on a result is found in its own colours.
    session.accept()
    drawn = second.copy()
    drawn.paste((250, 0, 0, 255), (100, 25, 108, 33))
    third = session.sdedit(drawn, "a sun", strength=1.0)
    assert "differ a little" not in caplog.text
    assert 0.5 < third.edit_ratio * MASK.size / 64 < 2
    assert third.info["icc_profile"] == rgb_profile(WIDE)
    assert np.array_equal(np.asarray(third)[10:30, :20], two[10:30, :20])


def test_saving_keeps_to_what_the_caller_says(editor: Editor, tmp_path: Path, caplog) -> None:
    edited = inpaint(editor, saved("wide", tmp_path))
    edited.save(tmp_path / "own.png", icc_profile=None, dpi=(100, 100), exif=b"")
    own = opened(tmp_path / "own.png")
    assert "icc_profile" not in own.info and not own.getexif()
    assert [round(value) for value in own.info["dpi"]] == [100, 100]
    sizes = {}
    for quality in (None, 20):
        buffer = io.BytesIO()
        edited.save(buffer, "jpeg", **({} if quality is None else {"quality": quality}))
        sizes[quality] = len(buffer.getvalue())
    assert sizes[20] < sizes[None] and not caplog.records
    transparent = inpaint(editor, saved("cut out", tmp_path))
    assert transparent.mode == "RGBA"
    caplog.clear()
    with (tmp_path / "out.jpg").open("wb") as file:
        transparent.save(file)
    transparent.save(io.BytesIO(), format="BMP")
    assert opened(tmp_path / "out.jpg").mode == "RGB"
    assert "out.jpg cannot hold transparency; it is left out." in caplog.text
    assert "BMP cannot hold transparency" in caplog.text
    with pytest.raises(ValueError, match="unknown file extension"):
        edited.save(tmp_path / "out.nothing")


def test_deep_pictures_and_damaged_profiles_are_told(editor: Editor, caplog) -> None:
    deep = Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257)
    broken = RGB.copy()
    broken.info["icc_profile"] = b"nonsense" * 40
    caplog.set_level(logging.WARNING)
    inpaint(editor, deep)
    inpaint(editor, broken)
    assert caplog.messages == [
        "The result has 8 bits per channel; the picture has more than 8 bits.",
        "The colour profile of the picture is damaged; its colours are taken as sRGB.",
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_arrays_keep_their_precision(dtype: type, editor: Editor, monkeypatch) -> None:
    """For the networks; their results are plain RGB."""
    seen = []
    edit = editor.pipeline.edit
    monkeypatch.setattr(
        editor.pipeline,
        "edit",
        lambda wanted, *rest, **how: (seen.append(wanted), edit(wanted, *rest, **how))[1],
    )
    ramp = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).repeat(3, 2)
    given = ramp.astype(np.float32) if dtype is np.float32 else (ramp * 65535).astype(np.uint16)
    result = editor.inpaint(given, MASK, "a horse", steps=STEPS)
    shown = seen[0].image[0, :HEIGHT, :WIDTH].numpy() / 2 + 0.5
    assert np.abs(shown - ramp[..., 0]).max() < 1 / 50_000
    assert (result.mode, result.info) == ("RGB", {})
    assert np.abs(np.asarray(result) - 255 * ramp)[FAR].max() <= 0.51
