"""The profile modes on the command line, with the tiny model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sgm.cli import main as cli
from sgm.errors import UserError
from sgm.profiling import latency
from tests.conftest import ROOT

KEYS = ["mode", "task", "run_type", "preset", "precision", "backend", "device", "edit_ratio"]
KEYS += ["gmacs", "gmacs_with_attention", "latency_ms", "dense", "speedup", "peak_memory_mb"]
KEYS += ["versions"]
NETWORKS = ["unet", "encoder", "decoder"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A picture, the same drawn on, and masks; names of files as options."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "init.png")
    pixels[20:40, 50:90] ^= 255
    Image.fromarray(pixels).save(tmp_path / "edited.png")
    mask = np.zeros((64, 128), dtype=bool)
    np.save(tmp_path / "empty.npy", mask)
    np.save(tmp_path / "full.npy", ~mask)
    mask[20:40, 50:90] = True
    np.save(tmp_path / "mask.npy", mask)
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMON = ["--prompt", "a horse", "--model", "tiny", "--init_img", "init.png", "--device", "cpu"]
COMMON += ["--config_path", str(ROOT / "configs"), "--weight_path", "nowhere", "--json", "-"]
INPAINT = [*COMMON, "--mask_path", "mask.npy"]
SDEDIT = [*COMMON, "--task", "sdedit", "--edited_img", "edited.png"]


def profile(capsys, *words):
    assert cli.main(list(words)) == 0
    return json.loads(capsys.readouterr().out)


def count(capsys, network, *words):
    return profile(capsys, *words, "--mode", f"profile_{network}", "--macs_only")


@pytest.mark.parametrize(
    ("task", "network"),
    [*((INPAINT, network) for network in NETWORKS), (SDEDIT, "encoder")],
    ids=[*NETWORKS, "sdedit encoder"],
)
def test_counts_of_both_presets(files, capsys, task, network):
    """No file of weights is there, and none is needed."""
    original = count(capsys, network, *task)
    assert set(KEYS) <= set(original)
    assert original["mode"] == f"profile_{network}" and original["dense"] is None
    published = count(capsys, network, *task, "--run_type", "sige")
    fast = count(capsys, network, *task, "--run_type", "sige", "--preset", "fast")
    for figures in (published, fast):
        assert set(KEYS) <= set(figures)
        dense = figures["dense"]
        assert dense["gmacs"] == original["gmacs"] and dense["latency_ms"] is None
        assert dense["gmacs_with_attention"] == original["gmacs_with_attention"]
        assert figures["latency_ms"] is figures["speedup"] is figures["peak_memory_mb"] is None
        assert figures["edit_ratio"] == pytest.approx(20 * 40 / (64 * 128))
    # At this size the blocks of the published preset reach far over the edges of small maps.
    assert fast["gmacs"] < min(published["gmacs"], original["gmacs"])


def test_the_first_steps_of_sdedit_have_wider_masks(files, capsys):
    words = [*SDEDIT, "--run_type", "sige"]
    fast = count(capsys, "unet", *words, "--preset", "fast")
    assert 0 < fast["first_steps"]["share"] < 1
    assert fast["gmacs"] < fast["first_steps"]["gmacs"] < fast["dense"]["gmacs"]
    assert "first_steps" not in count(capsys, "unet", *words)
    assert "first_steps" not in count(capsys, "decoder", *words, "--preset", "fast")


def test_times_with_random_weights(files, capsys, monkeypatch):
    monkeypatch.setattr(latency, "MAX_RUNS", 3)
    words = [*INPAINT, "--run_type", "sige", "--mode", "profile_encoder", "--random_weights"]
    figures = profile(capsys, *words)
    for times in (figures["latency_ms"], figures["dense"]["latency_ms"]):
        assert 0 < times["p10"] <= times["median"] <= times["p90"]
    ratio = figures["dense"]["latency_ms"]["median"] / figures["latency_ms"]["median"]
    assert figures["speedup"] == pytest.approx(ratio, rel=0.01) and figures["backend"] == "torch"
    alone = profile(capsys, *words, "--no-compare")
    assert alone["dense"] is None and alone["speedup"] is None
    assert alone["gmacs"] == figures["gmacs"] and alone["latency_ms"] is not None


def test_a_checkpoint_gives_the_same_counts(files, capsys, monkeypatch):
    monkeypatch.setattr(latency, "MAX_RUNS", 3)
    words = [*SDEDIT, "--run_type", "sige", "--mode", "profile_unet"]
    words[words.index("nowhere")] = str(ROOT / "pretrained")
    figures = profile(capsys, *words)
    assert figures["latency_ms"]["median"] > 0 and figures["dense"]["latency_ms"]["median"] > 0
    counted = profile(capsys, *words, "--macs_only")
    assert figures["gmacs"] == counted["gmacs"]


def test_half_precision_is_measured_in_half_precision(files, capsys, monkeypatch):
    monkeypatch.setattr(latency, "MAX_RUNS", 3)
    seen = []
    measure = latency.measure
    monkeypatch.setattr(
        latency, "measure", lambda calls, device: seen.append(calls) or measure(calls, device)
    )
    words = ["--run_type", "sige", "--mode", "profile_decoder", "--random_weights"]
    profile(capsys, *INPAINT, *words, "--precision", "bf16")
    with torch.inference_mode():
        assert seen[0]["dense"]().dtype == torch.bfloat16


def test_text_for_people(files, capsys):
    words = [word for word in INPAINT if word not in ("--json", "-")]
    words += ["--run_type", "sige", "--mode", "profile_unet", "--macs_only"]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "UNet of inpainting sige, 9.8% of the picture edited"
    assert lines[1].split(", ")[0].endswith("M parameters") and "fp32, backend torch" in lines[1]
    assert [line.split()[0] for line in lines[3:]] == ["GMAC", "dense", "sparse", "ratio"]


def test_nothing_to_edit_is_refused_and_everything_is_dense(files, capsys, caplog):
    with pytest.raises(UserError, match="mask is empty"):
        count(capsys, "unet", *COMMON, "--mask_path", "empty.npy")
    figures = count(capsys, "unet", *COMMON, "--mask_path", "full.npy", "--run_type", "sige")
    assert figures["run_type"] == "original" and figures["dense"] is None
    assert "covers the whole picture" in caplog.text
