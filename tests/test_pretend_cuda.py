"""The CUDA device of the tests: it computes, refuses what a card refuses, and counts."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.pretend_cuda import CaptureError, DeviceMix, OnCard, PretendCuda


@pytest.fixture
def card() -> Iterator[PretendCuda]:
    with PretendCuda() as card:
        yield card


def test_it_computes_as_the_host_does(card: PretendCuda) -> None:
    x, weight = torch.randn(2, 6, 8), torch.randn(8, 8)

    def compute(x: Tensor, weight: Tensor) -> Tensor:
        y = F.linear(x, weight).unflatten(2, (2, 4)).transpose(1, 2)
        y = F.scaled_dot_product_attention(y, y, y).transpose(1, 2).flatten(2)
        y[:, 1:3] = y[:, [0, 2]] + torch.arange(8, device=y.device)
        return torch.cat([y.index_select(1, torch.tensor([5, 0], device=y.device)), x], dim=1)

    out = compute(x.to("cuda"), weight.cuda())
    assert isinstance(out, OnCard) and out.device == torch.device("cuda:0") and out.is_cuda
    assert torch.equal(out.cpu(), compute(x, weight))
    assert torch.equal(out.to("cpu", torch.float64), compute(x, weight).double())
    made = torch.full((3,), 2.0, device="cuda").clone(), torch.zeros(2, device="cuda")
    assert [x.device.type for x in made] == ["cuda", "cuda"]


def test_modules_move_there_and_back(card: PretendCuda) -> None:
    layer, x = torch.nn.Linear(3, 2).requires_grad_(False), torch.randn(4, 3)
    before = layer(x)
    there = layer.to("cuda")(x.to("cuda"))
    assert there.is_cuda and layer.weight.is_cuda and torch.equal(there.cpu(), before)
    assert torch.equal(layer.to("cpu")(x), before)


def test_afterwards_it_is_gone() -> None:
    before = torch.cuda.is_available, torch.inference_mode, torch.cuda.graph
    with PretendCuda():
        assert torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
    assert (torch.cuda.is_available, torch.inference_mode, torch.cuda.graph) == before


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: x @ torch.ones(3),
        lambda x: torch.ones(3)[x.long()],
        lambda x: torch.ones(3).index_select(0, x.long()),
        lambda x: F.linear(x, torch.ones(2, 3)),
        lambda x: torch.where(torch.ones(3) > 0, x, x),
    ],
)
def test_mixed_devices_are_refused(card: PretendCuda, mixed: Callable[[Tensor], Tensor]) -> None:
    x = torch.zeros(3, device="cuda")
    with pytest.raises(DeviceMix):
        mixed(x)
    assert len(card.problems) == 1
    assert torch.equal((x + torch.tensor(2.0)).cpu(), torch.full((3,), 2.0))  # as on a card


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
        lambda x: torch.empty(3).copy_(x),
        lambda x: torch.cuda.synchronize(),
        lambda x: torch.unique(x),
    ],
)
def test_waits_are_counted_and_refused_in_captures(
    card: PretendCuda, wait: Callable[[Tensor], object]
) -> None:
    x = torch.ones(3, device="cuda")
    wait(x)
    assert sum(card.waits.values()) == 1
    with pytest.raises(CaptureError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        wait(x)


@pytest.mark.parametrize(
    "upload",
    [
        lambda x: torch.ones(3).to("cuda"),
        lambda x: torch.tensor([1.0], device="cuda"),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.new_tensor([1.0]),
    ],
)
def test_uploads_are_counted_and_refused_in_captures(
    card: PretendCuda, upload: Callable[[Tensor], object]
) -> None:
    x = torch.ones(3, device="cuda")
    upload(x)
    assert sum(card.uploads.values()) == 1
    with pytest.raises(CaptureError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        upload(x)


def test_kernels_are_counted(card: PretendCuda) -> None:
    x = torch.ones(4, 6, device="cuda")
    card.reset()
    y = (x.view(2, 2, 6).transpose(0, 1)[..., :3] + 1).mul_(2)
    x.t()
    assert card.kernels == {"add": 1, "mul_": 1} and card.launches == 2
    y[:, 0] = 0
    F.scaled_dot_product_attention(y, y, y)
    y.expand(2, 2, 3).contiguous()
    assert card.launches == 4 + (not y.is_contiguous())
    card.reset()
    many = [x.clone() for _ in range(3)]
    torch._foreach_zero_(many)
    torch._foreach_zero_([*many, x.half()])
    assert card.kernels["_foreach_zero_"] == 1 + 4


def test_a_graph_runs_again_on_the_same_tensors(card: PretendCuda) -> None:
    x, kept = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept[1:] = x[1:] * 2
        picked = x[torch.arange(1, 3, device="cuda")]
        out = torch.cat([x, kept, picked]).softmax(0)
    x.copy_(torch.tensor([3.0, 4.0, 5.0]))
    card.reset()
    graph.replay()
    assert card.kernels == {"graph replay": 1}
    expected = torch.tensor([3.0, 4.0, 5.0, 0.0, 8.0, 10.0, 4.0, 5.0]).softmax(0)
    assert torch.equal(out.cpu(), expected)
