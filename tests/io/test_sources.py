"""Checkpoints as real files differ: every one loads to the same weights, or says what it lacks."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sgm.io.sources import Kind, kind_of, read_contents, weights_key
from sgm.io.weights_file import WHOLE, CheckpointError, content_key
from sgm.specs import Lora, Weights
from sgm.words import Prediction
from tests.io.tiny_files import (
    CONFIG,
    TOWER,
    UNET,
    VAE,
    folder_tensors,
    loaded,
    random_tensors,
    saved,
)

Tensors = dict[str, Tensor]
IDS = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
PROJECTION = f"{TOWER}text_projection"
SCALE = f"{TOWER}logit_scale"


@pytest.fixture(scope="module")
def good() -> Tensors:
    return random_tensors()


@pytest.fixture(scope="module")
def expected(good: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Tensors:
    path = saved(tmp_path_factory.mktemp("good") / "a.safetensors", good)
    weights = loaded(Weights(path))
    # The reference of the references: what was written is what is loaded.
    assert all(torch.equal(weights[n].flatten(), t.float().flatten()) for n, t in good.items())
    return weights


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    wrong = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not wrong, wrong


def without(tensors: Tensors, *beginnings: str) -> Tensors:
    return {name: t for name, t in tensors.items() if not name.startswith(beginnings)}


def ema(tensors: Tensors) -> Tensors:
    mean = {f"model_ema.{n.replace('.', '')}": t + 1 for n, t in tensors.items() if UNET in n}
    return tensors | mean | {"model_ema.num_updates": torch.tensor(3, dtype=torch.int32)}


def compiled(tensors: Tensors) -> Tensors:
    inner = {n.replace(UNET, f"{UNET}_orig_mod."): t for n, t in tensors.items()}
    return {f"_orig_mod.{n}" if VAE in n else n: t for n, t in inner.items()}


def exported(tensors: Tensors) -> Tensors:
    rest = without(tensors, SCALE, PROJECTION)
    return rest | {f"{PROJECTION}.weight": tensors[PROJECTION].t()}


def vae_linear(tensors: Tensors) -> Tensors:
    def linear(name: str, tensor: Tensor) -> Tensor:
        return tensor[:, :, 0, 0] if ".attn_1." in name and tensor.ndim == 4 else tensor

    return {name: linear(name, tensor) for name, tensor in tensors.items()}


VARIANTS: dict[str, Callable[[Tensors], Tensors]] = {
    "fp32": lambda t: {n: x.float() for n, x in t.items()},
    "mixed": lambda t: {n: x.float() if VAE in n else x for n, x in t.items()},
    "schedule": lambda t: t | {"betas": torch.ones(9), "sqrt_alphas_cumprod": torch.ones(9)},
    "ids": lambda t: t | {IDS: torch.arange(77)[None]},
    "ids-nan": lambda t: t | {IDS: torch.full((1, 77), float("nan"))},
    "ids-of-the-other-tower": lambda t: t | {f"{TOWER}position_ids": torch.arange(77)[None]},
    "no-scale": lambda t: without(t, SCALE),
    "nan-scale": lambda t: t | {SCALE: torch.tensor(float("nan"))},
    "scale-with-an-axis": lambda t: t | {SCALE: torch.ones(1)},
    "ema": ema,
    "trainer": lambda t: t | {"denoiser.sigmas": torch.ones(9), f"{VAE}loss.logvar": torch.ones(1)},
    "compiled": compiled,
    "exported": exported,
    "vae-linear": vae_linear,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_does_not_matter_changes_nothing(
    name: str, good: Tensors, expected: Tensors, tmp_path: Path
) -> None:
    path = saved(tmp_path / "any name.safetensors", VARIANTS[name](dict(good)))
    assert_same(loaded(Weights(path)), expected)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_is_widened(kind: torch.dtype, good: Tensors, tmp_path: Path) -> None:
    narrow = {n: t.to(kind) if UNET in n else t for n, t in good.items()}
    found = loaded(Weights(saved(tmp_path / "a.safetensors", narrow)), torch.bfloat16)
    for name, tensor in narrow.items():
        assert torch.equal(found[name].flatten(), tensor.to(torch.bfloat16).flatten()), name


def test_float8_that_is_no_number_is_named(good: Tensors, tmp_path: Path) -> None:
    name = f"{UNET}out.0.bias"
    broken = good | {name: (good[name] * float("nan")).to(torch.float8_e4m3fn)}
    with pytest.raises(CheckpointError, match="holds NaN"):
        loaded(Weights(saved(tmp_path / "a.safetensors", broken)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: without(t, VAE), "without a VAE .autoencoder.; name one with --vae"),
        (lambda t: {n: x for n, x in t.items() if UNET in n}, "holds the UNet alone"),
        (lambda t: t | {"a.scale_weight": torch.ones(1)}, "float8 numbers with scales"),
        (lambda t: without(t, f"{UNET}out.2.bias"), "1 missing"),
    ],
    ids=["no-vae", "unet-only", "scaled", "one-tensor"],
)
def test_what_is_lacking_is_said(
    change: Callable[[Tensors], Tensors], words: str, good: Tensors, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=words):
        loaded(Weights(saved(tmp_path / "a.safetensors", change(dict(good)))))


def old_names(vae: Tensors) -> Tensors:
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for ours, theirs in words.items():
        vae = {
            n.replace(f"attentions.0.{ours}", f"attentions.0.{theirs}"): t for n, t in vae.items()
        }
    return vae


@pytest.mark.parametrize("form", ["prefixed", "bare", "diffusers", "diffusers-2022", "folder"])
def test_another_autoencoder(form: str, good: Tensors, expected: Tensors, tmp_path: Path) -> None:
    other = {name: t for name, t in good.items() if name.startswith(VAE)}
    theirs = folder_tensors(other)["vae"]
    tensors = {
        "prefixed": other,
        "bare": {n.removeprefix(VAE): t for n, t in other.items()},
        "diffusers-2022": old_names(theirs),
    }.get(form, theirs)
    path = saved(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", tensors)
    wrong = {n: t * 2 if n.startswith(VAE) else t for n, t in good.items()}
    checkpoint = saved(tmp_path / "a.safetensors", wrong)
    vae = path.parent if form == "folder" else path
    assert_same(loaded(Weights(checkpoint, vae)), expected)
    bare = saved(tmp_path / "b.safetensors", without(good, VAE))
    assert_same(loaded(Weights(bare, vae)), expected)


def test_an_autoencoder_of_another_model(good: Tensors, tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "a.safetensors", good)
    vae = saved(tmp_path / "vae.safetensors", {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match="the file of --vae holds no such autoencoder"):
        loaded(Weights(checkpoint, vae))


NAMES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}


def write_folder(folder: Path, tensors: Tensors, shards: int = 1, variant: str = "") -> Path:
    for component, parts in folder_tensors(tensors).items():
        stem = NAMES.get(component, "model")
        for number in range(shards):
            part = dict(list(parts.items())[number::shards])
            many = f"-{number + 1:05}-of-{shards:05}" if shards > 1 else ""
            saved(folder / component / f"{stem}{variant}{many}.safetensors", part)
    return folder


@pytest.mark.parametrize(("shards", "variant"), [(1, ""), (3, ""), (1, ".fp16"), (2, ".fp16")])
def test_a_diffusers_folder(
    shards: int, variant: str, good: Tensors, expected: Tensors, tmp_path: Path
) -> None:
    found = loaded(Weights(write_folder(tmp_path, good, shards, variant)))
    found[SCALE] = expected[SCALE]
    assert_same(found, expected)


def test_the_folder_of_a_refiner(tmp_path: Path) -> None:
    config = CONFIG.with_name("tiny-refiner.yaml")
    tensors = random_tensors(config)
    path = saved(tmp_path / "a.safetensors", tensors)
    folder = write_folder(tmp_path / "folder", tensors)
    assert not (folder / "text_encoder").exists()
    expected = loaded(Weights(path), config=config)
    found = loaded(Weights(folder), config=config)
    scale = "conditioner.embedders.0.model.logit_scale"
    assert_same(found | {scale: expected[scale]}, expected)
    with pytest.raises(CheckpointError, match=r"missing \(conditioner\.embedders\.0\.transformer"):
        loaded(Weights(folder))


def test_full_precision_comes_first(good: Tensors, expected: Tensors, tmp_path: Path) -> None:
    write_folder(tmp_path, {n: t + 1 for n, t in good.items()}, variant=".fp16")
    found = loaded(Weights(write_folder(tmp_path, good)))
    assert torch.equal(found[f"{UNET}out.2.bias"], expected[f"{UNET}out.2.bias"])


def test_a_folder_of_transformers_5(good: Tensors, expected: Tensors, tmp_path: Path) -> None:
    """It saves CLIP's tower without the first word of its names."""
    write_folder(tmp_path, good)
    tower = {
        n.removeprefix("text_model."): t for n, t in folder_tensors(good)["text_encoder"].items()
    }
    saved(tmp_path / "text_encoder" / "model.safetensors", tower)
    found = loaded(Weights(tmp_path))
    assert_same(found | {SCALE: expected[SCALE]}, expected)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "unet").rename(f / "other"), "holds no folder unet"),
        (lambda f: next((f / "vae").iterdir()).rename(f / "vae/a.bin"), "pickles are never opened"),
        (lambda f: next((f / "unet").iterdir()).unlink(), "holds 1 of 2 files"),
        (lambda f: [p.unlink() for p in (f / "text_encoder").iterdir()], "no .safetensors file"),
        (lambda f: (f / "text_encoder").rename(f / "x"), "missing .conditioner.embedders.0."),
    ],
    ids=["no-unet", "pickle", "shard", "empty", "component"],
)
def test_a_folder_that_is_not_whole(
    spoil: Callable[[Path], object], words: str, good: Tensors, tmp_path: Path
) -> None:
    write_folder(tmp_path, good, shards=2)
    for path in (tmp_path / "vae").iterdir():
        path.unlink()
    saved(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", folder_tensors(good)["vae"])
    spoil(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        loaded(Weights(tmp_path))


def test_a_folder_without_its_autoencoder(good: Tensors, expected: Tensors, tmp_path: Path) -> None:
    vae = saved(tmp_path / "other.safetensors", folder_tensors(good)["vae"])
    folder = write_folder(tmp_path / "folder", without(good, VAE))
    found = loaded(Weights(folder, vae))
    assert_same(found | {SCALE: expected[SCALE]}, expected)


V = Prediction.V
MARKS = {name: torch.zeros(0) for name in ("v_pred", "ztsnr")}


@pytest.mark.parametrize(
    ("marks", "metadata", "given", "kind"),
    [
        ((), None, None, Kind()),
        (("v_pred",), None, None, Kind(V, False)),
        (("v_pred", "ztsnr"), None, None, Kind(V, True)),
        (("ztsnr",), None, None, Kind()),  # means nothing of noise
        (("v_pred", "ztsnr"), None, Prediction.EPSILON, Kind()),
        (("ztsnr",), None, V, Kind(V, True)),
        ((), {"modelspec.prediction_type": "v"}, None, Kind(V, False)),
        ((), {"modelspec.prediction_type": "epsilon"}, None, Kind()),
        ((), {"ss_zero_terminal_snr": "True"}, V, Kind(V, True)),
    ],
)
def test_what_a_file_says_of_its_prediction(
    marks: tuple[str, ...],
    metadata: dict[str, str] | None,
    given: Prediction | None,
    kind: Kind,
    good: Tensors,
    tmp_path: Path,
) -> None:
    tensors = good | {name: MARKS[name] for name in marks}
    path = saved(tmp_path / "a.safetensors", tensors, metadata)
    assert kind_of(read_contents(Weights(path)), given) == kind


def test_what_a_folder_says_of_its_prediction(good: Tensors, tmp_path: Path) -> None:
    write_folder(tmp_path, good)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}))
    assert kind_of(read_contents(Weights(tmp_path))) == Kind(V, True)
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_contents(Weights(tmp_path))


