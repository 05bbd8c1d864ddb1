"""The Triton kernel of attention against torch.

On a GPU where there is one, else in Triton's interpreter; as tests/sparse/test_triton.py says.
"""

import pytest
import torch
from torch import Tensor

from sgm.sparse.backends.torch_ref import TorchOps
from tests.conftest import max_error
from tests.sparse.test_triton_pixels import DEVICE, allowed, draw, dtypes

pytest.importorskip("triton", reason="triton is not installed (it has no build for this system)")

from sgm.sparse.backends import triton_ops, triton_tiles  # needs triton
from sgm.sparse.backends.triton_ops import TritonOps

TORCH, TRITON = TorchOps(), TritonOps()
QUERIES_AND_KEYS = [(1, 77), (17, 1), (65, 130)]


@pytest.fixture
def kernel_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our kernel, however many queries there are for this device."""
    monkeypatch.setattr(triton_ops, "attends", lambda *rest: True)


def check(q: Tensor, k: Tensor, v: Tensor, heads: int) -> None:
    exact = TORCH.attention(q.double(), k.double(), v.double(), heads)
    plain, out = (ops.attention(q, k, v, heads) for ops in (TORCH, TRITON))
    assert out.dtype == q.dtype and out.is_contiguous() and out.shape == q.shape
    assert max_error(out, exact) <= allowed(plain, exact)


@dtypes
@pytest.mark.parametrize(("queries", "keys"), QUERIES_AND_KEYS, ids=str)
@pytest.mark.usefixtures("kernel_only")
def test_attention_at_odd_sizes(queries: int, keys: int, dtype: torch.dtype) -> None:
    k, v = draw(2, keys, 2 * 128, dtype=dtype).chunk(2, dim=-1)  # side by side, as recorded
    check(2 * draw(2, queries, 3 * 128, dtype=dtype)[:, :, 128:256], 2 * k, v, 2)


@pytest.mark.parametrize("width", triton_tiles.HEAD_WIDTHS)
@pytest.mark.usefixtures("kernel_only")
def test_attention_of_every_width(width: int) -> None:
    check(*(draw(1, n, 3 * width) for n in (5, 70, 70)), 3)


@pytest.mark.usefixtures("kernel_only")
def test_large_scores_do_not_overflow() -> None:
    """The largest come last, so that all sums before are scaled down; and none is near zero."""
    q, k, v = draw(1, 5, 32), draw(1, 200, 32), draw(1, 200, 32)
    scores = (q[:, :1] @ k.mT)[0, 0]
    k = k[:, scores.argsort()]
    check(50 * q, k, v, 1)
    check(torch.full_like(q, 30.0), torch.full_like(k, -30.0) + k / 10, v, 1)


def test_torch_attends_where_it_is_faster_or_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tiles, "multiprocessors", lambda device: 132)
    assert triton_tiles.attends(DEVICE, 40, 200, 64)  # a sixth of an SDXL map of 16 x 32
    assert not triton_tiles.attends(DEVICE, 40, 4096, 64)  # all pixels of a large one
    assert not triton_tiles.attends(DEVICE, 2, 100, 512)  # the head of an autoencoder
    q, k, v = draw(1, 5, 12), draw(1, 9, 12), draw(1, 9, 12)
    assert torch.equal(TRITON.attention(q, k, v, 1), TORCH.attention(q, k, v, 1))
    assert TRITON.attention(draw(2, 0, 32), draw(2, 9, 32), draw(2, 9, 32), 2).shape == (2, 0, 32)
