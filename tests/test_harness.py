"""The criterion itself must fail on what it is there to find."""

import pytest
import torch
from harness import assert_no_worse

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rounded(dtype):
    exact = torch.randn(1000, dtype=torch.float64)
    return exact.to(dtype), exact


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pytorchs_own_result_passes(dtype):
    same, exact = rounded(dtype)
    assert_no_worse(same, same, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda y: y.index_fill(0, torch.tensor([7]), float("nan")), id="one NaN"),
        pytest.param(lambda y: y.index_fill(0, torch.tensor([7]), float("inf")), id="one infinity"),
        pytest.param(lambda y: y.index_add(0, torch.tensor([7]), y.new_full((1,), 0.1)), id="one wrong element"),
        pytest.param(lambda y: y.where(y.abs() < 2, 0), id="zeroed elements"),
        pytest.param(lambda y: (y.double() * 1.01).to(y.dtype), id="1% too large"),
        pytest.param(lambda y: y.double(), id="another dtype"),
        pytest.param(lambda y: y[:-1], id="another shape"),
    ],
)
def test_a_wrong_result_fails(spoil, dtype):
    same, exact = rounded(dtype)
    with pytest.raises(AssertionError):
        assert_no_worse(spoil(same), same, exact)
