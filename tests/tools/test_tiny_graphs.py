"""Training steps as CUDA graphs, as far as a CPU shows them: a tape of operators stands in."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import ROOT
from tests.pretend_cuda import PretendCuda
from tests.sparse.test_graphs import NoWaiting, Tape
from tests.tools.tiny_shards import write_random_shard
from tools.tiny import graphs, refiner, turbo, unet
from tools.tiny.checkpoints import Ema, TrainingState
from tools.tiny.course import adam, training_step
from tools.tiny.family import autocast
from tools.tiny.graphs import CudaCapture, Graphs
from tools.tiny.latents import CONFIG, LatentScenes
from tools.tiny.practice import GRID
from tools.tiny.unet import CLOSE, HALF, Batch, Batches

SIZES = (CLOSE, HALF, CLOSE, HALF, CLOSE, HALF)


class TapeCapture:
    """A capture by a tape. `changed` is what a step changes, which its recording leaves alone."""

    def __init__(self, changed: Callable[[], list[Tensor]]) -> None:
        self.changed, self.recorded = changed, 0

    def warm(self, step: Callable[[], Tensor]) -> Tensor:
        return step()

    def keep(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        before, numbers = [x.clone() for x in self.changed()], torch.get_rng_state()
        with Tape() as tape, NoWaiting():
            loss = step()
        for x, old in zip(self.changed(), before, strict=True):
            x.detach().copy_(old)
        torch.set_rng_state(numbers)
        loss.fill_(torch.nan)
        self.recorded += 1

        def play() -> None:
            with torch._C._AutoDispatchBelowAutograd():
                tape.play()

        return loss, play


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> LatentScenes:
    folder = tmp_path_factory.mktemp("latents")
    write_random_shard(folder / "000000.safetensors", 6, seed=0)
    return LatentScenes(folder)


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(unet, "BATCH", {CLOSE: 2, HALF: 2, GRID: 1})
    monkeypatch.setattr(graphs, "WARM", 1)
    yield


def base(device: str = "cpu") -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    engine = unet.build(CONFIG)
    return unet.Trainable(engine).to(device), lambda batch: unet.loss_of(engine, batch)


def base_in_half() -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    module, whole = base()

    def loss_of(batch: Batch) -> Tensor:
        with autocast("cpu", half=True):
            return whole(batch)

    return module, loss_of


def student(device: str = "cpu") -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    teacher = unet.build(CONFIG).eval().requires_grad_(False)
    engine = refiner.build_student("configs/tiny-refiner.yaml", teacher)
    unet.Trainable(teacher).to(device).requires_grad_(False)
    return unet.Trainable(engine).to(device), lambda batch: refiner.loss_of(teacher, engine, batch)


def few_steps(device: str = "cpu") -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """The LoRA of the turbo, which the base teaches."""
    engine = unet.inpainting_engine(CONFIG).eval().requires_grad_(False).to(device)
    change = turbo.LowRank(engine.model).to(device)
    return change, lambda batch: turbo.loss_of(engine, change, batch)


def trained(
    build: Callable[[], tuple[nn.Module, Callable[[Batch], Tensor]]],
    data: LatentScenes,
    path: Path,
    by_graphs: bool,
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of steps on windows of two sizes by turns, and weights, average and moments."""
    torch.manual_seed(0)
    module, loss_of = build()
    parameters = module.used()
    optimizer = adam(parameters, 0.0, capturable=by_graphs)
    state = TrainingState(path, module, optimizer, Ema(module, 0.9))
    train = training_step(loss_of, parameters, optimizer, graphs=False)
    capture = TapeCapture(
        lambda: [
            *parameters,
            *(p.grad for p in parameters),
            *(x for values in optimizer.state.values() for x in values.values()),
        ]
    )
    step_of = Graphs(train, capture) if by_graphs else train
    batches, losses = Batches(data), []
    for step, size in enumerate(SIZES):
        optimizer.param_groups[0]["lr"].fill_(1e-3 * (step + 1))
        rows = np.arange(2) + step % 3
        seen = unet.views(step, size, rows, batches.data.seeds[rows])
        torch.manual_seed(step)
        losses.append(step_of(unet.batch_of(data, seen)).item())
        state.ema.update(step)
    assert capture.recorded == 2 * by_graphs
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()} | state.ema.values
    moments = optimizer.state_dict()["state"]
    return losses, tensors | {f"{i}.{k}": v for i, m in moments.items() for k, v in m.items()}


@pytest.mark.parametrize("build", [base, base_in_half, student, few_steps])
def test_graphs_train_as_steps_do(build: Callable, data: LatentScenes, tmp_path: Path) -> None:
    """Bit for bit, with learning rates that change and two window sizes by turns; and nothing in
    a step waits for the device."""
    losses, tensors = trained(build, data, tmp_path / "a.safetensors", by_graphs=False)
    same, others = trained(build, data, tmp_path / "b.safetensors", by_graphs=True)
    assert losses == same and len(set(losses)) == len(SIZES)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


def test_a_capture_that_fails_leaves_steps_as_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where a step asks for a value: said once, and nothing is trained twice or not at all."""
    caplog.set_level(logging.INFO)
    weight = nn.Parameter(torch.ones(3))
    optimizer = adam([weight], 0.1, capturable=True)

    def loss_of(x: Tensor) -> Tensor:
        loss = (weight * x).square().sum()
        return loss if loss.item() else loss * 0

    class Failing(TapeCapture):
        def keep(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
            try:
                return super().keep(step)
            except AssertionError as error:
                raise RuntimeError(f"{error}\nand more") from error

    capture = Failing(lambda: [weight, *optimizer.state[weight].values()])
    step = Graphs(training_step(loss_of, [weight], optimizer, graphs=False), capture)
    losses = [step(torch.ones(3)).item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 5
    assert optimizer.state[weight]["step"] == 5 and not capture.recorded
    (record,) = caplog.records
    told = "(aten::_local_scalar_dense waits for the device): steps run kernel by kernel"
    assert record.getMessage() == f"no CUDA graph of a step {told}"


def through(kept: Tensor) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    """A step whose result passes through what it keeps. (The pretended card runs a capture too, so
    that nothing may add up.)"""

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        kept.zero_().add_(batch[0].sum())
        return (kept * batch[1]).sum()

    return step


def test_steps_are_captured_on_a_card() -> None:
    pairs = [(torch.randn(n), torch.randn(n)) for n in (3, 3, 5, 3, 5, 5, 3)]
    step = through(torch.zeros(()))
    expected = [step(pair).item() for pair in pairs]
    with PretendCuda() as card:
        run = Graphs(through(torch.zeros((), device="cuda")), CudaCapture())
        found = [run(tuple(x.cuda() for x in pair)).item() for pair in pairs]
    assert found == expected
    assert card.kernels["graph replay"] == 5 and not card.problems


@pytest.mark.parametrize("build", [base, student, few_steps])
def test_a_pass_in_a_capture_copies_nothing_from_the_host(
    build: Callable, data: LatentScenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients, which the pretended card has none of."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: x)
    with PretendCuda() as card, torch.no_grad():
        _, loss_of = build("cuda")
        there = LatentScenes(data.folder, "cuda")
        batches = Batches(there)
        loss_of(batches(0, 0.0))
        batch = batches(1, 0.0)
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            loss_of(batch)
    assert not card.problems and not card.waits
