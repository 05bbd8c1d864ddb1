"""The demonstration and the quality benchmark, with random weights of the tiny model."""

import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import quality
from benchmarks.common import plain, summary
from sgm.cli.program import run_program
from sgm.config import instantiate_from_config, load_config
from sgm.sparse.network import is_sparse
from sgm.sparse.sparsify import handle_of
from sgm.sparse.state import Mode
from sgm.specs import MODELS
from sgm.words import Task
from tools import compare, demo, make_figures, ways
from tools.figure import Panel, Row, draw_figure, overlay
from tools.tiny.pairs import HELD_OUT
from tools.tiny.turbo import LowRank, lora_tensors
from tools.ways import Way


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with random weights under the published keys, in half precision."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pretrained")
    engine = instantiate_from_config(load_config(demo.ROOT / "configs/tiny-original.yaml")["model"])
    tensors = {name: t.half().contiguous() for name, t in engine.state_dict().items()}
    own = MODELS["tiny"].own(folder, "turbo")
    save_file(tensors, own.checkpoint, {"unet_steps": "0"})
    change = {name: part.detach() for name, part in LowRank(engine.model).named_parameters()}
    save_file(lora_tensors(change), own.loras[0].path)
    return folder


def test_demo_writes_the_figure_and_prints_the_table(weights, tmp_path, capsys):
    path = tmp_path / "folder/demo.png"
    arguments = ["--steps", "4", "--weight_path", str(weights), "--device", "cpu"]
    assert demo.main([*arguments, "--output", str(path)]) == 0
    with Image.open(path) as figure:
        assert figure.mode == "RGB" and figure.width > 6 * 512 and figure.height > 2 * 256
    out = capsys.readouterr().out
    rows = {}
    for line in out.splitlines():
        if line.startswith("| "):
            name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name] = dict(zip(demo.HEAD[1:], cells, strict=True))
    for task in ("Inpainting", "SDEdit"):
        found = {way: rows[f"{task}, {way}"] for way in Way}
        order = [name for name in rows if name.startswith(task)]
        seconds = [float(rows[name]["seconds"]) for name in order]
        assert seconds == sorted(seconds)
        macs = {way: float(row["UNet GMAC"]) for way, row in found.items()}
        assert macs[Way.WARM] < macs[Way.DENSE] < macs[Way.PUBLISHED]
        assert macs[Way.WARM] < macs[Way.FAST]
        assert found[Way.DENSE]["PSNR in the edit"] == "-"
        for way in (Way.PUBLISHED, Way.FAST, Way.WARM):
            assert float(found[way]["PSNR in the edit"].removesuffix(" dB")) > 0
        assert found[Way.DENSE]["faster"] == found[Way.DENSE]["fewer"] == "1.00x"
    assert "x as fast as dense" in out


def test_the_unet_is_counted_as_often_as_it_runs(weights):
    """Of every way, the calls that an edit makes and what each costs, counted as they come."""
    edit = demo.shipped_edits()[1]
    pipelines = ways.load_ways(MODELS["tiny"], weights, torch.device("cpu"), demo.Precision.FP32)
    for pipeline in pipelines.values():
        unet, counted = pipeline.networks.unet, {True: 0, False: 0}
        forward = unet.forward

        def watched(*args, unet=unet, counted=counted, forward=forward, **named):
            flops = FlopCounterMode(display=False)
            with flops:
                result = forward(*args, **named)
            records = is_sparse(unet) and handle_of(unet).mode is Mode.RECORD
            counted[records] += flops.get_total_flops() // 2
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unet, "forward", watched)
            compare.run_edit(pipeline, edit, 12)
        found = ways.unet_macs(pipeline, edit.request(pipeline.recipe.blend), 12)
        # These counts hold fused attention and lack norms and elementwise products, a few percent.
        assert found.record == pytest.approx(counted[True], rel=0.12)
        assert found.edit == pytest.approx(counted[False], rel=0.12)


def test_a_recording_serves_the_edits_that_are_asked_of_it(weights):
    fast = ways.load_ways(MODELS["tiny"], weights, torch.device("cpu"), demo.Precision.FP32)
    for edit in demo.shipped_edits()[:2]:
        session, seconds = ways.record(fast[Way.FAST], edit, demo.base_prompt(edit), 5)
        assert seconds > 0 and session.is_recorded(edit.task, edit.strength)
        names = set(session.recordings.store.names())
        assert ways.edit_in(session, edit).image.shape == edit.image.shape
        # What the edit's own prompt changes is kept beside the recordings.
        assert {n for n in session.recordings.store.names() if not n.startswith("prompt-")} == names


def test_figures_are_drawn(weights, tmp_path, capsys):
    arguments = ["--steps", "4", "--weight_path", str(weights), "--output", str(tmp_path)]
    assert make_figures.main([*arguments, "--only", "turbo", "recording"]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / name) for name in ("turbo.png", "recording.png")
    ]
    with Image.open(tmp_path / "turbo.png") as figure:
        assert figure.width > 6 * 512 and figure.height > 2 * 256
    with Image.open(tmp_path / "recording.png") as figure:
        assert figure.width > 4 * 512 and figure.height > 4 * 256


