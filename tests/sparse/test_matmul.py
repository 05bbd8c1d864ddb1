"""Products of few rows against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from sgm.sparse.matmul import FEW_ROWS, has_few_rows, linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(1,), (3, 0), (2, 26), (FEW_ROWS,), (FEW_ROWS + 1,)])
def test_few_rows_give_what_many_give(rows: tuple[int, ...], bias: bool) -> None:
    """To the rounding of sums of 67 products in float32, as it is found against float64."""
    torch.manual_seed(0)
    x, weight = torch.randn(*rows, 67), torch.randn(35, 67)
    shift = torch.randn(35) if bias else None
    out = linear(x, weight, shift)
    exact = F.linear(x.double(), weight.double(), None if shift is None else shift.double())
    assert out.shape == exact.shape and out.is_contiguous()
    plain = (F.linear(x, weight, shift) - exact).abs().amax() if x.numel() else 0.0
    assert not x.numel() or (out - exact).abs().amax() <= max(4 * plain, 1e-5)


def test_rows_that_are_strided() -> None:
    x, weight = torch.randn(67, 5).t(), torch.randn(35, 67)
    assert torch.allclose(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)


def test_which_rows_are_few() -> None:
    few = torch.zeros(2, FEW_ROWS // 2, 4)
    assert has_few_rows(few)
    assert not has_few_rows(torch.zeros(FEW_ROWS + 1, 4))
    assert not has_few_rows(few.bfloat16())
    assert not has_few_rows(few.to("meta"))
