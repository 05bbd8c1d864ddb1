"""Recordings from the shell, with the shipped tiny model on a small picture."""

import json
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sgm
from sgm.cli import main as cli
from sgm.cli.record import key_of
from sgm.errors import UserError
from sgm.inference import choose_store
from sgm.inference.composite import distance
from tests.conftest import ROOT
from tests.test_readme_commands import SMALL, lines

SIZE = (64, 128)
FAST = ["--model", "tiny", "--run_type", "sige", "--preset", "fast", "--steps", "2"]
PATHS = {"--init_img", "--edited_img", "--mask_path", "--record", "--recording"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture, the same with a drawing, a mask, and a recording of the first."""
    folder = tmp_path_factory.mktemp("record")
    across, down = np.meshgrid(np.linspace(0, 255, SIZE[1]), np.linspace(0, 255, SIZE[0]))
    pixels = np.stack([across, down, 255 - across], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "init.png")
    pixels[20:40, 50:90] = 255
    Image.fromarray(pixels).save(folder / "edited.png")
    mask = np.zeros(SIZE, dtype=bool)
    mask[16:48, 40:100] = True
    np.save(folder / "mask.npy", mask)
    run(folder, "--prompt", "", "--record", "recording")
    return folder


def run(folder: Path, *words: str) -> None:
    """`run.py` on the files of the folder."""
    found = [str(folder / w) if before in PATHS else w for before, w in pairwise(("", *words))]
    weights = ["--weight_path", str(ROOT / "pretrained"), "--config_path", str(ROOT / "configs")]
    assert cli.main([*FAST, *weights, "--init_img", str(folder / "init.png"), *found]) == 0


def edit(folder: Path, name: str, *words: str) -> np.ndarray:
    """An inpainting; see `read`."""
    path = folder / name
    base = ["--prompt", "a horse", "--mask_path", "mask.npy", "--output_path", str(path)]
    run(folder, *base, *words)
    return read(path)


def read(path: Path) -> np.ndarray:
    """The pixels of a file, float [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image, dtype=float)


def test_edits_from_a_recording(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.name for path in (folder / "recording").iterdir()}
    first = edit(folder, "first.png", "--recording", "recording", "--json", "-")
    # What the prompt changes was measured, and left nothing.
    assert files == {path.name for path in (folder / "recording").iterdir()}
    figures = json.loads(capsys.readouterr().out)
    assert figures["changed_outside"] == 0 and figures["edit_ratio"] > 0
    drawn = folder / "drawn.png"
    words = ("--task", "sdedit", "--prompt", "a sun", "--edited_img", "edited.png")
    run(folder, *words, "--recording", "recording", "--output_path", str(drawn))
    with Image.open(drawn) as image:
        assert image.size == (128, 64)
    for memory in ("device", "disk"):
        words = ("--recording", "recording", "--recording_memory", memory)
        assert np.array_equal(edit(folder, "again.png", *words), first)
    mask, source = np.load(folder / "mask.npy"), read(folder / "init.png")
    outside = distance(torch.from_numpy(mask), 1).numpy() > 1  # of the ring, 8 pixels at 1024
    assert np.array_equal(first[outside], source[outside])
    assert not np.array_equal(first[mask], source[mask])


def test_a_recording_is_corrected_for_another_prompt(folder: Path) -> None:
    """Its base prompts are those that it was made under, as in a session from Python."""
    words = ("--prompt", "a sky", "--negative_prompt", "a dog", "--record", "sky")
    run(folder, *words)
    editor = sgm.load("tiny", device="cpu")
    session = editor.session(folder / "init.png", "a sky", steps=2, negative_prompt="a dog")
    for prompt, negative in (("a horse", ""), ("a sky", "a dog")):
        given = ("--recording", "sky", "--prompt", prompt, "--negative_prompt", negative)
        expected = session.inpaint(folder / "mask.npy", prompt, negative)
        assert np.array_equal(edit(folder, "followed.png", *given), np.asarray(expected))
    alone = edit(folder, "alone.png", "--recording", "sky", "--prompt_steps", "0")
    assert not np.array_equal(edit(folder, "three.png", "--recording", "sky"), alone)


def test_a_recording_serves_any_seed(
    folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    words = ["--prompt", "a horse", "--mask_path", "mask.npy", "--json", "-"]
    words += ["--recording", "recording", "--output_path", str(folder / "many.png")]
    caplog.set_level("INFO")
    run(folder, *words, "--seeds", "2,5,9")
    results = json.loads(capsys.readouterr().out)["results"]
    assert [figures["changed_outside"] for figures in results] == [0, 0, 0]
    assert "".join(caplog.messages).count("stays on disk") == 1  # it was opened once
    found = {seed: read(folder / f"many-{seed}.png") for seed in (2, 5, 9)}
    assert np.array_equal(edit(folder, "two.png", "--recording", "recording"), found[2])
    nine = edit(folder, "nine.png", "--recording", "recording", "--seed", "9")
    assert np.array_equal(nine, found[9])
    assert not np.array_equal(found[9], found[5])


def test_a_recording_says_what_it_is_for(folder: Path) -> None:
    manifest = json.loads((folder / "recording" / "recording.json").read_text())
    assert manifest["steps_recorded"] == 2 and manifest["bytes_per_step"] > 0
    assert manifest["key"]["size"].startswith("128x64 ") and manifest["key"]["precision"] == "fp32"
    names = {path.stem for path in (folder / "recording").glob("*.safetensors")}
    assert names == set(manifest["checksums"])


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (("--steps", "3"), "is for steps 2, and this run has 3"),
        (("--precision", "bf16"), "is for precision fp32, and this run has bf16"),
        (("--H", "128"), r"is for size 128x64 .*, and this run has 128x128"),
        (("--init_img", "edited.png"), "is of another picture than --init_img"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused(
    folder: Path, words: tuple[str, ...], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any weight is read."""
    monkeypatch.setattr("sgm.inference.pipeline.load_weights", no_weights)
    with pytest.raises(UserError, match=field):
        edit(folder, "refused.png", "--recording", "recording", *words)
    assert not (folder / "refused.png").exists()


def test_a_recording_of_another_version_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgm.cli.record.VERSION", 0)
    with pytest.raises(UserError, match="another version of this program; record again"):
        edit(folder, "refused.png", "--recording", "recording")


@pytest.mark.parametrize(("run_type", "steps"), [("sige", "50"), ("sige-turbo", "4")])
def test_a_recording_of_the_default_steps_serves_those_who_name_them(
    folder: Path, run_type: str, steps: str
) -> None:
    words = [*FAST[:-2], "--run_type", run_type, "--prompt", "a horse", "--record", "unused"]
    picture, given = Image.open(folder / "init.png"), ["--init_img", str(folder / "init.png")]
    said = ([], ["--steps", steps])
    keys = [key_of(cli.parse([*words, *given, *more]), picture) for more in said]
    assert keys[0] == keys[1] and keys[0]["steps"] == int(steps)


def test_a_recording_for_a_region_takes_less_and_refuses_what_lies_outside(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = edit(folder, "whole.png", "--recording", "recording")
    run(folder, "--prompt", "", "--record", "region", "--mask_path", "mask.npy")
    sizes = [
        sum(path.stat().st_size for path in (folder / name).glob("*.safetensors"))
        for name in ("recording", "region")
    ]
    assert sizes[1] < 0.9 * sizes[0]
    assert np.array_equal(edit(folder, "region.png", "--recording", "region"), expected)
    mask = np.zeros(SIZE, dtype=bool)
    mask[40:60, 20:60] = True
    np.save(folder / "outside.npy", mask)
    monkeypatch.setattr("sgm.inference.pipeline.load_weights", no_weights)
    words = ("--recording", "region", "--mask_path", "outside.npy")
    with pytest.raises(UserError, match="spans rows 40 to 59, columns 20 to 59, and edits"):
        edit(folder, "refused.png", *words)
    np.save(folder / "empty.npy", np.zeros(SIZE, dtype=bool))
    with pytest.raises(UserError, match="The mask of --record is empty"):
        run(folder, "--prompt", "", "--record", "none", "--mask_path", "empty.npy")
    assert not (folder / "none").exists() and not (folder / "refused.png").exists()


def no_weights(*given: object) -> None:
    raise AssertionError("the weights were read")


def test_what_has_no_room_is_refused_before_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgm.inference.pipeline.load_weights", no_weights)
    monkeypatch.setattr(choose_store, "free_memory", lambda *given: 10**6)
    with pytest.raises(UserError, match=r"there is room for .* on disk"):
        run(folder, "--prompt", "", "--record", "large")
    assert not (folder / "large").exists()
    with pytest.raises(UserError, match=r"there is room for .* on device"):
        edit(folder, "no.png", "--recording", "recording", "--recording_memory", "device")
    with pytest.raises(AssertionError, match="the weights were read"):
        edit(folder, "no.png", "--recording", "recording")


def test_an_interrupted_or_damaged_recording_is_none(folder: Path) -> None:
    with pytest.raises(UserError, match="no recording in"):
        edit(folder, "refused.png", "--recording", "elsewhere")
    (folder / "damaged").mkdir()
    whole = json.loads((folder / "recording" / "recording.json").read_text())
    del whole["prompt"]
    for text in ('{"key": {}}', json.dumps(whole)):
        (folder / "damaged" / "recording.json").write_text(text)
        with pytest.raises(UserError, match=r"recording\.json is damaged"):
            edit(folder, "refused.png", "--recording", "damaged")


def test_a_strength_without_a_step_is_refused(folder: Path) -> None:
    sdedit = ["--task", "sdedit", "--prompt", "", "--strength", "0.1"]
    for words in (("--record", "none"), ("--recording", "recording", "--edited_img", "edited.png")):
        with pytest.raises(UserError, match=r"Strength 0\.1 leaves no step"):
            run(folder, *sdedit, *words)
    assert not (folder / "none").exists()


def test_a_refreshed_edit(folder: Path) -> None:
    """Of three steps the one between is recorded, or lies between."""
    steps = ("--steps", "3")
    refreshed = edit(folder, "refreshed.png", "--refresh", "2", *steps)
    assert not np.array_equal(refreshed, edit(folder, "every.png", "--refresh", "1", *steps))


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--refresh", "1"), 3),
        (("--refresh", "2"), 2),
        (("--recorded_steps", "2"), 2),
        (("--recorded_steps", "9"), 3),
    ],
)
def test_how_many_steps_are_recorded_can_be_chosen(
    folder: Path, words: tuple[str, ...], count: int
) -> None:
    name, steps = "".join(words), ("--steps", "3")
    run(folder, "--prompt", "", "--record", name, *words, *steps)
    manifest = json.loads((folder / name / "recording.json").read_text())
    assert manifest["steps_recorded"] == count
    assert edit(folder, f"{name}.png", "--recording", name, *steps).std() > 10


def test_recordings_can_be_kept_in_fewer_bytes(folder: Path) -> None:
    """Written so, and edited from in every way; the picture is nearly the same."""
    expected = edit(folder, "full.png", "--recording", "recording").astype(int)
    run(folder, "--prompt", "", "--record", "int8", "--recording_precision", "int8")
    size, small = (
        json.loads((folder / name / "recording.json").read_text())["bytes_per_step"]
        for name in ("recording", "int8")
    )
    assert small < 0.35 * size
    for words in ((), ("--recording_memory", "device")):
        found = edit(folder, "int8.png", "--recording", "int8", *words).astype(int)
        assert abs(found - expected).mean() < 1
    cold = edit(folder, "cold.png", "--recording_precision", "int8").astype(int)
    assert abs(cold - edit(folder, "exact.png").astype(int)).mean() < 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("--refresh", "2", "--preset", "published"),
            "--refresh is for sparse runs of preset fast",
        ),
        (("--refresh", "0"), "whole number from 1"),
        (("--recording", "x", "--run_type", "original"), "--recording is for sparse runs"),
        (("--recording", "x", "--record", "y"), "--record and --recording exclude each other"),
        (("--recording", "x", "--refresh", "2"), "--refresh and --recording exclude each other"),
        (("--recorded_steps", "1"), "whole number from 2"),
        (("--recorded_steps", "2", "--refresh", "2"), "--refresh and --recorded_steps exclude"),
        (("--prompt_steps", "2"), "--prompt_steps is about edits from a recording; add"),
        (("--recording", "recording", "--prompt_steps", "1"), "give 0 for none, or at least 2"),
        (("--recorded_steps", "2", "--preset", "published"), "--recorded_steps is for sparse runs"),
        (("--recording_precision", "int4"), "full, bf16, int8"),
        (("--recording", "x", "--recording_precision", "int8"), "exclude each other"),
        (("--recording_memory", "host"), "add --recording"),
        (("--recording", "x", "--refined"), "--recording works with the base model alone"),
        (("--record", "x", "--mode", "profile_unet"), "leave --mode out"),
    ],
)
def test_options_that_contradict(folder: Path, words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        edit(folder, "refused.png", *words)


def test_the_commands_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line, comments=True)[2:] for line in lines() if "--record" in line]
    assert len(commands) >= 4 and "--record" in commands[0]
    for words in commands:
        assert cli.main([*words, *SMALL]) == 0
    pictures = sorted(Path("outputs").glob("*.png"))
    assert len(pictures) == len(commands) - 1
    assert all(np.asarray(Image.open(path)).std() > 10 for path in pictures)
