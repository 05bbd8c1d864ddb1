"""Weights files: what loads into which network, and what is refused with which words."""

import gzip
import json
import logging
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sgm.io.checkpoint import build_model, load_weights
from sgm.io.weights_file import CheckpointError
from sgm.specs import Weights
from tests.conftest import ROOT, golden_file, tiny_weights

CPU = torch.device("cpu")
CONFIGS = ROOT / "configs"
POSITION_IDS = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"


class Small(nn.Module):
    """A stand-in network: one of each kind of tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.proj_in = nn.Conv2d(5, 4, 1)
        self.norm = nn.BatchNorm2d(4)  # has a buffer of integers


def small() -> Small:
    with torch.device("meta"):
        return Small()


def stored() -> dict[str, Tensor]:
    """The tensors of a published file for `Small`: half precision, the projection two-axed."""
    shapes = {name: list(tensor.shape) for name, tensor in Small().state_dict().items()}
    tensors = {name: tensor.half() for name, tensor in tiny_weights(shapes).items()}
    tensors["proj_in.weight"] = tensors["proj_in.weight"][:, :, 0, 0].contiguous()
    tensors["norm.num_batches_tracked"] = torch.tensor(7)
    return tensors


def saved(folder: Path, tensors: dict[str, Tensor]) -> Path:
    path = folder / "weights.safetensors"
    save_file(tensors, path)
    return path


def load(model: nn.Module, path: Path, dtype: torch.dtype = torch.float32) -> None:
    load_weights(model, Weights(path), CPU, dtype, progress=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_file_loads_into_any_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    model, tensors = small(), stored()
    load(model, saved(tmp_path, tensors), dtype)
    for name, tensor in model.state_dict().items():
        original = tensors[name]
        wanted = dtype if original.is_floating_point() else torch.int64
        assert tensor.dtype == wanted and tensor.device == CPU, name
        assert torch.equal(tensor.flatten(), original.to(wanted).flatten()), name


def test_linear_projections_load_into_1x1_convolutions(tmp_path: Path) -> None:
    tensors, model = stored(), small()
    load(model, saved(tmp_path, tensors))
    assert model.proj_in.weight.shape == (4, 5, 1, 1)
    x = torch.randn(2, 5, 3, 3)
    weight, bias = tensors["proj_in.weight"].float(), tensors["proj_in.bias"].float()
    expected = torch.einsum("oi,bihw->bohw", weight, x) + bias[:, None, None]
    assert torch.allclose(model.proj_in(x), expected, atol=1e-6)


def test_a_converted_file_loads_as_well(tmp_path: Path) -> None:
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in stored().items()}
    tensors["proj_in.weight"] = tensors["proj_in.weight"][:, :, None, None]
    load(small(), saved(tmp_path, tensors))


def test_position_ids_are_passed_over(tmp_path: Path) -> None:
    ids = torch.arange(77)[None]
    load(small(), saved(tmp_path, stored() | {POSITION_IDS: ids}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("linear.weight"), ["1 missing (linear.weight)"]),
        (
            lambda t: (
                t.pop("linear.bias") is None
                or t.update({f"lora.{n}": torch.ones(1) for n in range(5)})
            ),
            ["1 missing", "5 unexpected (lora.0, lora.1, lora.2, ...)"],
        ),
        (
            lambda t: (t.pop("linear.bias"), t.update(other=torch.ones(1))),
            ["1 missing (linear.bias)", "1 unexpected (other)"],
        ),
        (
            lambda t: t.update({"linear.weight": torch.ones(5, 4)}),
            ["1 tensors differ in shape", "linear.weight, [5, 4] instead of [5, 3]"],
        ),
        # Two axes serve a 1x1 convolution only with the sizes that it has.
        (
            lambda t: t.update({"proj_in.weight": torch.ones(5, 4)}),
            ["proj_in.weight, [5, 4] instead of [4, 5, 1, 1]"],
        ),
        (lambda t: t.clear() or t.update(a=torch.ones(1)), ["missing", "1 unexpected (a)"]),
    ],
    ids=["missing", "many", "both", "shape", "projection", "another-network"],
)
def test_files_of_another_network_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], words: list[str]
) -> None:
    tensors = stored()
    change(tensors)
    path, model = saved(tmp_path, tensors), small()
    with pytest.raises(CheckpointError) as caught:
        load(model, path)
    message = str(caught.value)
    assert str(path) in message and message.endswith(".")
    assert all(word in message for word in words), message
    assert all(tensor.is_meta for tensor in model.state_dict().values())  # nothing half-loaded


def test_what_nobody_reads_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {f"model_ema.{n}": torch.full((2,), float("nan")) for n in range(5)}
    with caplog.at_level(logging.INFO, logger="sgm.io.checkpoint"):
        load(small(), saved(tmp_path, stored() | extra | {POSITION_IDS: torch.arange(77)[None]}))
    (record,) = caplog.records
    assert "5 tensors (model_ema.0, model_ema.1, model_ema.2, ...)" in record.getMessage()
    caplog.clear()
    load(small(), saved(tmp_path, stored()))
    assert not caplog.records


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, stored())
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) // 2, 9, 4):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
            load(small(), path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Access denied</body></html>", "web page"),
        (b"\n<HTML><body>Sign in</body></HTML>", "web page"),
        (b"PK\x03\x04archive/data.pkl", "never opened"),
        (pickle.dumps(list(range(99))), "never opened"),
        (gzip.compress(b"weights" * 9), "unpack"),
        (b"", "empty"),
        (b"abc", "ends after 3 bytes"),
        (b"plain text, long enough to be taken for a header's length", "another kind"),
        ((50).to_bytes(8, "little") + b"{}", "ends inside its header"),
        ((10).to_bytes(8, "little") + b"not json.." + bytes(8), "header is damaged"),
        ((2).to_bytes(8, "little") + b"[]" + bytes(8), "header is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kinds_of_file_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors") as caught:
        load(small(), path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("cond_stage_model.transformer.text_model.embeddings.weight", "Stable Diffusion 1 or 2"),
        ("conditioner.embedders.0.model.ln_final.bias", "the SDXL refiner"),
        ("conditioner.embedders.1.model.ln_final.bias", "SDXL base or turbo"),
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers"),
        ("lora_unet_down_blocks_0.lora_up.weight", "LoRA"),
    ],
)
def test_another_model_is_named_for_what_it_is(tmp_path: Path, name: str, meaning: str) -> None:
    with pytest.raises(CheckpointError, match=f"looks like .*{meaning}"):
        load(small(), saved(tmp_path, {name: torch.ones(1)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    tensors = stored()
    tensors["linear.weight"][1, 1] = value
    with pytest.raises(CheckpointError, match=r"linear\.weight holds NaN"):
        load(small(), saved(tmp_path, tensors))


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent"):
        load(small(), tmp_path / "absent.safetensors")


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensor attributes, by name."""
    found = {}
    for path, module in model.named_modules():
        for group in (module._parameters, module._buffers, vars(module)):
            for name, value in group.items():
                if isinstance(value, Tensor):
                    found[f"{path}.{name}"] = value
    return found


