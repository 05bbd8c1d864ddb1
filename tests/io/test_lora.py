"""LoRAs merged at load: every form of names, beside a dense formula and diffusers itself."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sgm.config import load_config
from sgm.io.checkpoint import build_model
from sgm.io.lora import is_lora, targets_of
from sgm.io.names import diffusers_places
from sgm.io.weights_file import CheckpointError
from sgm.specs import Lora, Weights
from tests.conftest import max_error
from tests.diffusers_here import diffusers_or_skip
from tests.io.tiny_files import CONFIG, UNET, folder_tensors, loaded, random_tensors, saved

Tensors = dict[str, Tensor]
RANK, ALPHA = 3, 2.0
# Float32 of another order of sums, relative to the largest weight: 8 roundings of products of 3.
ROUNDING = 8 * 2.0**-24
# Our names and what each is a case of.
LINEAR = f"{UNET}input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"
PROJECTION = f"{UNET}middle_block.1.proj_in.weight"
CONV = f"{UNET}output_blocks.1.0.in_layers.2.weight"
DOWN = f"{UNET}input_blocks.2.0.op.weight"
TOWER1 = "conditioner.embedders.0.transformer.text_model.encoder.layers.1.self_attn.v_proj.weight"
FUSED = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
MLP = "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_fc.weight"
# diffusers tells kohya's names by these.
OUT1, OUT2 = (
    TOWER1.replace("v_proj", "out_proj"),
    FUSED.replace("in_proj_weight", "out_proj.weight"),
)
CHANGED = (LINEAR, PROJECTION, CONV, DOWN, TOWER1, OUT1, FUSED, OUT2, MLP)
STARTS = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


@pytest.fixture(scope="module")
def good() -> Tensors:
    return random_tensors()


@pytest.fixture(scope="module")
def checkpoint(good: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("base") / "base.safetensors", good)


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> Tensors:
    return loaded(Weights(checkpoint))


Pair = tuple[Tensor, Tensor]  # up [out, rank(, 1, 1)], down [rank, in(, h, w)]


def pairs(good: Tensors, seed: int = 0) -> dict[tuple[str, str], Pair]:
    """A random LoRA by component and module of diffusers."""
    generator, found = torch.Generator().manual_seed(seed), {}
    places = diffusers_places(good)
    for name in CHANGED:
        place, shape = places[name], list(good[name].shape)
        rows = shape[0] // len(place.names)
        shape = shape[:2] if shape[2:] == [1, 1] else shape
        for theirs in place.names:
            up = torch.randn(rows, RANK, *[1] * (len(shape) - 2), generator=generator)
            down = torch.randn(RANK, *shape[1:], generator=generator) / 10
            found[place.component, theirs.removesuffix(".weight")] = (up, down)
    return found


def expected(plain: Tensors, lora: Mapping[tuple[str, str], Pair], scale: float) -> Tensors:
    """The dense formula, in float64."""
    changed, places = dict(plain), diffusers_places(plain)
    for name in CHANGED:
        place = places[name]
        rows = []
        for theirs in place.names:
            up, down = (t.double() for t in lora[place.component, theirs.removesuffix(".weight")])
            rows.append(torch.einsum("or,r...->o...", up.flatten(1), down))
        change = torch.cat(rows).reshape(plain[name].shape)
        changed[name] = plain[name].double() + scale * change
    return changed


def assert_close(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        bound = ROUNDING * tensor.abs().max().item()
        assert max_error(found[name], tensor) <= bound, name


def as_kohya(lora: Mapping[tuple[str, str], Pair], good: Tensors, sgm: bool) -> Tensors:
    """kohya's names; with `sgm` the UNet's blocks as in the published file."""
    ours = {
        (place.component, theirs.removesuffix(".weight")): name
        for name, place in diffusers_places(good).items()
        for theirs in place.names
    }
    tensors = {}
    for (component, module), (up, down) in lora.items():
        if component == "unet" and sgm:
            module = ours[component, module].removeprefix(UNET).removesuffix(".weight")
        start = f"{STARTS[component]}_{module.replace('.', '_')}"
        tensors[f"{start}.lora_up.weight"] = up
        tensors[f"{start}.lora_down.weight"] = down
        tensors[f"{start}.alpha"] = torch.tensor(ALPHA)
    return tensors


def as_diffusers(lora: Mapping[tuple[str, str], Pair], words: tuple[str, str]) -> Tensors:
    """diffusers' names, of peft (`lora_B`, `lora_A`) or as before 2024."""
    tensors = {}
    for (component, module), pair in lora.items():
        for word, tensor in zip(words, pair, strict=True):
            tensors[f"{component}.{module}.{word}.weight"] = tensor
    return tensors