def test_the_marks_of_a_prediction_are_not_named_as_unused(
    good: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="sgm.io.checkpoint"):
        loaded(Weights(saved(tmp_path / "a.safetensors", good | MARKS)))
    assert not caplog.records


# ---- the key of recordings ----


def test_the_key_is_the_content(good: Tensors, tmp_path: Path) -> None:
    first = saved(tmp_path / "a.safetensors", good)
    again = saved(tmp_path / "b.safetensors", good)
    other = dict(good)
    other[f"{UNET}out.2.bias"] = good[f"{UNET}out.2.bias"] + 1
    changed = saved(tmp_path / "c.safetensors", other)
    assert first.stat().st_size == changed.stat().st_size
    assert weights_key(Weights(first)) == weights_key(Weights(again))
    assert weights_key(Weights(first)) != weights_key(Weights(changed))
    lora = saved(tmp_path / "lora.safetensors", {"a": torch.ones(1)})
    loras = (Lora(lora), Lora(lora, 0.5))
    keys = [
        weights_key(Weights(first)),
        weights_key(Weights(first, changed)),
        weights_key(Weights(first, loras=loras[:1])),
        weights_key(Weights(first, loras=loras[1:])),
        weights_key(Weights(first, loras=loras)),
        weights_key(Weights(first, prediction=V)),
    ]
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)
    reverse = weights_key(Weights(first, loras=loras[::-1]))
    assert reverse == weights_key(Weights(first, loras=loras))


def test_the_key_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made of pieces: of every tensor the beginning, the middle and the end."""
    assert WHOLE < 6e9  # of the published files not all is read
    monkeypatch.setattr("sgm.io.weights_file.WHOLE", 1000)
    tensors = {name: torch.zeros(50_000, dtype=torch.uint8) for name in "abc"}
    path = saved(tmp_path / "a.safetensors", tensors)
    key, keys = content_key(path), set()
    for name in tensors:
        for place in (0, 25_000, 49_999):
            tensor = tensors[name].clone()
            tensor[place] = 1
            keys.add(content_key(saved(path, tensors | {name: tensor})))
    assert len(keys - {key}) == 9
    assert content_key(saved(path, {"abd"[n]: t for n, t in enumerate(tensors.values())})) != key
