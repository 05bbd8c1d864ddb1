"""Timing: warm-up, turns, percentiles. The clock is a stand-in; nothing here depends on speed."""

import pytest
import torch

from sgm.profiling import latency
from sgm.profiling.latency import Latency

CPU = torch.device("cpu")


def test_percentiles() -> None:
    figures = Latency.of([float(n) for n in range(11, 0, -1)]).figures()
    assert figures == {"median": 6.0, "p10": 2.0, "p90": 10.0}
    assert Latency.of([3.0]) == Latency(3.0, 3.0, 3.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds since the start, moved on by the calls of a test."""
    now = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    return now


def test_calls_take_turns_after_warming_up(clock: list[float]) -> None:
    order = []

    def call(name: str, seconds: float) -> None:
        first = name not in order
        order.append(name)
        clock[0] += 9 if first else seconds  # the first run is slow, and must not count

    calls = {"a": lambda: call("a", 0.002), "b": lambda: call("b", 0.001)}
    found = latency.measure(calls, CPU, runs=3)
    assert order == ["a", "b", *"ababab"]
    assert found["a"].median == pytest.approx(2) and found["b"].p90 == pytest.approx(1)


@pytest.mark.parametrize(("seconds", "runs"), [(60.0, 3), (1.0, 10), (1e-4, 50)])
def test_as_many_runs_as_the_budget_allows(clock: list[float], seconds: float, runs: int) -> None:
    made = []

    def call() -> None:
        made.append(None)
        clock[0] += seconds

    latency.measure({"a": call}, CPU)
    assert len(made) == runs + latency.WARM_UP["cpu"]


def test_peak_memory_is_that_of_a_run() -> None:
    made = []
    peak = latency.peak_memory_mb(lambda: made.append(None), CPU)
    assert len(made) == 1
    assert peak is None or 50 < peak < 1e6  # a Python with torch
