"""What the compiler makes of the Triton kernels for cards that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("triton", reason="triton is not installed (it has no build for this system)")

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory that a program may have
PRODUCTS = ("attention", "conv", "gated")
Row = dict[str, object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What `compile_kernels` prints."""
    # A folder of its own: what is compiled must not come from an earlier run.
    cache = tmp_path_factory.mktemp("triton")
    set_aside = ("TRITON_INTERPRET", "TRITON_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in set_aside}
    command = [sys.executable, "-m", "tests.sparse.compile_kernels", *map(str, SHARED)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def rows(made: dict[str, object]) -> list[Row]:
    """Every kernel, compiled by the backend's own launchers."""
    return made["rows"]


def told(row: Row) -> str:
    return f"{row['kernel']} for sm_{row['arch']}: {row}"


def test_every_kernel_is_compiled_for_every_card(rows: list[Row]) -> None:
    files = sorted((ROOT / "sgm" / "sparse" / "backends").glob("triton_*.py"))
    named = {
        line.removeprefix("def ").partition("_kernel(")[0]
        for path in files
        for line in Path(path).read_text(encoding="utf-8").splitlines()
        if line.startswith("def ") and "_kernel(" in line
    }
    for arch in SHARED:
        assert {row["kernel"] for row in rows if row["arch"] == arch} == named


def test_shared_memory_is_within_the_cards(rows: list[Row]) -> None:
    assert [told(row) for row in rows if row["shared"] > SHARED[row["arch"]]] == []


def test_products_use_the_tensor_cores(rows: list[Row]) -> None:
    """Where the dtype has them: not in plain float32. Those of a Hopper take 64 rows at least."""
    products = [row for row in rows if row["kernel"] in PRODUCTS]
    assert products
    for row in products:
        plain = row["arguments"][0] == "*fp32" and row["constants"]["PRECISION"] == "ieee"
        large = row["arch"] >= 90 and int(row["constants"]["BM"]) >= 64
        found = row["wgmma" if large else "mma"]
        assert bool(found) is not plain, told(row)


def test_no_kernel_spills_registers(rows: list[Row]) -> None:
    """But for the convolution of latents, whose four channels fill a sixteenth of a tile."""
    wide = [row for row in rows if row["constants"].get("C_IN") != "4"]
    assert [told(row) for row in wide if row["spills"]] == []


def test_kernels_are_compiled_beforehand(made: dict[str, object]) -> None:
    """`prepare` compiles all that a step launches, and launches nothing."""
    assert (made["launched"], made["late"]) == (0, 0)
