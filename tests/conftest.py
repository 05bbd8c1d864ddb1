"""Shared fixtures: the golden reference data, the published weight rule, one fixed thread count."""

import importlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file

# One number on every machine: sums split over threads differ in the last bits. Two, because more
# do not help networks this small; a caller's OMP_NUM_THREADS goes first.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or min(2, os.cpu_count() or 1)))

# Without a GPU, Triton's kernels are tested in its interpreter; triton reads this when imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# In the suite the same examples every time, few, and without a clock; by hand as many new ones as
# wanted: `pytest --hypothesis-profile=long tests/test_fuzz.py`.
settings.register_profile("suite", derandomize=True, deadline=None, database=None, print_blob=False)
settings.register_profile("long", deadline=None, max_examples=20_000)
settings.load_profile("suite")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SDXL_SIGE_SHARED", ROOT.parent / "shared"))
# The whole golden set where there is one, and the part of it that is shipped (see its README).
GOLDEN = SHARED / "golden", ROOT / "tests" / "data" / "golden"


def golden_file(name: str) -> Path:
    """A file of the golden set; skips the test where there is none."""
    for folder in GOLDEN:
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"golden file {name} is not in the shipped part (set SDXL_SIGE_SHARED)")


class Golden:
    """One golden case: `case.json` figures and `case.safetensors` tensors (float16 widened).

    A test that reads a tensor which the shipped part lacks is skipped."""

    def __init__(self, case: str) -> None:
        path = golden_file(f"{case}.json")
        self.case, self.is_whole = case, path.parent == GOLDEN[0]
        self.info = json.loads(path.read_text())
        self.tensors = load_file(path.with_suffix(".safetensors"))

    def raw(self, key: str) -> torch.Tensor:
        """A tensor as it is stored."""
        if key not in self.tensors and not self.is_whole:
            pytest.skip(
                f"golden {self.case} {key} is not in the shipped part (set SDXL_SIGE_SHARED)"
            )
        return self.tensors[key]

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor = self.raw(key)
        return tensor.float() if tensor.dtype == torch.float16 else tensor

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def keys(self, prefix: str = "") -> list[str]:
        return [k for k in self.tensors if k.startswith(prefix)]

    def mask(self, key: str, height: int, width: int) -> torch.Tensor:
        """A packed boolean mask as a (height, width) bool tensor."""
        bits = np.unpackbits(self.raw(key).numpy(), count=height * width)
        return torch.from_numpy(bits.reshape(height, width).astype(bool))


def rule_weights(shapes: Mapping[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    """Weights by the golden rule: names in sorted order, one generator, one draw per tensor."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name in sorted(shapes):
        shape = list(shapes[name])
        draw = torch.randn(shape, generator=generator, dtype=torch.float32)
        if len(shape) >= 2:
            weights[name] = draw / math.sqrt(math.prod(shape[1:]))
        elif len(shape) == 1:
            weights[name] = 1 + 0.1 * draw if name.endswith("weight") else 0.1 * draw
    return weights


def tiny_weights(shapes: Mapping[str, list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights for a whole engine: by the golden rule, scalars zero."""
    zeros = {name: torch.zeros(()) for name, shape in shapes.items() if not list(shape)}
    return rule_weights(shapes, seed) | zeros


def oracle(name: str) -> ModuleType:
    """A library that results are compared with; where it does not import, skips with the reason.

    Not only ImportError: a torchvision of another build of torch, say, ends in a RuntimeError.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} does not import: {error}")


def max_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference; shapes must agree."""
    assert result.shape == reference.shape, (result.shape, reference.shape)
    return (result.double() - reference.double()).abs().max().item()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from one state of torch's generator, in whatever order they run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Load a golden case by name, once per session; skips with a reason where it is absent."""
    cache: dict[str, Golden] = {}

    def load(case: str) -> Golden:
        if case not in cache:
            cache[case] = Golden(case)
        return cache[case]

    return load
