"""How many kernels a pass of the real size launches: counted on shapes alone, no weights in memory.

A card of today needs about two microseconds to begin a kernel, also inside of a graph.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.tables import Case, words_of
from sgm.cli.inputs import read_inputs
from sgm.cli.main import parse
from sgm.cli.profile import blank_pipeline, caught_pass
from sgm.profiling.passes import Pass
from sgm.sparse.sparsify import handle_of
from tests.pretend_cuda import PretendCuda

pytest.importorskip("triton", reason="triton is not installed (it has no build for this system)")

from sgm.sparse.backends import triton_launch, triton_norm, triton_ops, triton_rows, triton_tiles
from sgm.sparse.backends.triton_ops import TritonOps

BUDGET = 1090  # of a pass of preset `fast`


class Counted:
    """In place of a kernel of Triton's: counted, and nothing done."""

    def __init__(self, card: PretendCuda, name: str) -> None:
        self.card, self.name = card, name

    def __getitem__(self, grid: object) -> Counted:
        return self

    def __call__(self, *arguments: object, **constants: object) -> None:
        assert all(t.is_cuda for t in arguments if isinstance(t, Tensor)), self.name
        self.card.launch(self.name, lambda: None)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCuda]:
    """A card with kernels that are counted only."""
    with PretendCuda() as card:
        triton_tiles.multiprocessors.cache_clear()
        for module, name in (
            (triton_launch, "finish_kernel"),
            (triton_launch, "changes_kernel"),
            (triton_launch, "group_norm_kernel"),
            (triton_norm, "layer_norm_kernel"),
            (triton_rows, "gather_kernel"),
            (triton_rows, "scatter_kernel"),
        ):
            monkeypatch.setattr(module, name, Counted(card, name))
        conv, gated = Counted(card, "conv_kernel"), Counted(card, "gated_kernel")
        monkeypatch.setattr(triton_launch, "conv_for", lambda *rest: (conv, {}))
        monkeypatch.setattr(triton_ops, "gated_for", lambda *rest: (gated, {}))
        attention = Counted(card, "attention_kernel")
        monkeypatch.setattr(triton_ops, "attention_for", lambda *rest: (attention, {}))
        yield card
        triton_tiles.multiprocessors.cache_clear()


def unet_pass(preset: str, dense: bool = False) -> Pass:
    """The UNet's pass for the published inpainting mask in bfloat16, on the card, without data."""
    given = argparse.Namespace(data=None, precision="bf16", backend="torch", quick=False)
    given.macs_only, given.device = True, None
    options = parse(words_of(Case("base", "unet", "inpainting", "mask", preset), given))
    options = replace(options, run_type=options.run_type.dense) if dense else options
    one = caught_pass(options, read_inputs(options), blank_pipeline(options))
    one = one.laid_out(torch.channels_last)
    inputs, recorded = (
        given and {name: x.to("cuda") for name, x in given.items()}
        for given in (one.inputs, one.recorded)
    )
    return replace(one, network=one.network.to("cuda"), inputs=inputs, recorded=recorded)


@torch.no_grad()
def test_a_fast_pass_stays_within_its_budget(card: PretendCuda) -> None:
    one = unet_pass("fast")
    handle_of(one.network).ops = TritonOps()
    with ExitStack() as scopes:
        scopes.enter_context(one.with_recording())
        one.run()  # makes the active sets
        card.reset()
        one.run()
    assert not card.waits and not card.uploads
    assert card.launches <= BUDGET, card.kernels.most_common()
    assert card.kernels["attention_kernel"] == 140, card.kernels.most_common()  # two a block


@torch.no_grad()
def test_a_dense_pass_launches_more(card: PretendCuda) -> None:
    one = unet_pass("published", dense=True)
    one.run()
    assert card.launches > BUDGET, card.kernels.most_common()
