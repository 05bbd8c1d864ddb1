"""Device, precision and seed: the right choice, and nothing left behind."""

from types import SimpleNamespace

import pytest
import torch

from sgm import runtime
from sgm.errors import UserError
from sgm.words import Precision, Preset

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Pretend that the machine has a number of GPUs of a compute capability."""

    def pretend(count: int, major: int = 9) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))

    return pretend


def test_default_device(gpus) -> None:
    gpus(0)
    assert runtime.pick_device() == CPU
    gpus(1)
    assert runtime.pick_device() == CUDA


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1", "cpu:0"])
def test_devices_that_exist(name: str, gpus) -> None:
    gpus(2)
    assert str(runtime.pick_device(name)) == name


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("cuda", 0, "use --device cpu"),
        ("cuda:2", 2, "last is cuda:1"),
        ("cuad", 1, "did you mean cuda"),
        ("cuda:x", 1, "expected cpu"),
        ("cuda:-1", 1, "expected cpu"),
        ("", 1, "expected cpu"),
        ("xpu", 1, "expected cpu"),
        ("cpu:1", 1, "there is one cpu"),
    ],
)
def test_devices_that_do_not(name: str, count: int, expected: str, gpus) -> None:
    gpus(count)
    with pytest.raises(UserError, match=expected):
        runtime.pick_device(name)


def test_mps_is_only_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends, "mps", SimpleNamespace(is_available=lambda: False))
    with pytest.raises(UserError, match="mps"):
        runtime.pick_device("mps")


def test_precision_of_each_preset(gpus) -> None:
    gpus(1, major=9)
    assert runtime.best_precision(Preset.PUBLISHED, CUDA) is Precision.FP32
    assert runtime.best_precision(Preset.FAST, CUDA) is Precision.BF16
    assert runtime.best_precision(Preset.FAST, CPU) is Precision.FP32
    gpus(1, major=7)
    assert runtime.best_precision(Preset.FAST, CUDA) is Precision.FP16


def test_dtypes() -> None:
    assert [runtime.dtype_of(p) for p in Precision] == [
        torch.float32,
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.TF32])
def test_precisions_a_cpu_lacks(precision: Precision) -> None:
    with (
        pytest.raises(UserError, match=f"{precision} needs"),
        runtime.precision_scope(precision, CPU),
    ):
        pytest.fail("the scope was entered")


def flags() -> tuple[str, bool, bool]:
    """The TF32 switches of the process."""
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize("precision", Precision)
def test_precision_scope_sets_and_restores(precision: Precision, before: str) -> None:
    original = flags()
    torch.set_float32_matmul_precision(before)
    outside = flags()
    try:
        with (
            pytest.raises(RuntimeError, match="inside"),
            runtime.precision_scope(precision, CUDA),
        ):
            tf32 = precision is Precision.TF32
            assert flags() == ("high" if tf32 else "highest", tf32, tf32)
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            raise RuntimeError("inside")
        assert flags() == outside and torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.set_float32_matmul_precision(original[0])


def test_seeded_draws_as_published_and_restores() -> None:
    torch.manual_seed(11)
    expected = torch.randn(5)
    torch.manual_seed(3)
    after = torch.randn(5)
    torch.manual_seed(3)
    with runtime.seeded(11):
        assert torch.equal(torch.randn(5), expected)
    assert torch.equal(torch.randn(5), after)
    with runtime.seeded(2**64 - 1):
        torch.randn(1)


def test_report() -> None:
    found = runtime.versions()
    assert found["torch"] == torch.__version__ and found["python"].count(".") == 2
    assert all(isinstance(value, str) for value in found.values())
    assert runtime.describe_device(CPU) == "cpu"