def test_demo_refuses_in_one_sentence(weights, tmp_path, capsys):
    output = ["--output", str(tmp_path / "demo.png"), "--device", "cpu"]
    assert run_program("demo", lambda: demo.main(["--weight_path", str(tmp_path), *output])) == 2
    error = capsys.readouterr().err
    assert "tiny_base.safetensors does not exist" in error and error.count("\n") == 1
    text = ["--weight_path", str(weights), "--output", "demo.txt"]
    assert run_program("demo", lambda: demo.main(text)) == 2
    assert "'.txt'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--steps", "0"])
    assert not (tmp_path / "demo.png").exists()


def test_quality_writes_figures_of_every_pair(weights, tmp_path, capsys):
    path = tmp_path / "quality.json"
    arguments = ["--pairs", "1", "--steps", "2", "--seed", "3", "--weight_path", str(weights)]
    assert quality.main([*arguments, "--device", "cpu", "--output", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert set(figures["tasks"]) == {"inpainting", "sdedit"}
    for runs in figures["tasks"].values():
        assert list(runs) == ["dense", "published", "fast_network", "fast", "warm"]
        for run, result in runs.items():
            (edit,) = result["edits"]
            assert edit["seed"] == HELD_OUT + 3
            assert result["summary"]["psnr_inside"]["median"] == edit["psnr_inside"]
            assert 0 < edit["edit_ratio"] < 1 and -1 <= edit["ssim_outside"] <= 1
            assert (edit["changed_outside"] == 0) == (run in ("fast", "warm"))
            assert edit["object"] in edit["prompt"] and edit["found"] in (0, 1)
        # A border's step is the input's in what is put into the input, and not in noise's picture.
        assert runs["dense"]["edits"][0]["border_step"] != 0
    assert figures["autoencoder_psnr"]["count"] == 1
    assert figures["autoencoder_sharpness"]["mean"] > 0
    assert figures["weights"] == {"tiny_base.safetensors": {"unet_steps": "0"}}
    assert figures["versions"]["torch"] and figures["steps"] == 2
    out = capsys.readouterr().out
    assert "| inpainting, fast_network" in out and "| autoencoder alone" in out


def test_quality_of_the_few_step_model(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(quality, "RESULTS", tmp_path)
    arguments = ["--turbo", "--task", "inpainting", "--pairs", "1", "--weight_path", str(weights)]
    assert quality.main([*arguments, "--device", "cpu"]) == 0
    figures = json.loads((tmp_path / "quality_turbo.json").read_text())
    assert figures["steps"] == 4 and figures["turbo"]
    assert set(figures["weights"]) == {"tiny_base.safetensors", "tiny_turbo_lora.safetensors"}


def test_quality_without_weights(tmp_path, capsys):
    arguments = ["--weight_path", str(tmp_path), "--output", str(tmp_path / "quality.json")]
    assert run_program("quality", lambda: quality.main([*arguments, "--device", "cpu"])) == 2
    assert "does not exist" in capsys.readouterr().err


def test_summaries_leave_out_what_is_not_finite():
    found = summary([1.0, 2.0, 6.0, math.inf, math.nan])
    assert found == {"mean": 3.0, "median": 2.0, "min": 1.0, "count": 3}
    assert summary([math.inf])["mean"] is None
    assert plain({"a": [math.nan, 1, 0.5]}) == {"a": [None, 1, 0.5]}


def test_both_runs_get_the_same_noise(weights):
    """The dense and the sparse run draw in another order, and get the same draws by name."""
    edit = quality.make_edit(Task.SDEDIT, 0)
    drawn: dict[Way, dict[str, torch.Tensor]] = {}
    pipelines = ways.load_ways(MODELS["tiny"], weights, torch.device("cpu"), demo.Precision.FP32)

    def spy(kind):
        class Spy(compare.NamedNoise):
            def __call__(self, name, shape):
                drawn.setdefault(kind, {})[name] = value = super().__call__(name, shape)
                return value

        return Spy

    for kind, pipeline in pipelines.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compare, "NamedNoise", spy(kind))
            compare.run_edit(pipeline, edit, steps=2)
    dense, sparse = drawn[Way.DENSE], drawn[Way.PUBLISHED]
    assert set(dense) < set(sparse)
    assert all(torch.equal(dense[name], sparse[name]) for name in dense)


def test_outside_is_far_from_the_edit():
    mask = torch.zeros(256, 512, dtype=torch.bool)
    mask[100:120, 200:240] = True
    outside = compare.far_from(mask)
    assert not outside[110, 240 + 44] and outside[110, 240 + 45]
    a = torch.zeros(3, 256, 512)
    b = torch.where(mask, 0.1, 0.0).expand_as(a)
    alike = compare.likeness(a, b, mask)
    assert alike.psnr_inside == pytest.approx(20, abs=1e-4) and alike.psnr_outside == math.inf
    assert math.isnan(compare.likeness(a, b, torch.ones_like(mask)).psnr_outside)


def test_overlay_and_figure():
    picture, mask = torch.zeros(3, 32, 48), torch.zeros(32, 48, dtype=torch.bool)
    mask[8:20, 8:30] = True
    shown = overlay(picture, mask)
    assert not shown[:, ~mask].any()
    assert shown[0, 8, 8] > 2 * shown[0, 14, 18] > 0  # the edge is opaque
    panel = Panel(shown, "Mask", "one line\nand another")
    sheet = draw_figure("Title", [Row("Name", "why", [panel, panel])] * 2, ["A note."])
    assert sheet.mode == "RGB" and sheet.width > 2 * 48
