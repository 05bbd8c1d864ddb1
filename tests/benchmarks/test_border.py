"""The benchmark of borders: what it measures, and the files that it writes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks import border
from sgm.inference.composite import opacity
from sgm.words import Task
from tools.compare import Edit
from tools.ways import Way

SIZE, DRIFT = (64, 128), 0.08


def an_edit(task: Task, number: int) -> Edit:
    """A smooth picture, and a rectangle in it."""
    image = torch.linspace(-0.5, 0.5, SIZE[1]).expand(3, *SIZE)
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[20:40, 40:90] = True
    drawn = torch.where(mask, 0.9, image) if task is Task.SDEDIT else None
    return Edit(task, "a sun", number, image, mask, drawn)


def drifted(edit: Edit) -> Tensor:
    """The picture of a network whose colours drift."""
    return (edit.image + 1) / 2 + DRIFT


@pytest.mark.parametrize("task", list(Task))
def test_a_drift_is_a_step_unless_it_is_matched(task: Task) -> None:
    edit = an_edit(task, 1)
    found = border.figures_of(edit, drifted(edit) + 0.01, drifted(edit))
    assert found["as it is"]["step"] == pytest.approx(255 * DRIFT, rel=0.05)
    assert found["matched"]["step"] < 1
    assert found["as it is"]["psnr_alike"] == pytest.approx(40, abs=0.1)
    assert found["matched"]["psnr_alike"] > 50  # the two drift by different amounts
    assert found["matched"]["psnr_raw"] < found["as it is"]["psnr_raw"]


def test_what_a_network_paints_across_the_border_is_no_step() -> None:
    mask = an_edit(Task.INPAINTING, 1).mask
    weight = opacity(mask, 3)
    network = torch.where(torch.arange(SIZE[1]) < 60, 0.2, 0.8).expand(3, *SIZE)
    assert border.colour_step(network, network, weight) < 1e-3


def test_the_program_writes_figures_and_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = SimpleNamespace(with_recipe=lambda recipe: None)
    monkeypatch.setattr(border, "load_ways", lambda *_: dict.fromkeys(Way, pipeline))
    monkeypatch.setattr(border, "make_edit", an_edit)

    def run_edit(pipeline: object, edit: Edit, steps: int, noise: object) -> SimpleNamespace:
        return SimpleNamespace(image=drifted(edit))

    monkeypatch.setattr(border, "run_edit", run_edit)
    output = tmp_path / "border.json"
    assert border.main(["--pairs", "2", "--steps", "3", "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    assert figures["pairs"] == 2 and figures["steps"] == 3
    assert set(figures["tasks"]) == {"inpainting", "sdedit"}
    lines = output.with_suffix(".md").read_text().splitlines()
    assert len(lines) == 6 and lines[3].startswith("| inpainting, matched")
    assert output.with_suffix(".md").read_text() in capsys.readouterr().out