@pytest.mark.parametrize("run_type", ["original", "sige"])
def test_loading_leaves_nothing_on_the_meta_device(tmp_path: Path, run_type: str) -> None:
    model = build_model(CONFIGS / f"tiny-{run_type}.yaml")
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    weights = {name: tensor.half() for name, tensor in tiny_weights(shapes).items()}
    load(model, saved(tmp_path, weights), torch.bfloat16)
    found = tensors_of(model)
    assert "denoiser.sigmas" in found  # a table, not a weight: never in the file, never meta
    assert [name for name, tensor in found.items() if tensor.is_meta] == []
    assert {found[name].dtype for name in weights} == {torch.bfloat16}


def shapes_of(config: str) -> dict[str, list[int]]:
    """Names and shapes of a configuration, built without memory."""
    model = build_model(CONFIGS / config)
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


FAMILIES = {
    "base": ("original.yaml", "sige.yaml"),
    "refiner": ("refiner.yaml", "sige-refiner.yaml"),
}


@pytest.fixture(scope="module")
def base_shapes() -> dict[str, list[int]]:
    return shapes_of("original.yaml")


def test_dense_and_sparse_networks_share_one_key_set(base_shapes: dict[str, list[int]]) -> None:
    assert shapes_of("sige.yaml") == base_shapes
    assert shapes_of("tiny-sige.yaml") == shapes_of("tiny-original.yaml")


def test_the_tiny_family_has_the_published_layout(base_shapes: dict[str, list[int]]) -> None:
    """Blocks are fewer, so numbers differ; but for those, no name is ours alone."""

    def kinds(names: Iterable[str]) -> set[str]:
        return {re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in names}

    assert kinds(shapes_of("tiny-original.yaml")) <= kinds(base_shapes)


@pytest.mark.parametrize(("family", "count"), [("base", 2515), ("refiner", 1858)])
def test_the_networks_are_those_of_the_published_files(family: str, count: int) -> None:
    path = golden_file(f"checkpoint_sd_xl_{family}_1.0.json.gz")
    published = json.loads(gzip.decompress(path.read_bytes()))
    assert len(published) == count
    published.pop(POSITION_IDS, None)  # only CLIP's tower has them
    converted = {
        name: entry.get("reshaped_to", entry["shape"]) for name, entry in published.items()
    }
    dense, sparse = (shapes_of(config) for config in FAMILIES[family])
    assert dense == converted
    assert sparse == dense
