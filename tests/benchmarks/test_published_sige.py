"""The residual block beside the published package: its program, its table, and its refusal."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import published_sige
from sgm.errors import UserError
from sgm.profiling import latency
from sgm.sparse.masks import inpainting_pyramid
from sgm.sparse.ops import BACKENDS, select_ops

OBSTACLE = BACKENDS["sige"].obstacle(torch.device("cpu"))
SIZE = published_sige.QUICK[0]


@pytest.mark.skipif(OBSTACLE is not None, reason=f"backend sige: {OBSTACLE}")
def test_a_trial_compares_and_times_everybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "MAX_RUNS", 1)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # minutes in its interpreter
    output = tmp_path / "published.json"
    assert published_sige.main(["--quick", "--device", "cpu", "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    assert {"device", "machine", "versions", "commit"} <= figures.keys()
    assert [row["batch"] for row in figures["rows"]] == [2, 1]  # both ways of scatter and gather
    for row in figures["rows"]:
        assert {"dense", "published", "torch", "sige"} <= row["milliseconds"].keys()
        assert {"torch", "sige"} <= row["max_errors"].keys()
    printed = capsys.readouterr().out
    assert (
        output.with_suffix(".md").read_text() in printed and "trial (2 x 32 x 64 x 128)" in printed
    )
    monkeypatch.setattr(published_sige, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"differ by .* in trial, expected at most"):
        published_sige.main(["--quick", "--device", "cpu", "--output", str(output)])


def test_a_trial_is_the_same_block_in_any_layout() -> None:
    mask = torch.zeros(published_sige.PICTURE, dtype=torch.bool)
    mask[published_sige.RECTANGLE] = True
    masks = inpainting_pyramid(mask)
    level = masks[SIZE.height, SIZE.width]
    ops = select_ops("torch")
    with torch.inference_mode():
        first = published_sige.Trial(SIZE, level, ops)
        ops.memory_format = torch.contiguous_format
        second = published_sige.Trial(SIZE, level, ops)
        assert second.edited.is_contiguous() and not first.edited.is_contiguous()
        assert torch.equal(first.edited, second.edited)
        assert torch.equal(first.unedited[:, :, ~level], first.edited[:, :, ~level])
        assert (first.dense() - second.dense()).abs().max() < published_sige.TOLERANCE
        found, expected = first.sparse(masks), second.sparse(masks)
        assert (found - expected).abs().max() < published_sige.TOLERANCE


def test_ratios_are_of_dense() -> None:
    times = {"dense": {"median": 6.0}, "published": {"median": 3.0}, "torch": {"median": 1.5}}
    row = {**vars(SIZE), "milliseconds": times}
    *_, line = published_sige.table([row]).splitlines()
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    assert cells == ["trial (2 x 32 x 64 x 128)", "6.00", "3.00 (2.00x)", "1.50 (4.00x)"]


def test_without_the_package_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sige.cpu", None)
    with pytest.raises(UserError, match=r"package cannot run here: .*tools\.install_sige"):
        published_sige.main(["--device", "cpu", "--output", str(tmp_path / "published.json")])
    assert not list(tmp_path.iterdir())
