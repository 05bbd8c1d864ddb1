"""Checkpoints, autoencoders and LoRAs by name; recordings that know them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import convert_weights
from sgm.cli import main as cli
from sgm.cli.option_types import weighted
from sgm.errors import UserError
from sgm.io import files
from sgm.specs import Lora, Weights
from sgm.words import Prediction
from tests.conftest import ROOT
from tests.io.tiny_files import UNET, saved

pytest_plugins = ["tests.cli.cli_folder"]

PUBLISHED = ROOT / "pretrained" / "tiny_base.safetensors"
INPAINT = ["--prompt", "x", "--init_img", "init.png", "--mask_path", "mask.npy", "--device", "cpu"]


@pytest.fixture(scope="module")
def merge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another fine-tune under its own name: the header is the same, the values are not."""
    tensors = load_file(PUBLISHED)
    for name, tensor in tensors.items():
        if name.startswith(UNET) and tensor.ndim > 1:
            tensor += (0.3 * tensor.float().std() * torch.randn(tensor.shape)).half()
    return saved(tmp_path_factory.mktemp("merge") / "my merge v2.safetensors", tensors)


def run(folder: Path, *words: str) -> int:
    base = ["--model", "tiny", "--steps", "1", "--config_path", str(ROOT / "configs")]
    weights = ["--weight_path", str(ROOT / "pretrained")]
    return cli.main([*base, *weights, "--init_img", str(folder / "init.png"), *words])


def picture(folder: Path, *words: str) -> np.ndarray:
    out = folder / "out.png"
    run(folder, *INPAINT[:2], *INPAINT[4:], "--output_path", str(out), *words)
    return np.asarray(Image.open(out))


def test_a_fine_tune_under_its_own_name(folder: Path, merge: Path) -> None:
    own = picture(folder)
    assert np.array_equal(picture(folder, "--checkpoint", str(PUBLISHED)), own)
    assert not np.array_equal(picture(folder, "--checkpoint", str(merge)), own)


def test_a_recording_knows_its_fine_tune(folder: Path, merge: Path) -> None:
    fast = ["--run_type", "sige", "--preset", "fast"]
    run(folder, "--prompt", "", "--record", "recording", "--checkpoint", str(merge), *fast)
    with pytest.raises(UserError, match=r"is for weights .*; record again"):
        picture(folder, "--recording", "recording", *fast)
    with pytest.raises(UserError, match=r"is for prediction epsilon.*, and this run has v"):
        words = ("--checkpoint", str(merge), "--prediction", "v")
        picture(folder, "--recording", "recording", *words, *fast)
    edited = picture(folder, "--recording", "recording", "--checkpoint", str(merge), *fast)
    assert edited.std() > 10


def test_a_recording_knows_its_configuration(folder: Path, tmp_path: Path) -> None:
    fast = ["--run_type", "sige", "--preset", "fast"]
    run(folder, "--prompt", "", "--record", "recording", *fast)
    configs = tmp_path / "changed"
    configs.mkdir()
    for path in (ROOT / "configs").glob("tiny*.yaml"):
        text = path.read_text().replace("scale_factor: 0.13025", "scale_factor: 0.2")
        (configs / path.name).write_text(text)
    with pytest.raises(UserError, match="is for configuration"):
        picture(folder, "--recording", "recording", *fast, "--config_path", str(configs))


def test_which_files_a_run_loads(folder: Path) -> None:
    for name in ("a", "b", "vae", "l1", "l2"):
        (folder / f"{name}.safetensors").write_bytes(b"x")
    words = "--checkpoint a.safetensors --refiner_checkpoint b.safetensors --vae vae.safetensors"
    words += " --lora l1.safetensors:0.5 --lora l2.safetensors --prediction v --refined"
    options = cli.parse([*INPAINT, *words.split()])
    a, b, vae, one, two = (Path(f"{n}.safetensors") for n in ("a", "b", "vae", "l1", "l2"))
    loras = (Lora(one, 0.5), Lora(two))
    assert options.weights() == Weights(a, vae, loras, Prediction.V)
    assert options.weights(refiner=True) == Weights(b, vae)
    assert options.weights().files == [a, vae, one, two]
    own = cli.parse(INPAINT)
    assert own.weights() == Weights(Path("pretrained/sd_xl_base_1.0.safetensors"))


