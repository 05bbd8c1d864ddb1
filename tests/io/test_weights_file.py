"""Mapped weights files: what is read in turn, and which mappings are left."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sgm.io.checkpoint import load_weights
from sgm.io.weights_file import CheckpointError, open_weights, read_in_turn
from sgm.specs import Weights

MAPS = Path("/proc/self/maps")


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {f"{n}.weight": torch.randn(4, n + 1).half() for n in range(5)}


@pytest.fixture
def path(tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    save_file(tensors, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def mapped(path: Path) -> bool:
    """Whether this process has a mapping of a file."""
    if not MAPS.exists():
        pytest.skip("mappings are listed by Linux only")
    return str(path) in MAPS.read_text()


@pytest.mark.parametrize("block", [1, 50, 10**9])
def test_tensors_come_in_the_order_asked_for(
    block: int, path: Path, tensors: dict[str, Tensor]
) -> None:
    names = [*reversed(tensors)][1:]
    found = [(name, tensor.clone()) for name, tensor in read_in_turn(path, names, block)]
    assert [name for name, _ in found] == names
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found)
    assert not mapped(path)


def test_a_mapping_lasts_as_long_as_a_tensor_of_it(path: Path) -> None:
    with open_weights(path) as file:
        tensor = file.get_tensor("0.weight")
    assert mapped(path)
    del tensor
    assert not mapped(path)


def test_no_names_need_no_file(tmp_path: Path) -> None:
    assert list(read_in_turn(tmp_path / "absent", [])) == []
    with pytest.raises(CheckpointError, match="No such file"):
        next(read_in_turn(tmp_path / "absent", ["a"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_only_weights_of_the_files_own_type_stay_mapped(dtype: torch.dtype, path: Path) -> None:
    with torch.device("meta"):
        model = nn.ModuleList(nn.Linear(n + 1, 4, bias=False) for n in range(5))
    load_weights(model, Weights(path), torch.device("cpu"), dtype, progress=False)
    assert mapped(path) is (dtype is torch.float16)


def test_convolutions_are_copied_in_the_layout_that_they_run_in(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"0.weight": torch.randn(4, 3, 3, 3), "1.weight": torch.randn(5, 4)}, path)
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 1, bias=False))
    load_weights(model, Weights(path), torch.device("cpu"), torch.float32, progress=False)
    before = [parameter.data_ptr() for parameter in model.parameters()]
    model.to(memory_format=torch.channels_last)  # as pipelines do; nothing is left to copy
    assert [parameter.data_ptr() for parameter in model.parameters()] == before
    assert not mapped(path)
