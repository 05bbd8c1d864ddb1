"""Pictures, masks and seeds on the command line: what the flags do, what a run says of itself."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgm.cli import main as cli
from sgm.cli.inputs import edit_of_run, read_inputs
from sgm.errors import UserError
from sgm.inference.crop import Cropped
from sgm.specs import Blend, PhotoOptions
from tests.cli.test_cli import EMPTY, INPAINT, PAIR, SDEDIT, FakePipeline, picture, pipeline

__all__ = ["pipeline"]
pytest_plugins = ["tests.cli.cli_folder"]

FAST = ["--run_type", "sige", "--preset", "fast"]


def options(*words: str) -> PhotoOptions:
    return cli.parse([*INPAINT, *words]).photo


def test_what_is_new_is_the_default_of_fast_alone(folder: Path) -> None:
    assert options() == PhotoOptions() and not cli.parse(INPAINT).sampling.weighted
    fast = options(*FAST)
    assert fast == PhotoOptions(blend=Blend(), padding_mask_crop="auto")
    assert cli.parse([*INPAINT, *FAST]).sampling.weighted
    assert not cli.parse([*INPAINT, *FAST, "--prompt_syntax", "plain"]).sampling.weighted


def test_flags_that_are_given_work_with_every_run_type(folder: Path) -> None:
    assert options("--mask_feather", "5").blend == Blend(5, match_border=False)
    assert options("--match_border").blend == Blend(None, match_border=True)
    assert options("--no-match_border").blend is None
    assert options(*FAST, "--no-match_border", "--mask_feather", "0").blend == Blend(0, False)
    cropped = options("--padding_mask_crop", "20")
    assert cropped.padding_mask_crop == 20 and cropped.blend == Blend(None, match_border=False)
    assert options(*FAST, "--padding_mask_crop", "none").padding_mask_crop is None


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1-3", (1, 2, 3)), ("1,7,9", (1, 7, 9)), ("5", (5,)), ("2-3, 9,2", (2, 3, 9))],
)
def test_lists_of_seeds(text: str, seeds: tuple[int, ...], folder: Path) -> None:
    assert options("--seeds", text).seeds == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-", "0-500", "-3", "1,,2"])
def test_no_lists_of_seeds(text: str, folder: Path) -> None:
    with pytest.raises(UserError, match="seeds"):
        options(f"--seeds={text}")


def test_several_seeds_load_once_and_come_with_a_sheet(
    folder: Path, pipeline: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*INPAINT, "--seeds", "3,5", "--json", "figures.json"]) == 0
    assert len(pipeline.loads) == 1 and [params.seed for _, params in pipeline.calls] == [3, 5]
    names = [f"outputs/inpainting-original-{name}.png" for name in ("3", "5", "sheet")]
    assert capsys.readouterr().out.split() == names
    figures = json.loads(Path("figures.json").read_text())
    assert [one["seed"] for one in figures["results"]] == [3, 5]
    assert figures["contact_sheet"] == names[2]
    sheet = picture(names[2])
    assert sheet.shape[1] >= 100 and sheet.shape[0] > 40 and len(np.unique(sheet)) > 10


def test_results_take_nobodys_place(folder: Path, pipeline: FakePipeline) -> None:
    for name in ("inpainting-original-2", "inpainting-original-2-2", "inpainting-original-2-3"):
        assert cli.main(INPAINT) == 0 and Path(f"outputs/{name}.png").is_file()
    cli.main([*INPAINT, "--overwrite"])
    assert len(list(Path("outputs").iterdir())) == 3
    before = Path("init.png").read_bytes()
    with pytest.raises(UserError, match=r"init.png is an input .*--overwrite"):
        cli.main([*INPAINT, "--output_path", "init.png"])
    with pytest.raises(UserError, match="is an input"):
        Path("out-3.png").symlink_to("init.png")
        cli.main([*INPAINT, "--output_path", "out.png", "--seeds", "1-3"])
    assert Path("init.png").read_bytes() == before and len(pipeline.calls) == 4
    cli.main([*INPAINT, "--output_path", "init.png", "--overwrite"])
    assert Path("init.png").read_bytes() != before


def test_unchanged_is_said_of_what_is(
    folder: Path, pipeline: FakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    cli.main([*EMPTY, "--output_path", "out.png"])
    assert Path("out.png").read_bytes() == Path("init.png").read_bytes()
    assert "returned unchanged" in caplog.text
    caplog.clear()
    for words in (["--output_path", "out.jpg"], ["--output_path", "small.png", "--H", "20"]):
        cli.main([*EMPTY, *words])
    assert "unchanged" not in caplog.text and caplog.text.count("written anew") == 2


def test_what_changed_outside_is_measured_on_the_file(
    folder: Path, pipeline: FakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    words = [*INPAINT, "--mask_feather", "2", "--json", "figures.json"]
    cli.main([*words, "--output_path", "out.png"])
    figures = json.loads(Path("figures.json").read_text())
    assert (figures["changed_outside"], figures["largest_change_outside"]) == (0, 0)
    assert "Nothing changed outside" in caplog.text
    share, seconds = 100 * figures["edit_ratio"], figures["seconds"]
    spent = seconds["encode"] + seconds["sample"] + seconds["decode"]
    assert f"Edited {share:.1f}% of the picture in {spent:.1f} s." in caplog.text
    cli.main([*words, "--output_path", "out.jpg"])
    figures = json.loads(Path("figures.json").read_text())
    difference = np.abs(picture("out.jpg").astype(int) - picture("init.png"))
    assert figures["changed_outside"] > 10
    assert 0 < figures["largest_change_outside"] <= difference.max()
    assert "JPG is a lossy format" in caplog.text


def test_masks_are_grown_and_turned_round(folder: Path, pipeline: FakePipeline) -> None:
    mask = np.load("mask.npy")
    cli.main([*INPAINT, "--invert_mask"])
    assert np.array_equal(pipeline.calls[0][0].mask[:40, :100], ~mask)
    cli.main([*INPAINT, "--mask_grow", "3"])
    grown = pipeline.calls[1][0].mask[:40, :100].numpy()
    assert grown[7:23, 30:50].all() and grown[10:20, 27:53].all()
    assert not grown[7, 27] and grown.sum() < 16 * 26


def test_a_mask_says_where_a_drawing_is(folder: Path, pipeline: FakePipeline) -> None:
    cli.main([*PAIR, "--run_type", "sige", "--mask_path", "mask.npy", "--mask_grow", "2"])
    drawing = pipeline.calls[0][0].drawing[:40, :100].numpy()
    assert drawing[np.load("mask.npy")].all() and drawing.sum() > np.load("mask.npy").sum()
    with pytest.raises(UserError, match="--invert_mask needs --mask_path"):
        cli.main([*SDEDIT, "--invert_mask"])


@pytest.mark.parametrize(
    ("words", "size"),
    [(FAST, (256, 448)), ([], (640, 1536)), ([*FAST, "--padding_mask_crop", "none"], (640, 1536))],
)
def test_a_picture_larger_than_the_models_size_is_cropped(
    words: list[str], size: tuple[int, int], folder: Path
) -> None:
    chosen = cli.parse([*INPAINT, "--model", "tiny", "--H", "600", "--W", "1500", *words])
    edit = edit_of_run(chosen, read_inputs(chosen))
    assert edit.size == size and isinstance(edit, Cropped) is (size == (256, 448))


def test_words_that_are_not_read_are_named(
    folder: Path, pipeline: FakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    cli.main([*INPAINT, "--prompt", "a (horse:1.3) <lora:x:1> " + "very " * 80])
    for words in ("'(horse:1.3)' is read as text", "'<lora:x:1>' is read", "beyond the 77 tokens"):
        assert words in caplog.text


def test_a_png_says_how_it_was_made(folder: Path, pipeline: FakePipeline) -> None:
    cli.main([*INPAINT, "--negative_prompt", "fog", "--seed", "7", "--output_path", "a.png"])
    with Image.open("a.png") as image:
        text = image.info["parameters"]
    assert text.startswith("a horse\nNegative prompt: fog\nSteps: 50, Sampler: DPM++ 2M")
    assert "CFG scale: 6.0, Seed: 7, Size: 100x40" in text
    cli.main([*INPAINT, "--no_metadata", "--output_path", "b.png"])
    with Image.open("b.png") as image:
        assert "parameters" not in image.info


@pytest.mark.parametrize("flag", ["--record", "--recording"])
def test_recordings_are_of_the_whole_picture(flag: str, folder: Path) -> None:
    words = [*INPAINT, *FAST, flag, "made"]
    assert cli.parse([*words, "--padding_mask_crop", "auto"]).photo.padding_mask_crop is None
    with pytest.raises(UserError, match=f"another picture than {flag} holds"):
        cli.parse([*words, "--padding_mask_crop", "20"])


def test_recording_a_far_larger_picture_is_told(folder: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("sgm.cli.generate.record", lambda *args: None)
    words = ["--model", "tiny", "--prompt", "", "--init_img", "init.png", *FAST, "--record", "made"]
    cli.main([*words, "--H", "64", "--W", "128"])
    assert "will look better" not in caplog.text
    cli.main([*words, "--H", "512", "--W", "1024"])
    assert "the picture is 1024x512; --H 256 --W 512 will look better." in caplog.text
