"""The program that sets a UNet pass beside its rivals: rows, ratios, and one set of weights."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from benchmarks import rival_networks, rivals
from sgm.config import load_config
from sgm.errors import UserError
from sgm.profiling.latency import Latency
from sgm.profiling.macs import Macs
from sgm.profiling.passes import Pass
from sgm.sparse.ops import BACKENDS
from tests.conftest import ROOT

CPU = torch.device("cpu")
LAST = torch.channels_last
INSTALLED = BACKENDS["sige"].obstacle(CPU) is None
QUICK = ["--quick", "--device", "cpu", "--examples", "mask"]


@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_the_autoencoder_has_rivals_too(network: str, tmp_path: Path) -> None:
    output = tmp_path / "rivals.json"
    assert rivals.main([*QUICK, "--network", network, "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    names = ["dense", *["package"] * INSTALLED, "published", "fast"]
    assert [row["row"] for row in figures["rows"]] == names
    assert network in output.with_suffix(".md").read_text()
    with pytest.raises(UserError, match="of the UNet only"):
        rivals.main([*QUICK, "--network", network, "--rows", "diffusers"])


def arguments(*words: str):
    return rivals.build_parser().parse_args(words)


def test_a_trial_measures_every_row_on_one_set_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # importing it raises ImportError
    benches: list[rivals.Bench] = []

    class Watched(rivals.Bench):
        def sparse_rows(self, example):
            for name, one in super().sparse_rows(example):
                at = one.network.time_embed[0].weight.data_ptr()
                assert at == self.weights["time_embed.0.weight"].data_ptr()
                yield name, one
            benches.append(self)

    monkeypatch.setattr(rivals, "Bench", Watched)
    output = tmp_path / "rivals.json"
    assert rivals.main([*QUICK, "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    assert figures["model"] == "tiny"
    names = ["dense", *["package"] * INSTALLED, "published", "fast"]
    assert [row["row"] for row in figures["rows"]] == names
    for row in figures["rows"]:
        assert row["example"] == "mask" and row["latency_ms"]["median"] > 0
        assert (row["share"] is None) is (row["row"] == "dense")
        assert ("error" in row) is (row["row"] == "package")
        assert float(row.get("error", 0)) < 1e-4
    assert list(figures["left_out"]) == ["diffusers"]
    printed = capsys.readouterr().out
    assert output.with_suffix(".md").read_text() in printed
    assert "Left out: dense, diffusers (" in printed and "our own, but for the mask" in printed
    bench, dense = benches[0], benches[0].dense["dense"]
    bench.rows = ["dense", "published"]
    with torch.inference_mode():
        assert [row["example"] for row in bench.measure("0")] == ["0", "0"]
    assert bench.dense["dense"] is dense  # what is dense is made once


def test_ratios_are_of_dense_and_of_the_package() -> None:
    found = {name: Latency(ms, ms, ms) for name, ms in (("dense", 60.0), ("fast", 10.0))}
    fast, dense = Macs(10), Macs(80)
    ratios = rivals.ratios("fast", fast, dense, found)
    assert ratios == {"faster": 6, "mac_ratio": 8, "share": 0.75, "faster_than_package": None}
    found["package"] = Latency(25.0, 20.0, 30.0)
    assert rivals.ratios("fast", fast, dense, found)["faster_than_package"] == 2.5
    assert rivals.ratios("dense", dense, dense, found)["share"] is None
    row = {"example": "0", "row": "fast", "gmacs": 1.0, "latency_ms": found["fast"].figures()}
    line = rivals.table({"rows": [row | ratios]}).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    assert cells == ["0: fast", "1.00", *["10.00"] * 3, "6.00x", "8.00x", "0.75", "-"]


def test_rows_that_cannot_run_are_left_out_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sige.cpu", ModuleType("sige.cpu"))
    assert rivals.wanted(arguments("--rows", "fast"), CPU) == ["dense", "fast"]
    every = rivals.wanted(arguments(), CPU)
    assert every == ["dense", "diffusers", "package", "published", "fast"]
    assert "package" not in rivals.wanted(arguments("--precision", "bf16"), CPU)
    monkeypatch.setitem(sys.modules, "sige.cpu", None)
    assert "package" not in rivals.wanted(arguments(), CPU)
    for row, reason in (("package", r"tools\.install_sige"), ("graphs", "needs a CUDA device")):
        with pytest.raises(UserError, match=f"row {row} cannot be measured here: .*{reason}"):
            rivals.wanted(arguments("--rows", row), CPU)
    with pytest.raises(UserError, match="--runs is 0"):
        rivals.main(["--runs", "0"])


def test_results_are_compared_with_those_of_the_package() -> None:
    def made(value: float) -> Pass:
        return Pass(nn.Identity(), {0: torch.full((2,), value)})

    assert rivals.difference({"published": made(2.0)}) is None
    assert rivals.difference({"published": made(2.0), "package": made(1.0)}) == 0.5


def test_the_compiled_rival_is_the_same_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []

    def compile_eagerly(network: nn.Module, mode: str) -> nn.Module:
        modes.append(mode)
        return network

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    one = Pass(nn.Linear(3, 2), {0: torch.randn(4, 3)})
    assert torch.equal(rival_networks.compiled(one)(), one.run())
    assert modes == ["reduce-overhead"]  # with CUDA graphs


def unet_params(name: str) -> dict:
    config = load_config(ROOT / "configs" / name)
    return config["model"]["params"]["network_config"]["params"]


def test_the_unet_of_diffusers_has_the_shape_of_sdxl() -> None:
    made = rival_networks.unet_arguments(unet_params("original.yaml"))
    # As in the configuration that SDXL was published with for diffusers.
    assert made["block_out_channels"] == [320, 640, 1280] and made["layers_per_block"] == 2
    assert made["transformer_layers_per_block"] == [1, 2, 10]
    assert made["attention_head_dim"] == [5, 10, 20] and made["cross_attention_dim"] == 2048
    assert made["down_block_types"] == ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2]
    assert made["up_block_types"] == [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"]
    assert made["addition_time_embed_dim"] == 256
    assert made["projection_class_embeddings_input_dim"] == 2816


def test_weights_get_the_names_of_diffusers_without_a_copy() -> None:
    weights = {
        "input_blocks.0.0.weight": torch.randn(4, 4, 3, 3),
        "input_blocks.1.0.in_layers.2.bias": torch.randn(4),
        "middle_block.1.proj_in.weight": torch.randn(4, 5, 1, 1).to(memory_format=LAST),
        "middle_block.1.proj_in.bias": torch.randn(4),
    }
    found = rival_networks.renamed(weights)
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "conv_in.weight": (4, 4, 3, 3),
        "down_blocks.0.resnets.0.conv1.bias": (4,),
        "mid_block.attentions.0.proj_in.weight": (4, 5),
        "mid_block.attentions.0.proj_in.bias": (4,),
    }
    pairs = zip(found.values(), weights.values(), strict=True)
    assert all(new.data_ptr() == old.data_ptr() for new, old in pairs)


def importable(name: str) -> bool:
    try:
        return hasattr(importlib.import_module(name), "UNet2DConditionModel")
    except (ImportError, RuntimeError):
        return False


@pytest.mark.skipif(not importable("diffusers"), reason="diffusers cannot be imported here")
def test_the_unet_of_diffusers_runs(tmp_path: Path) -> None:
    output = tmp_path / "rivals.json"
    words = ["--rows", "diffusers", "--output", str(output)]
    assert rivals.main([*QUICK, *words]) == 0
    figures = json.loads(output.read_text())
    assert [row["row"] for row in figures["rows"]] == ["dense", "diffusers"]
