"""The product with the nonzeros against PyTorch's with the dense weight."""

import pytest
import torch
import torch.nn.functional as F
from harness import DTYPES, assert_no_worse, layouts, run
from torch.autograd import gradcheck, gradgradcheck

from aswl_kernels import PackedWeight, pack, sparse_linear


def operands(x_shape, outputs, density=0.3, dtypes=(torch.float64, torch.float64), device="cpu"):
    """(x, sparse weight, bias, grad); the last row of the weight is empty."""
    weight = torch.randn(outputs, x_shape[-1]).double()
    weight = weight.where(torch.rand(weight.shape) < density, 0).to(dtypes[1])
    weight[-1:] = 0
    grad = torch.randn(*x_shape[:-1], outputs).double().to(dtypes[0])
    x, bias = torch.randn(x_shape).double().to(dtypes[0]), torch.randn(outputs).double().to(dtypes[0])
    return tuple(t.to(device) for t in (x, weight, bias, grad))


def sparse(packed):
    """The product as a function of (x, values, bias)."""
    pieces = (packed.columns, packed.offsets, packed.shape)
    return lambda x, values, bias: sparse_linear(x, PackedWeight(values, *pieces), bias)


def run_sparse(x, weight, bias, grad):
    """(y, dx, dvalues, dbias)."""
    packed = pack(weight)
    return run(sparse(packed), (x, packed.values, bias), grad, (0, 1, 2))


def run_dense(x, weight, bias, grad):
    """The same from PyTorch, with the weight's gradient taken at the nonzeros."""
    y, x_grad, weight_grad, bias_grad = run(
        lambda x, w, b: F.linear(x, w.to(x.dtype), b), (x, weight, bias), grad, (0, 1, 2)
    )
    return y, x_grad, weight_grad[weight != 0], bias_grad


def assert_equals_dense(*args):
    exact = run_dense(*(t.double() for t in args))
    for triple in zip(run_sparse(*args), run_dense(*args), exact, strict=True):
        assert_no_worse(*triple)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(
    "x_shape, outputs", [((4, 6), 5), ((33, 65), 31), ((2, 3, 17), 4), ((7,), 3), ((1, 1), 1)], ids=str
)
def test_equals_dense(x_shape, outputs, dtypes, device):
    assert_equals_dense(*operands(x_shape, outputs, 0.3, dtypes, device))


@pytest.mark.parametrize("density", [0.0, 0.02, 0.9, 1.0])
def test_any_density(density, device):
    assert_equals_dense(*operands((9, 40), 11, density, device=device))


@pytest.mark.parametrize(
    "x_shape, outputs", [((0, 4), 3), ((2, 0, 4), 3), ((3, 0), 2), ((0,), 2), ((3, 4), 0), ((0, 0), 0)], ids=str
)
def test_empty(x_shape, outputs, device):
    assert_equals_dense(*operands(x_shape, outputs, device=device))


def test_worked_by_hand(device):
    packed = pack(torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, -1.0]], device=device))
    y = sparse_linear(torch.tensor([10.0, 1.0], device=device), packed, torch.tensor([0.5, 0.25, 0.0], device=device))
    assert y.tolist() == [2.5, 0.25, 29]


def test_without_bias_and_each_gradient_alone():
    x, weight, bias, grad = operands((4, 6), 5)
    packed = pack(weight)
    torch.testing.assert_close(sparse_linear(x, packed), x @ weight.t())
    want = run_dense(x, weight, bias, grad)
    for i in range(3):
        torch.testing.assert_close(run(sparse(packed), (x, packed.values, bias), grad, (i,))[1], want[i + 1])


def test_nan_survives(device):
    packed = pack(torch.tensor([[0.0, float("nan")], [1.0, 0.0]], device=device))
    assert sparse_linear(torch.ones(1, 2, device=device), packed).isnan().tolist() == [[True, False]]
    y = sparse_linear(torch.tensor([[float("nan"), 1.0]], device=device), packed)
    assert y[0, 1].isnan()


def test_strides_do_not_matter(device):
    x, weight, bias, grad = operands((4, 6), 5, device=device)
    want = run_dense(x, weight, bias, grad)
    for strided_x, strided_grad in zip(layouts(x), layouts(grad)):
        torch.testing.assert_close(run_sparse(strided_x, weight, bias, strided_grad), want)
    ones = torch.ones((), device=device).double().expand(4, 5)  # as from .sum()
    want = run_dense(x[:1].expand(4, 6), weight, bias, ones)
    torch.testing.assert_close(run_sparse(x[:1].expand(4, 6), weight, bias, ones), want)


@pytest.mark.parametrize("x_shape", [(3, 4), (4,), (2, 2, 4)], ids=str)
def test_numerical_gradients(x_shape):
    x, weight, bias, _ = operands(x_shape, 3, density=0.6)
    packed = pack(weight)
    leaves = tuple(t.requires_grad_() for t in (x, packed.values, bias))
    for check in (gradcheck, gradgradcheck):
        assert check(sparse(packed), leaves)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_opcheck(dtypes, device):
    x, weight, bias, _ = operands((2, 4, 6), 5, 0.3, dtypes, device)
    packed = pack(weight)
    for strided in (x, *layouts(x)):
        args = (strided, packed.values, packed.columns, packed.offsets)
        torch.library.opcheck(torch.ops.aswl.sparse_linear.default, (*args, bias))
        torch.library.opcheck(torch.ops.aswl.sparse_linear.default, (*args, None))


X, P = torch.ones(2, 3), pack(torch.ones(4, 3))


@pytest.mark.parametrize(
    "args, words",
    [
        ((X.int(), P), "want floating x and weight; got int32[2, 3] on cpu"),
        ((X.double(), P), "want x of weight's dtype, or bf16/fp16 x with fp32 weight; got float64[2, 3] on cpu"),
        ((X, P.to("meta")), "want x and weight on one device; got float32[2, 3] on cpu"),
        ((X.t(), P), "want x [..., 3]; got float32[3, 2] on cpu"),
        ((X[0, 0], P), "want x [..., 3]; got float32[] on cpu"),
        ((X, pack(torch.ones(4, 3, 1, 1))), "want a weight packed from [out, in]; got (4, 3, 1, 1)"),
        ((X, P, torch.ones(3)), "want bias [4] of weight's dtype and device; got float32[3] on cpu"),
        ((X, P, torch.ones(4).double()), "got float64[4] on cpu"),
    ],
)
def test_refuses(args, words):
    with pytest.raises(ValueError) as error:
        sparse_linear(*args)
    assert str(error.value).startswith("sparse_linear: want ") and words in str(error.value)