FORMS = {
    "kohya-sgm": (lambda lora, good: as_kohya(lora, good, sgm=True), ALPHA / RANK),
    "kohya-diffusers": (lambda lora, good: as_kohya(lora, good, sgm=False), ALPHA / RANK),
    "peft": (lambda lora, good: as_diffusers(lora, ("lora_B", "lora_A")), 1.0),
    "adapter": (lambda lora, good: as_diffusers(lora, ("lora_B.default", "lora_A.default")), 1.0),
    "2023": (lambda lora, good: as_diffusers(lora, ("lora.up", "lora.down")), 1.0),
    "2023-linear": (
        lambda lora, good: as_diffusers(lora, ("lora_linear_layer.up", "lora_linear_layer.down")),
        1.0,
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weight", [1.0, -0.4])
def test_every_form_of_names(
    form: str, weight: float, good: Tensors, plain: Tensors, checkpoint: Path, tmp_path: Path
) -> None:
    write, scale = FORMS[form]
    lora = pairs(good)
    path = saved(tmp_path / "lora.safetensors", write(lora, good))
    found = loaded(Weights(checkpoint, loras=(Lora(path, weight),)))
    assert_close(found, expected(plain, lora, weight * scale))
    assert all(found[name].dtype is torch.float32 for name in CHANGED)


def test_order_does_not_matter(good: Tensors, checkpoint: Path, tmp_path: Path) -> None:
    loras = []
    for n in range(3):
        tensors = as_kohya(pairs(good, n), good, sgm=n % 2 == 0)
        loras.append(Lora(saved(tmp_path / f"{n}.safetensors", tensors), 0.3 + n))
    first = loaded(Weights(checkpoint, loras=tuple(loras)))
    again = loaded(Weights(checkpoint, loras=(loras[2], loras[0], loras[1])))
    assert all(torch.equal(first[name], again[name]) for name in first)
    single = loaded(Weights(checkpoint, loras=(loras[0],)))
    assert not torch.equal(first[LINEAR], single[LINEAR])


def test_a_half_precision_network_is_rounded_once(
    good: Tensors, plain: Tensors, checkpoint: Path, tmp_path: Path
) -> None:
    lora = pairs(good)
    path = saved(tmp_path / "lora.safetensors", as_kohya(lora, good, sgm=True))
    found = loaded(Weights(checkpoint, loras=(Lora(path),)), torch.float16)
    exact = loaded(Weights(checkpoint, loras=(Lora(path),)))
    assert all(torch.equal(found[name], exact[name].half()) for name in CHANGED)


def test_the_middle_of_a_convolution(
    good: Tensors, plain: Tensors, checkpoint: Path, tmp_path: Path
) -> None:
    rows, columns = good[CONV].shape[:2]
    up, down = torch.randn(rows, RANK, 1, 1), torch.randn(RANK, columns, 1, 1)
    middle = torch.randn(RANK, RANK, 3, 3)
    start = f"lora_unet_{CONV.removeprefix(UNET).removesuffix('.weight').replace('.', '_')}"
    tensors = {f"{start}.lora_up.weight": up, f"{start}.lora_down.weight": down}
    path = saved(tmp_path / "l.safetensors", tensors | {f"{start}.lora_mid.weight": middle})
    found = loaded(Weights(checkpoint, loras=(Lora(path),)))[CONV]
    # A chain of convolutions is the same.
    x = torch.randn(1, columns, 5, 5)
    conv = torch.nn.functional.conv2d
    chain = conv(conv(conv(x, down), middle, padding=1), up)
    whole = conv(x, found, padding=1) - conv(x, plain[CONV], padding=1)
    assert max_error(whole, chain) < 1e-5 * chain.abs().max().item() * columns


@pytest.mark.parametrize(
    ("change", "scale"),
    [
        ({"unet.lora_alpha": 6, "unet.r": RANK}, 2.0),
        ({"unet.lora_alpha": 6, "unet.r": RANK, "unet.use_rslora": True}, 6 / RANK**0.5),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_q": 1.5}}, 0.5),
        ({"text_encoder.lora_alpha": 6}, 1.0),
    ],
    ids=["alpha", "rslora", "pattern", "other"],
)
def test_pefts_configuration(
    change: dict[str, object],
    scale: float,
    good: Tensors,
    plain: Tensors,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    lora = {k: v for k, v in pairs(good).items() if "to_q" in k[1]}
    tensors = as_diffusers(lora, ("lora_B", "lora_A"))
    metadata = {"lora_adapter_metadata": json.dumps(change)}
    path = saved(tmp_path / "lora.safetensors", tensors, metadata)
    found = loaded(Weights(checkpoint, loras=(Lora(path),)))[LINEAR]
    ((up, down),) = lora.values()
    assert max_error(found, plain[LINEAR].double() + scale * (up.double() @ down.double())) < 1e-6
    if scale == 2.0:  # peft alone: names without a component, the configuration beside
        bare = {n.replace("unet.", "base_model.model."): t for n, t in tensors.items()}
        path = saved(tmp_path / "adapter_model.safetensors", bare)
        path.with_name("adapter_config.json").write_text(json.dumps({"lora_alpha": 6, "r": RANK}))
        assert torch.equal(loaded(Weights(checkpoint, loras=(Lora(path),)))[LINEAR], found)


def one(**tensors: Tensor) -> Tensors:
    start = f"lora_unet_{LINEAR.removeprefix(UNET).removesuffix('.weight').replace('.', '_')}"
    width = 64
    up, down = torch.ones(width, RANK), torch.ones(RANK, width)
    found = {f"{start}.lora_up.weight": up, f"{start}.lora_down.weight": down}
    return found | {f"{start}.{name}": tensor for name, tensor in tensors.items()}


WRONG = {
    "dora": (one(dora_scale=torch.ones(1)), "is a DoRA"),
    "peft-dora": ({"unet.a.lora_magnitude_vector.weight": torch.ones(1)}, "is a DoRA"),
    "loha": ({"lora_unet_a.hada_w1_a": torch.ones(1)}, "is a LoHa"),
    "lokr": ({"lora_unet_a.lokr_w1": torch.ones(1)}, "is a LoKr"),
    "other-model": ({"lora_unet_x.lora_up.weight": torch.ones(1)}, "changes nothing of this model"),
    "checkpoint": ({LINEAR: torch.ones(1)}, "is a checkpoint and no LoRA"),
    "shape": ({n: torch.ones(RANK, RANK) for n in one()}, "is not for this model: it changes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_merged_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    tensors, words = WRONG[name]
    path = saved(tmp_path / "lora.safetensors", tensors)
    with pytest.raises(CheckpointError, match=words):
        loaded(Weights(checkpoint, loras=(Lora(path),)))
    assert is_lora(list(tensors)) is (name != "checkpoint")


def test_unknown_names_are_named(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = {"lora_unet_out_2.lora_up.weight": torch.ones(4, 1)}
    tensors = one() | {"lora_unet_nowhere.lora_up.weight": torch.ones(1)} | half
    loaded(Weights(checkpoint, loras=(Lora(saved(tmp_path / "lora.safetensors", tensors)),)))
    assert "2 tensors (lora_unet_nowhere.lora_up.weight, lora_unet_out_2 (up))" in caplog.text


def test_every_matrix_of_unet_and_towers_can_be_changed() -> None:
    wanted = build_model(CONFIG).state_dict()
    reached = {target.name for target in targets_of(wanted).values()}
    matrices = {n for n, t in wanted.items() if t.ndim > 1 and not n.startswith("first_stage")}
    positions = {n for n in matrices if n.endswith("positional_embedding")}
    assert reached == matrices - positions


# ---- diffusers ----


@pytest.mark.parametrize("form", ["kohya-sgm", "kohya-diffusers", "peft"])
def test_equal_to_diffusers(
    form: str, good: Tensors, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    diffusers_or_skip("peft", "transformers")
    write, _ = FORMS[form]
    tensors = write(pairs(good), good)
    path = saved(tmp_path / "lora.safetensors", tensors)
    pipe = diffusers_pipeline(good)
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    pipe.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"], lora_scale=0.7)
    pipe.unload_lora_weights()
    with caplog.at_level(logging.WARNING):
        ours = folder_tensors(loaded(Weights(checkpoint, loras=(Lora(path, 0.7),))))
    assert not [record for record in caplog.records if record.name == "sgm.io.lora"]
    plain = folder_tensors(good)
    changed = 0
    for component in ("unet", "text_encoder", "text_encoder_2"):
        theirs = getattr(pipe, component).state_dict()
        for name, tensor in ours[component].items():
            found = theirs.get(name, theirs.get(name.removeprefix("text_model.")))
            bound = ROUNDING * max(1.0, tensor.abs().max().item())
            assert max_error(found.reshape(tensor.shape), tensor) <= bound, name
            changed += not torch.equal(tensor, plain[component][name].float())
    assert changed == len(pairs(good))


def diffusers_pipeline(good: Tensors) -> object:
    """diffusers' pipeline with the weights of the tiny network."""
    diffusers, transformers = diffusers_or_skip("transformers")
    from benchmarks.rival_networks import unet_arguments

    params = load_config(CONFIG)["model"]["params"]
    tensors = folder_tensors(good)
    sizes = ((16, 64, 2, 2), (32, 128, 2, 2))  # as in the YAML file
    towers = []
    for kind, (width, inner, layers, heads) in zip(
        ("CLIPTextModel", "CLIPTextModelWithProjection"), sizes, strict=True
    ):
        config = transformers.CLIPTextConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
        )
        towers.append(getattr(transformers, kind)(config))
    unet = diffusers.UNet2DConditionModel(**unet_arguments(params["network_config"]["params"]))
    for network, component in zip((unet, *towers), STARTS, strict=True):
        wanted = network.state_dict()
        state = {n: t.float() for n, t in tensors[component].items()}
        if not set(wanted) <= set(state):
            state = {n.removeprefix("text_model."): t for n, t in state.items()}
        network.load_state_dict({n: state[n].reshape(t.shape) for n, t in wanted.items()})
    return diffusers.StableDiffusionXLPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(32,), layers_per_block=1),
        text_encoder=towers[0],
        text_encoder_2=towers[1],
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(),
    )
