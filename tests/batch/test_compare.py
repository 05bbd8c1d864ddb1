"""Results against reference pictures: which are compared, where, and what the tables say."""

import csv
import math
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sgm import metrics
from sgm.batch import compare
from tests.batch.edits import inpainting_row, make_pictures, run, sdedit_row, write_rows


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows, and their results in `out`."""
    path = tmp_path_factory.mktemp("compare")
    make_pictures(path)
    rows = [inpainting_row(0, seed=1), inpainting_row(1), sdedit_row(0), sdedit_row(1)]
    assert run(write_rows(path, rows), path / "out") == 0
    return path


def table(done: Path) -> list[dict[str, str]]:
    with (done / "out" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_inside_and_outside_are_measured_apart(done: Path, capsys) -> None:
    references = done / "references"
    references.mkdir()
    picture = Image.open(done / "out" / "000001.png")
    picture.save(references / "000001.png")
    mask = np.asarray(Image.open(done / "m1.png"))
    changed = np.array(Image.open(done / "out" / "000002.png")).astype(int)
    changed[mask] = np.where(changed[mask] < 128, changed[mask] + 10, changed[mask] - 10)
    Image.fromarray(changed.astype(np.uint8)).save(references / "000002.bmp")  # another format
    Image.open(done / "p0.png").resize((64, 32)).save(references / "000003.png")  # another size
    assert run(done / "edits.jsonl", done / "out", "--against", str(references)) == 0
    first, second, third = table(done)
    assert [row["output"] for row in (first, second, third)] == [f"00000{n}.png" for n in (1, 2, 3)]
    assert set(first) == {"row", "output"} | {
        f"{name}_{part}" for name in ("psnr", "ssim") for part in ("inside", "outside")
    }
    assert first["psnr_inside"] == first["psnr_outside"] == "inf"
    assert float(first["ssim_inside"]) == float(first["ssim_outside"]) == 1
    assert float(second["psnr_inside"]) == pytest.approx(20 * math.log10(255 / 10), abs=1e-3)
    assert second["psnr_outside"] == "inf" and float(second["ssim_inside"]) < 1
    assert 0 < float(third["psnr_outside"]) < 60
    summary = (done / "out" / "summary.md").read_text()
    assert summary in capsys.readouterr().err
    assert summary.startswith("3 of 4 results have a reference picture.")
    values = [float(row["ssim_inside"]) for row in (first, second, third)]
    cells = (statistics.mean(values), statistics.median(values), min(values), max(values))
    assert f"| ssim, inside | {' | '.join(f'{x:.4f}' for x in cells)} |" in summary


def test_lpips_joins_where_it_is_installed(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "lpips_map", lambda: lambda a, b: (a - b).abs().mean(dim=0))
    assert run(done / "edits.jsonl", done / "out", "--against", str(done / "out")) == 0
    assert len(table(done)) == 4
    assert all(float(row["lpips_inside"]) == 0 for row in table(done))


def test_lpips_is_of_every_pixel_and_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Network:
        def __init__(self, **words: object) -> None:
            asked.append(words)

        def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            asked.append((a.min().item(), a.max().item()))
            return (a - b).abs().mean(dim=1, keepdim=True)

    package = SimpleNamespace(LPIPS=Network, __spec__=SimpleNamespace())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "lpips", package)
    assert metrics.lpips_map() is None and not asked
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / metrics.ALEXNET).touch()
    distances = metrics.lpips_map()
    assert distances is not None
    assert asked == [{"net": "alex", "spatial": True, "verbose": False}]
    a = torch.rand(3, 16, 20)
    a[0, 0, 0], a[0, 0, 1] = 0, 1
    assert distances(a, a).shape == (16, 20) and asked[1] == (-1, 1)
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.delitem(sys.modules, "lpips")
    assert metrics.lpips_map() is None  # not installed
