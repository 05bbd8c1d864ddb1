"""The command around a stand-in pipeline: what goes in, what lands where, what is left behind."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sgm.cli import generate
from sgm.cli import main as cli
from sgm.errors import UserError
from sgm.inference.edit import Edit
from sgm.inference.inpainting import Inpainting
from sgm.inference.presets import PUBLISHED, Recipe
from sgm.specs import MODELS, SamplingParams
from sgm.words import Backend, Precision, Preset, RunType

pytest_plugins = ["tests.cli.cli_folder"]

INPAINT = ["--prompt", "a horse", "--init_img", "init.png", "--mask_path", "mask.npy"]
SDEDIT = ["--task", "sdedit", "--prompt", "a beach", "--edited_img", "edited.png"]
PAIR = [*SDEDIT, "--init_img", "init.png"]


@dataclass
class Result:
    """What a pipeline returns."""

    image: Tensor
    seconds: dict[str, float]
    touched: Tensor | None


@dataclass
class FakePipeline:
    """Inverts the picture where it is told to; keeps what it was called with."""

    loads: list[tuple[object, ...]] = field(default_factory=list)
    calls: list[tuple[Edit, SamplingParams]] = field(default_factory=list)
    fails: BaseException | None = None
    recipe: Recipe = PUBLISHED

    def with_recipe(self, recipe: Recipe) -> "FakePipeline":
        self.recipe = recipe
        return self

    def load(self, *arguments: object, progress: bool, **settings: object) -> "FakePipeline":
        assert progress
        self.loads.append(arguments)
        return self

    def edit(self, edit: Edit, params: SamplingParams, *, progress: bool) -> Result:
        self.calls.append((edit, params))
        assert progress
        touched = edit.changed(self.recipe)
        if isinstance(edit, Inpainting):
            return self._result(edit.image, edit.mask > 0.5, touched)
        return self._result(edit.edited, torch.zeros(edit.size, dtype=torch.bool), touched)

    def _result(self, image: Tensor, mask: Tensor, touched: Tensor | None) -> Result:
        if self.fails is not None:
            raise self.fails
        image = torch.where(mask, -image, image)
        seconds = {"encode": 0.5, "sample": 2.0, "decode": 1.0}
        return Result((image + 1) / 2, seconds, touched)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """Stands in place of the pipeline that a command loads."""
    fake = FakePipeline()

    def refined(
        load: Callable[[bool], FakePipeline], *arguments: object, **options: object
    ) -> Result:
        load(False)
        return load(True).edit(*arguments, **options)

    monkeypatch.setattr(generate, "Pipeline", fake)
    monkeypatch.setattr(generate, "refined_edit", refined)
    return fake


def picture(path: str | Path) -> np.ndarray:
    """uint8 [H, W, 3] of a file."""
    return np.asarray(Image.open(path).convert("RGB"))


def test_inpainting(
    folder: Path, pipeline: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--run_type sige --model tiny --seed 5 --steps 3 --scale 2 --precision bf16"
    assert cli.main([*INPAINT, "--negative_prompt", "fog", *words.split()]) == 0
    assert capsys.readouterr().out == "outputs/inpainting-sige-5.png\n"
    assert pipeline.loads == [
        (
            MODELS["tiny"],
            RunType.SIGE,
            Path("configs"),
            Path("pretrained"),
            torch.device("cpu"),
            Precision.BF16,
            Backend.AUTO,
            Preset.PUBLISHED,
            False,
        )
    ]
    [(edit, params)] = pipeline.calls
    assert params == SamplingParams("a horse", "fog", seed=5, steps=3, scale=2.0)
    image, mask = edit.image, edit.mask
    assert image.shape == (3, 64, 128) and mask.shape == (64, 128) and mask.dtype == torch.bool
    assert image.dtype == torch.float32 and image.min() == -1 and image.max() == 1
    result, source = picture("outputs/inpainting-sige-5.png"), picture("init.png")
    inside = np.load("mask.npy")
    assert np.array_equal(result[~inside], source[~inside])
    assert np.array_equal(result[inside], 255 - source[inside])


def test_sdedit_alone_and_in_pairs(folder: Path, pipeline: FakePipeline) -> None:
    assert cli.main([*SDEDIT, "--strength", "0.5"]) == 0
    [(edit, params)] = pipeline.calls
    assert edit.init is None and edit.size == (64, 128)
    assert edit.strength == params.strength == 0.5
    if importlib.util.find_spec("sgm.sparse.masks") is None:
        pytest.skip("sgm.sparse.masks is not there")
    assert cli.main([*PAIR, "--run_type", "sige", "--json", "figures.json"]) == 0
    edit, _ = pipeline.calls[1]
    assert edit.init.shape == edit.edited.shape == (3, 64, 128)
    assert not torch.equal(edit.init, edit.edited)
    assert json.loads(Path("figures.json").read_text())["changed_outside"] == 0


@pytest.mark.parametrize("run_type", [RunType.ORIGINAL, RunType.SIGE, RunType.SIGE_TURBO])
def test_a_refined_run_loads_twice(run_type: RunType, folder: Path, pipeline: FakePipeline) -> None:
    words = ["--run_type", run_type.value, "--refined", "--json", "figures.json"]
    assert cli.main([*INPAINT, *words]) == 0
    assert [(load[1], load[-1]) for load in pipeline.loads] == [(run_type, False), (run_type, True)]
    assert len(pipeline.calls) == 1
    assert json.loads(Path("figures.json").read_text())["refined"] is True


def test_sizes_given(
    folder: Path, pipeline: FakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    assert cli.main([*INPAINT, "--W", "130", "--output_path", "wide.png"]) == 0
    [(edit, _)] = pipeline.calls
    assert edit.image.shape == (3, 64, 192) and edit.mask.shape == (64, 192)
    assert picture("wide.png").shape == (40, 130, 3)
    assert "Picture init.png resized" in caplog.text and "Mask mask.npy resized" in caplog.text


def test_pictures_of_two_sizes_are_refused(folder: Path, pipeline: FakePipeline) -> None:
    argv = [*SDEDIT, "--init_img", "half.png", "--run_type", "sige"]
    with pytest.raises(UserError, match=r"50x40 .* 100x40 .*--H and --W"):
        cli.main(argv)
    assert not pipeline.loads


EMPTY = [*INPAINT[:4], "--mask_path", "empty.npy"]
SAME = [*SDEDIT[:4], "--init_img", "init.png", "--edited_img", "init.png", "--run_type", "sige"]


@pytest.mark.parametrize("argv", [EMPTY, [*EMPTY, "--run_type", "sige"], SAME])
def test_nothing_to_edit_returns_the_picture(
    argv: list[str],
    folder: Path,
    pipeline: FakePipeline,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    if argv is SAME and importlib.util.find_spec("sgm.sparse.masks") is None:
        pytest.skip("sgm.sparse.masks is not there")
    assert cli.main([*argv, "--output_path", "out.png", "--json", "-"]) == 0
    assert not pipeline.loads and "unchanged" in caplog.text
    assert np.array_equal(picture("out.png"), picture("init.png"))
    figures = json.loads(capsys.readouterr().out)
    assert (figures["edit_ratio"], figures["changed_outside"]) == (0.0, 0)
    assert figures["seconds"]["sample"] == 0


FULL = [*INPAINT[:4], "--mask_path", "full.npy"]
ALL = [*SDEDIT[:4], "--init_img", "init.png", "--edited_img", "all.png"]


@pytest.mark.parametrize(
    ("argv", "run_type", "used"),
    [
        (FULL, "sige", RunType.ORIGINAL),
        (FULL, "sige-turbo", RunType.TURBO),
        (ALL, "sige", RunType.ORIGINAL),
    ],
)
def test_everything_edited_runs_dense(
    argv: list[str],
    run_type: str,
    used: RunType,
    folder: Path,
    pipeline: FakePipeline,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if argv is ALL and importlib.util.find_spec("sgm.sparse.masks") is None:
        pytest.skip("sgm.sparse.masks is not there")
    assert cli.main([*argv, "--run_type", run_type, "--json", "figures.json"]) == 0
    assert pipeline.loads[0][1] is used and "dense" in caplog.text
    assert json.loads(Path("figures.json").read_text())["run_type"] == used.value


def test_figures(folder: Path, pipeline: FakePipeline, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*INPAINT, "--json", "new/figures.json"]) == 0
    assert capsys.readouterr().out == "outputs/inpainting-original-2.png\n"
    figures = json.loads(Path("new/figures.json").read_text())
    assert figures["output"] == "outputs/inpainting-original-2.png"
    seconds = figures["seconds"]
    assert list(seconds) == ["load", "encode", "sample", "decode", "total"]
    assert (seconds["encode"], seconds["sample"], seconds["decode"]) == (0.5, 2.0, 1.0)
    assert figures["changed_outside"] == 0
    assert figures["edit_ratio"] == pytest.approx(0.05)  # of the picture, not of the padded one
    assert figures["device"] == "cpu" and figures["versions"]["torch"] == torch.__version__
    for key in ("task", "run_type", "model", "preset", "precision", "backend", "seed"):
        assert key in figures


def test_figures_on_stdout_stand_alone(
    folder: Path, pipeline: FakePipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*SDEDIT, "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["changed_outside"] is None and Path(figures["output"]).is_file()


@pytest.mark.parametrize(
    "error", [RuntimeError("broken"), KeyboardInterrupt(), UserError("No such layer.")]
)
def test_a_failed_run_leaves_no_file(
    error: BaseException, folder: Path, pipeline: FakePipeline
) -> None:
    pipeline.fails = error
    before = sorted(folder.rglob("*"))
    with pytest.raises(type(error)):
        cli.main([*INPAINT, "--json", "figures.json"])
    assert sorted(folder.rglob("*")) == before


def test_out_of_memory_is_a_sentence(folder: Path, pipeline: FakePipeline) -> None:
    pipeline.fails = torch.cuda.OutOfMemoryError("tried to allocate")
    with pytest.raises(UserError, match="memory of cpu is not enough"):
        cli.main(INPAINT)


def test_a_picture_far_larger_than_trained_is_pointed_out(
    folder: Path, pipeline: FakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*INPAINT, "--model", "tiny"]
    cli.main([*words, "--H", "256", "--W", "512"])
    assert "look better" not in caplog.text
    cli.main([*words, "--H", "512", "--W", "1024"])
    assert "trained at 512x256" in caplog.text and "--H 256 --W 512" in caplog.text
