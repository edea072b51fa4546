"""The product with a gap-coded weight against PyTorch's with the dense one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from harness import DTYPES, assert_no_worse, layouts, run
from torch.autograd import gradcheck, gradgradcheck

from aswl_kernels import gap_linear, pack_gaps
from aswl_kernels.reference_gaps import gap_positions


def operands(x_shape, outputs, density=0.3, dtypes=(torch.float64, torch.float64), device="cpu"):
    """(x, sparse weight, bias, grad); the last row of the weight is empty, and the first is full."""
    weight = torch.randn(outputs, x_shape[-1]).double()
    weight = weight.where(torch.rand(weight.shape) < density, 0).to(dtypes[1])
    weight[:1] = 1
    weight[-1:] = 0
    grad = torch.randn(*x_shape[:-1], outputs).double().to(dtypes[0])
    x, bias = torch.randn(x_shape).double().to(dtypes[0]), torch.randn(outputs).double().to(dtypes[0])
    return tuple(t.to(device) for t in (x, weight, bias, grad))


def of_values(packed):
    """The product as a function of (x, values, bias)."""
    return lambda x, values, bias: gap_linear(x, replace(packed, values=values), bias)


def run_gaps(x, weight, bias, grad):
    """(y, dx, dvalues of the nonzeros in their order, dbias); there is no gradient where no value is."""
    packed = pack_gaps(weight)
    y, x_grad, values_grad, bias_grad = run(of_values(packed), (x, packed.values, bias), grad, (0, 1, 2))
    row, column, holds = gap_positions(*packed.indices, weight.shape[1])
    values_grad = values_grad.view(column.shape)
    assert not values_grad[~holds].any()
    weight_grad = torch.zeros_like(weight)
    weight_grad[row.expand_as(column)[holds], column[holds]] = values_grad[holds]
    return y, x_grad, weight_grad[weight != 0], bias_grad


def run_dense(x, weight, bias, grad):
    """The same from PyTorch, with the weight's gradient taken at the nonzeros."""
    y, x_grad, weight_grad, bias_grad = run(
        lambda x, w, b: F.linear(x, w.to(x.dtype), b), (x, weight, bias), grad, (0, 1, 2)
    )
    return y, x_grad, weight_grad[weight != 0], bias_grad


def assert_equals_dense(*args):
    exact = run_dense(*(t.double() for t in args))
    for triple in zip(run_gaps(*args), run_dense(*args), exact, strict=True):
        assert_no_worse(*triple)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(
    "x_shape, outputs", [((4, 6), 5), ((33, 65), 31), ((2, 3, 17), 40), ((7,), 3), ((1, 1), 1), ((2, 1100), 3)], ids=str
)
def test_equals_dense(x_shape, outputs, dtypes, device):
    assert_equals_dense(*operands(x_shape, outputs, 0.3, dtypes, device))


@pytest.mark.parametrize(
    "x_shape, outputs", [((0, 4), 3), ((2, 0, 4), 3), ((3, 0), 2), ((0,), 2), ((3, 4), 0), ((0, 0), 0)], ids=str
)
def test_empty(x_shape, outputs, device):
    assert_equals_dense(*operands(x_shape, outputs, device=device))


def test_without_bias_and_each_gradient_alone():
    x, weight, bias, grad = operands((4, 6), 5)
    packed = pack_gaps(weight)
    torch.testing.assert_close(gap_linear(x, packed), x @ weight.t())
    whole = run(of_values(packed), (x, packed.values, bias), grad, (0, 1, 2))
    for i in range(3):
        torch.testing.assert_close(run(of_values(packed), (x, packed.values, bias), grad, (i,))[1], whole[i + 1])


def test_strides_do_not_matter(device):
    x, weight, bias, grad = operands((4, 6), 5, device=device)
    want = run_dense(x, weight, bias, grad)
    for strided_x, strided_grad in zip(layouts(x), layouts(grad)):
        torch.testing.assert_close(run_gaps(strided_x, weight, bias, strided_grad), want)


@pytest.mark.parametrize("x_shape", [(3, 20), (20,), (2, 2, 20)], ids=str)
def test_numerical_gradients(x_shape):
    x, weight, bias, _ = operands(x_shape, 3, density=0.1)
    packed = pack_gaps(weight)
    leaves = tuple(t.requires_grad_() for t in (x, packed.values, bias))
    for check in (gradcheck, gradgradcheck):
        assert check(of_values(packed), leaves, fast_mode=True)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_opcheck(dtypes, device):
    x, weight, bias, _ = operands((2, 4, 6), 5, 0.3, dtypes, device)
    packed = pack_gaps(weight)
    for strided in (x, *layouts(x)):
        args = (strided, packed.values, *packed.indices)
        for last in (bias, None):
            torch.library.opcheck(torch.ops.aswl.gap_linear.default, (*args, last))


def test_autocast():
    x, weight, bias, _ = operands((3, 20), 5, dtypes=(torch.float32, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        got, want = gap_linear(x, pack_gaps(weight), bias), F.linear(x, weight, bias)
    assert got.dtype == torch.bfloat16 and got.equal(want)


X, P = torch.ones(2, 3), pack_gaps(torch.ones(4, 3))


@pytest.mark.parametrize(
    "args, words",
    [
        ((X.int(), P), "want floating x and weight; got int32[2, 3] on cpu"),
        ((X.double(), P), "want x of weight's dtype, or bf16/fp16 x with fp32 weight; got float64[2, 3] on cpu"),
        ((X, P.to("meta")), "want x and weight on one device; got float32[2, 3] on cpu"),
        ((X.t(), P), "want x [..., 3]; got float32[3, 2] on cpu"),
        ((X[0, 0], P), "want x [..., 3]; got float32[] on cpu"),
        ((X, P, torch.ones(3)), "want bias [4] of weight's dtype and device; got float32[3] on cpu"),
        ((X, P, torch.ones(4).double()), "got float64[4] on cpu"),
    ],
)
def test_refuses(args, words):
    with pytest.raises(ValueError) as error:
        gap_linear(*args)
    assert str(error.value).startswith("gap_linear: want ") and words in str(error.value)