def test_the_turbo_of_the_tiny_family_is_its_base_and_a_lora(folder: Path) -> None:
    base, few = (Path("pretrained") / f"tiny_{n}.safetensors" for n in ("base", "turbo_lora"))
    words = [*INPAINT, "--model", "tiny"]
    assert cli.parse(words).weights() == Weights(base)
    (folder / "more.safetensors").write_bytes(b"x")
    words += ["--run_type", "sige-turbo"]
    loras = ["--lora", "more.safetensors:0.5"]
    with pytest.raises(UserError, match=rf"{few} does not exist; check --weight_path"):
        cli.parse([*words, *loras])
    few.touch()
    more = Lora(Path("more.safetensors"), 0.5)
    assert cli.parse([*words, *loras]).weights() == Weights(base, loras=(Lora(few), more))
    # A person's own checkpoint takes the place of both.
    few.unlink()
    own = cli.parse([*words, *loras, "--checkpoint", "more.safetensors"])
    assert own.weights() == Weights(more.path, loras=(more,))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--checkpoint", "nowhere.safetensors"], "does not exist"),
        (["--vae", "nowhere.safetensors"], "does not exist"),
        (["--lora", "nowhere.safetensors:0.5"], "nowhere.safetensors does not exist"),
        (["--checkpoint", "model.ckpt"], "pickles are never opened"),
        (["--refiner_checkpoint", "init.png"], "add --refined"),
        (["--prediction", "velocity"], "choose one of epsilon, v"),
        (["--lora", "a:inf"], "give FILE or FILE:WEIGHT"),
    ],
)
def test_what_cannot_be_loaded(folder: Path, words: list[str], sentence: str) -> None:
    (folder / "model.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=sentence):
        cli.parse([*INPAINT, *words])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.safetensors", ("a.safetensors", 1.0)),
        ("a.safetensors:0.5", ("a.safetensors", 0.5)),
        ("a.safetensors:-1", ("a.safetensors", -1.0)),
        ("a:b.safetensors", ("a:b.safetensors", 1.0)),
        ("7", ("7", 1.0)),
    ],
)
def test_a_file_and_its_weight(text: str, value: tuple[str, float]) -> None:
    assert weighted(text) == value


def test_a_folder_needs_no_published_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "check_own_weights", None)  # not asked for
    (folder / "model").mkdir()
    assert cli.parse([*INPAINT, "--checkpoint", "model"]).checkpoint == Path("model")


def test_what_a_file_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(PUBLISHED)
    tensors |= {"v_pred": torch.zeros(0), "extra": torch.ones(1)}
    del tensors[f"{UNET}out.2.bias"]
    metadata = {"author": "a\x1b[31mb\nc" + "x" * 300}
    path = saved(tmp_path / "a.safetensors", tensors, metadata)
    assert convert_weights.main(["--check", str(path)]) == 0
    text = capsys.readouterr().out
    assert "family: tiny base or turbo\n" in text
    assert "made for: prediction of v, inpainting (9 input channels)\n" in text
    assert f"missing: 1 ({UNET}out.2.bias)" in text and "not used: 1 (extra)" in text
    assert "\x1b" not in text and "a [31mb cxxx" in text
    assert all(len(line) < 200 for line in text.splitlines())
    lora = {"lora_unet_out_2.lora_down.weight": torch.ones(1, 1)}
    convert_weights.main(["--check", str(saved(tmp_path / "l.safetensors", lora))])
    assert "a LoRA; give it to --lora" in capsys.readouterr().out
