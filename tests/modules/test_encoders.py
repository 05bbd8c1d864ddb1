"""Text towers and conditioner against the golden data and the published key lists."""

import gzip
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sgm.config import ConfigError
from sgm.modules import GeneralConditioner
from sgm.modules.encoders.modules import (
    ConcatTimestepEmbedderND,
    FrozenCLIPEmbedder,
    FrozenOpenCLIPEmbedder2,
)
from tests.conftest import golden_file, max_error, rule_weights

TOLERANCE = 1e-4
ROWS = [0, 1, 5, 40, 76]
ENCODERS = "sgm.modules.encoders.modules"
CLIP_CONFIG = {"layer": "hidden", "layer_idx": 11}
OPEN_CLIP_CONFIG = {
    "arch": "ViT-bigG-14",
    "version": "laion2b_s39b_b160k",
    "freeze": True,
    "layer": "penultimate",
    "always_return_pooled": True,
    "legacy": False,
}
SIZE_KEYS = {
    "base": ["original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple"],
    "refiner": ["original_size_as_tuple", "crop_coords_top_left", "aesthetic_score"],
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def entry(name: str, key: str, params: dict[str, Any]) -> dict[str, Any]:
    """An `emb_models` entry as the published YAML spells it."""
    return {
        "is_trainable": False,
        "input_key": key,
        "target": f"{ENCODERS}.{name}",
        "params": params,
    }


def published_entries(kind: str, size_dim: int = 256) -> list[dict[str, Any]]:
    """The conditioner of sd_xl_base.yaml or sd_xl_refiner.yaml."""
    clip = [entry("FrozenCLIPEmbedder", "txt", CLIP_CONFIG)] if kind == "base" else []
    open_clip = entry("FrozenOpenCLIPEmbedder2", "txt", OPEN_CLIP_CONFIG)
    sizes = [
        entry("ConcatTimestepEmbedderND", key, {"outdim": size_dim}) for key in SIZE_KEYS[kind]
    ]
    return [*clip, open_clip, *sizes]


def golden_sizes(info: dict[str, Any], case: str) -> dict[str, dict[str, int]]:
    """Sizes of the golden towers `clip` and `open_clip`; CLIP's projection is not part of ours."""
    return {
        tower: {name: size for name, size in sizes.items() if name != "projection_dim"}
        for tower, sizes in info["towers"][case].items()
    }


def fill(module: nn.Module, shapes: dict[str, list[int]], seed: int) -> None:
    """Loads rule weights, strictly; the one scalar keeps its value, as the rule wants."""
    weights = rule_weights(shapes, seed)
    if "model.logit_scale" in shapes:
        weights["model.logit_scale"] = torch.zeros(())
    module.load_state_dict(weights, assign=True)


def tiny_entries(kind: str = "base") -> list[dict[str, Any]]:
    """The published arrangement with towers of a few thousand parameters."""
    entries = published_entries(kind, size_dim=8)
    for item in entries:
        if item["target"].endswith("FrozenCLIPEmbedder"):
            tower = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
            item["params"] = {"layer_idx": 1, "tower": {**tower, "num_attention_heads": 2}}
        elif item["target"].endswith("FrozenOpenCLIPEmbedder2"):
            item["params"] = {"tower": {"width": 8, "heads": 2, "layers": 2, "embed_dim": 6}}
    return entries


def tiny_batch(texts: list[str]) -> dict[str, Tensor | list[str]]:
    size = torch.tensor([[64.0, 128.0]] * len(texts))
    return {"txt": texts, **{key: size for key in SIZE_KEYS["base"]}}


# --- towers ---------------------------------------------------------------------------------


def test_clip_hidden_equals_golden(golden):
    case = golden("text")
    shapes = case.info["state_dict"]["clip"]
    sizes = golden_sizes(case.info, "text")["clip"]
    embedder = FrozenCLIPEmbedder(layer="hidden", layer_idx=3, tower=sizes)
    fill(embedder, shapes, case.info["weights_seeds"]["clip"])
    hidden = embedder(case.info["prompts"])
    assert max_error(hidden[:4], case["clip_hidden"]) < TOLERANCE
    assert max_error(hidden[:, ROWS], case["clip_hidden_rows"]) < TOLERANCE


def test_open_clip_equals_golden(golden):
    case = golden("text")
    shapes = case.info["state_dict"]["open_clip"]
    embedder = FrozenOpenCLIPEmbedder2(tower=golden_sizes(case.info, "text")["open_clip"])
    fill(embedder, shapes, case.info["weights_seeds"]["open_clip"])
    hidden, pooled = embedder(case.info["prompts"])
    assert max_error(hidden[:4], case["open_clip_penultimate"]) < TOLERANCE
    assert max_error(hidden[:, ROWS], case["open_clip_penultimate_rows"]) < TOLERANCE
    assert max_error(pooled, case["open_clip_pooled"]) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_towers_run_in_the_dtype_of_their_weights(dtype):
    conditioner = GeneralConditioner(tiny_entries()).to(dtype)
    result = conditioner(tiny_batch(["a horse"]))
    assert result["crossattn"].dtype == dtype
    assert result["vector"].dtype == torch.float32  # embedded numbers are not rounded


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FrozenCLIPEmbedder(layer="pooled"), "layer must be one of"),
        (lambda: FrozenCLIPEmbedder(layer_idx=13), r"0\.\.12 for this tower, got 13"),
        (lambda: FrozenCLIPEmbedder(tower={"width": 8}), r"\['width'\]; known are"),
        (lambda: FrozenCLIPEmbedder(tower={"hidden_size": 0}), "positive integer, got 0"),
        (lambda: FrozenOpenCLIPEmbedder2(arch="ViT-H"), "arch must be one of .*bigG.* got 'ViT-H'"),
        (lambda: FrozenOpenCLIPEmbedder2(layer="first"), "layer must be one of"),
        (lambda: FrozenOpenCLIPEmbedder2(always_return_pooled=False), r"\[True\], got False"),
        (lambda: FrozenOpenCLIPEmbedder2(legacy=True), "Stable Diffusion 2"),
        (lambda: FrozenOpenCLIPEmbedder2(tower={"width": 9, "heads": 2}), "2 .*heads .* 9"),
        (lambda: ConcatTimestepEmbedderND(0), "outdim must be positive"),
        (lambda: ConcatTimestepEmbedderND(8)(torch.zeros(1, 2, 3)), r"got \[1, 2, 3\]"),
    ],
)
def test_bad_settings_are_named(build, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build()


# --- conditioner ----------------------------------------------------------------------------


def golden_conditioner(info: dict[str, Any], kind: str) -> GeneralConditioner:
    """The small conditioner of the golden data, built on the meta device and then filled."""
    sizes, case = golden_sizes(info, kind), info[f"conditioner_{kind}"]
    recipes = {
        "FrozenCLIPEmbedder": ("clip", {"layer_idx": 3, "tower": sizes.get("clip")}),
        "FrozenOpenCLIPEmbedder2": ("open_clip", {"tower": sizes["open_clip"]}),
        "ConcatTimestepEmbedderND": (None, {"outdim": 8}),
    }
    with torch.device("meta"):
        conditioner = GeneralConditioner(
            [entry(name, key, recipes[name][1]) for key, name in case["embedders"]]
        )
    for number, (_, name) in enumerate(case["embedders"]):
        tower = recipes[name][0]
        if tower is not None:
            shapes = case["state_dict"][f"conditioner.embedders.{number}"]
            fill(conditioner.embedders[number], shapes, case["weights_seeds"][tower])
    return conditioner


def golden_batch(values: dict[str, Any], prompt: str, score: str) -> dict[str, Any]:
    def pair(left: str, right: str) -> Tensor:
        return torch.tensor([[values[left], values[right]]])

    return {
        "txt": [values[prompt]],
        "original_size_as_tuple": pair("orig_height", "orig_width"),
        "crop_coords_top_left": pair("crop_coords_top", "crop_coords_left"),
        "target_size_as_tuple": pair("target_height", "target_width"),
        "aesthetic_score": torch.tensor([values[score]]),
    }


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_conditioner_equals_golden(golden, kind):
    case = golden("text")
    info = case.info[f"conditioner_{kind}"]
    conditioner = golden_conditioner(case.info, kind)
    batch_c = golden_batch(info["values"], "prompt", "aesthetic_score")
    batch_uc = golden_batch(info["values"], "negative_prompt", "negative_aesthetic_score")
    zeroed = info["force_uc_zero_embeddings"]
    c, uc = conditioner(batch_c), conditioner(batch_uc, zeroed)
    results = {"c": c, "uc": uc}
    if zeroed:
        results["uc_not_zeroed"] = conditioner(batch_uc)
    for branch, result in results.items():
        assert set(result) == {"crossattn", "vector"}
        for name, tensor in result.items():
            expected = case[f"conditioner_{kind}/{branch}_{name}"]
            assert max_error(tensor, expected) < TOLERANCE, (branch, name)


def test_zeroed_text_leaves_the_sizes():
    conditioner = GeneralConditioner(tiny_entries())
    batch = tiny_batch(["a horse", "a tree"])
    c, uc = conditioner(batch), conditioner(batch, ["txt"])
    assert c["crossattn"].shape == (2, 77, 16) and c["vector"].shape == (2, 6 + 3 * 2 * 8)
    assert not uc["crossattn"].any() and not uc["vector"][:, :6].any()
    assert torch.equal(c["vector"][:, 6:], uc["vector"][:, 6:])


@pytest.mark.parametrize(
    ("key", "given"),
    [("concat_8", "sizes"), ("concat_256", "sizes"), ("concat_256_score", "score")],
)
def test_size_embedding_equals_golden(golden, key, given):
    case = golden("sampling")
    embedder = ConcatTimestepEmbedderND(int(key.split("_")[1]))
    assert max_error(embedder(case[f"embedding/{given}"]), case[f"embedding/{key}"]) < 1e-5


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_full_size_keys_are_the_published_ones(kind):
    path = golden_file(f"checkpoint_sd_xl_{kind}_1.0.json.gz")
    published = {
        name: info["shape"]
        for name, info in json.loads(gzip.decompress(path.read_bytes())).items()
        if name.startswith("conditioner.")
    }
    model = nn.Module()
    with torch.device("meta"):
        model.conditioner = GeneralConditioner(published_entries(kind))
    ours = {name: list(t.shape) for name, t in model.state_dict().items()}
    extra = {name for name in published if name.endswith("embeddings.position_ids")}
    assert len(extra) == (1 if kind == "base" else 0)
    assert ours == {name: shape for name, shape in published.items() if name not in extra}
    # A published file, position ids included, loads strictly and leaves nothing on meta.
    state = {name: torch.empty(shape, device="meta") for name, shape in published.items()}
    model.load_state_dict(state, assign=True)
    assert not list(model.buffers())


def test_unexpected_and_missing_weights_are_still_errors():
    conditioner = GeneralConditioner(tiny_entries())
    state = conditioner.state_dict()
    text_model = "embedders.0.transformer.text_model"
    conditioner.load_state_dict({**state, f"{text_model}.embeddings.position_ids": torch.ones(1)})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        conditioner.load_state_dict({**state, f"{text_model}.position_ids": torch.ones(1)})
    state.pop(f"{text_model}.final_layer_norm.bias")
    with pytest.raises(RuntimeError, match="Missing key"):
        conditioner.load_state_dict(state)


def test_trainable_decides_gradients():
    frozen = GeneralConditioner(tiny_entries())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not any(embedder.training for embedder in frozen.embedders)

    entries = [{**item, "is_trainable": True} for item in tiny_entries()]
    conditioner = GeneralConditioner(entries)
    result = conditioner(tiny_batch(["a horse on a grassland", "palm"]))
    (result["crossattn"].square().mean() + result["vector"].square().mean()).backward()
    without = {name for name, p in conditioner.named_parameters() if p.grad is None}
    # What SDXL does not use: CLIP after the layer taken, OpenCLIP's temperature.
    assert all(
        ".encoder.layers.1." in name or "final_layer_norm" in name or "logit_scale" in name
        for name in without
    )


def test_future_tokens_have_no_effect():
    embedder = FrozenOpenCLIPEmbedder2(tower={"width": 8, "heads": 2, "layers": 2})
    short, _ = embedder(["a horse"])
    long, _ = embedder(["a horse on a grassland"])
    assert torch.allclose(short[:, :3], long[:, :3], atol=1e-6)
    assert not torch.allclose(short[:, 3], long[:, 3], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ucg_rate": 0.1}, ConfigError, r"emb_models\[0\]: unknown keys \['ucg_rate'\]"),
        ({"input_key": ...}, ConfigError, r"missing keys \['input_key'\]"),
        ({"target": ...}, ConfigError, r"missing keys \['target'\]"),
        ({"params": {"layr": "hidden"}}, ConfigError, "layr"),
    ],
)
def test_bad_entries_are_named(change, error, message):
    item = {k: v for k, v in {**tiny_entries()[0], **change}.items() if v is not ...}
    with torch.device("meta"), pytest.raises(error, match=message):
        GeneralConditioner([item])


def test_bad_batches_are_named():
    conditioner = GeneralConditioner(tiny_entries())
    batch = tiny_batch(["a horse"])
    with pytest.raises(ValueError, match=r"no embedder reads \['text'\]"):
        conditioner(batch, force_zero_embeddings=["text"])
    with pytest.raises(ValueError, match="differ in batch size"):
        conditioner({**batch, "txt": ["a", "b"]})
    with pytest.raises(ValueError, match=r"lacks \['txt'\]"):
        conditioner({key: value for key, value in batch.items() if key != "txt"})
