"""The benchmark of crops: its windows, its figures, and what it says of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import crop
from benchmarks.common import ROOT
from benchmarks.quality import make_edit
from sgm.io.checkpoint import build_model
from sgm.specs import MODELS
from sgm.words import RunType, Task
from tests.conftest import tiny_weights

SPEC = MODELS["tiny"]
PIXELS = SPEC.trained_size[0] * SPEC.trained_size[1]


def share(name: str, mask: torch.Tensor) -> float:
    """What a crop's network gets, of the pixels of the whole picture."""
    height, width = crop.window_of(mask, name).size
    return height * width / PIXELS


@pytest.mark.parametrize("task", Task)
def test_crops_hold_the_edit_at_their_cost(task: Task) -> None:
    for number in range(4):
        mask = make_edit(task, number).mask
        for name, wanted in {"whole": 1.0, "half": 0.5, "quarter": 0.25}.items():
            # Sides are multiples of 64: a square of a quarter has 192, not 181.
            assert share(f"crop enlarged, {name}", mask) == pytest.approx(wanted, rel=0.3)
        scales = {}
        for name in crop.CROPS:
            window = crop.window_of(mask, name)
            assert window.of(mask).sum() == mask.sum()
            scales[name] = (window.size[0] * window.size[1]) / (window.height * window.width)
        for pixels in ("half", "quarter"):
            plain = scales[f"crop plain, {pixels}"]
            assert plain <= 1.01 and scales[f"crop enlarged, {pixels}"] > plain
        assert scales["crop enlarged, whole"] > 1.5


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> crop.Networks:
    """With random weights."""
    folder = tmp_path_factory.mktemp("pretrained")
    engine = build_model(ROOT / "configs" / SPEC.config_file(RunType.ORIGINAL))
    shapes = {name: list(t.shape) for name, t in engine.state_dict().items()}
    save_file(tiny_weights(shapes), folder / SPEC.weights["base"])
    return crop.Networks.load(folder, torch.device("cpu"))


def test_every_way_is_compared(
    networks: crop.Networks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two = ("crop enlarged, quarter", "crop plain, half")  # of five: each takes a while
    monkeypatch.setattr(crop, "CROPS", {name: crop.CROPS[name] for name in two})
    edit = make_edit(Task.SDEDIT, 0)
    found = crop.compare(networks, edit, 2)
    assert list(found) == [crop.DENSE, crop.OTHER, crop.COLD, crop.WARM, *two]
    dense = found[crop.DENSE]
    for way, figures in found.items():
        assert figures["seconds"] > 0 and figures["seed"] == edit.seed
        if way in crop.CROPS:
            assert figures["gmac"] / dense["gmac"] == pytest.approx(share(way, edit.mask), rel=0.1)
    assert found[crop.WARM]["gmac"] < found[crop.COLD]["gmac"]
    assert dense["ssim_inside"] == 1 and found[crop.OTHER]["ssim_inside"] < 1

    monkeypatch.setattr(crop, "compare", lambda *given: found)
    monkeypatch.setattr(crop.Networks, "load", lambda *given: networks)
    path = tmp_path / "crop.json"
    assert crop.main(["--pairs", "1", "--steps", "2", "--output", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert set(figures["tasks"]) == set(Task) and figures["pairs"] == 1
    text = path.with_suffix(".md").read_text()
    assert text.strip() in capsys.readouterr().out
    ratio = dense["gmac"] / found["crop plain, half"]["gmac"]
    [row] = [line for line in text.splitlines() if "| sdedit, crop plain, half" in line][:1]
    assert f"{ratio:.2f}x" in row


def test_a_crop_is_put_back_into_the_picture(networks: crop.Networks) -> None:
    edit = make_edit(Task.INPAINTING, 0)
    result = crop.edited_in_crop(networks.dense, edit, "crop enlarged, quarter", 2).image
    wanted = crop.cropped(edit, crop.window_of(edit.mask, "crop enlarged, quarter"))
    touched = wanted.touched(networks.dense.recipe)
    source = (edit.image + 1) / 2
    assert result.shape == source.shape and touched[edit.mask].all()
    assert torch.equal(result[:, ~touched], source[:, ~touched])
    assert not torch.equal(result[:, edit.mask], source[:, edit.mask])


def test_better_is_said_figure_by_figure() -> None:
    even = dict.fromkeys(crop.FIGURES, 2.0)
    mean = {crop.COLD: even, crop.WARM: {**even, "seconds": 1.0, "found": 0.0, "gmac": None}}
    mean["crop"] = {**even, "seconds": 1.5, "psnr_inside": 3.0, "found": 1.0, "gmac": 1.0}
    cold, warm = crop.better_than(mean, "crop")
    assert cold == "seconds, UNet GMAC, PSNR" and warm == "PSNR, object found"
    assert crop.better_than({**mean, "crop": even}, "crop")[0] == "nothing"
