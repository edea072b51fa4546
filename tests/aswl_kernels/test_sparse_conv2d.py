"""The convolution with the nonzeros against PyTorch's with the dense weight, over every geometry."""

import pytest
import torch
from harness import DTYPES, GEOMETRIES, assert_no_worse, conv, geometries, geometry_table, layouts, run
from hypothesis import given
from torch.autograd import gradcheck, gradgradcheck

from aswl_kernels import PackedWeight, pack, sparse_conv2d


def operands(x_shape, weight_shape, geometry, density=0.3, dtypes=(torch.float64, torch.float64), device="cpu"):
    """(x, sparse weight, bias, grad); the first channel of the weight is empty."""
    weight = torch.randn(weight_shape).double()
    weight = weight.where(torch.rand(weight_shape) < density, 0).to(dtypes[1])
    weight[0] = 0
    x, bias = torch.randn(x_shape).double(), torch.randn(weight_shape[0]).double()
    grad = torch.randn(conv(geometry)(x, weight.double()).shape).double()
    return tuple(t.to(device) for t in (x.to(dtypes[0]), weight, bias.to(dtypes[0]), grad.to(dtypes[0])))


def sparse(packed, geometry):
    """The product as a function of (x, values, bias)."""
    pieces = (packed.columns, packed.offsets, packed.shape)
    return lambda x, values, bias: sparse_conv2d(x, PackedWeight(values, *pieces), bias, **geometry)


def run_sparse(geometry, x, weight, bias, grad):
    """(y, dx, dvalues, dbias)."""
    packed = pack(weight)
    return run(sparse(packed, geometry), (x, packed.values, bias), grad, (0, 1, 2))


def run_dense(geometry, x, weight, bias, grad):
    """The same from PyTorch, with the weight's gradient taken at the nonzeros."""
    product = conv(geometry)
    y, x_grad, weight_grad, bias_grad = run(
        lambda x, w, b: product(x, w.to(x.dtype), b), (x, weight, bias), grad, (0, 1, 2)
    )
    return y, x_grad, weight_grad[weight != 0], bias_grad


def assert_equals_dense(geometry, *args):
    exact = run_dense(geometry, *(t.double() for t in args))
    for triple in zip(run_sparse(geometry, *args), run_dense(geometry, *args), exact, strict=True):
        assert_no_worse(*triple)


@pytest.mark.parametrize("dtypes", DTYPES)
@geometry_table
def test_equals_dense(x_shape, weight_shape, geometry, dtypes, device):
    assert_equals_dense(geometry, *operands(x_shape, weight_shape, geometry, 0.3, dtypes, device))


@given(geometries())
def test_any_geometry(row):
    assert_equals_dense(row[2], *operands(*row))


@pytest.mark.parametrize("density", [0.0, 0.02, 0.9, 1.0])
def test_any_density(density, device):
    assert_equals_dense({}, *operands((2, 8, 6, 6), (5, 8, 3, 3), {}, density, device=device))


@pytest.mark.parametrize("x_shape, weight_shape", [((0, 3, 5, 5), (4, 3, 3, 3)), ((2, 0, 5, 5), (4, 0, 3, 3))], ids=str)
def test_empty(x_shape, weight_shape, device):
    assert_equals_dense({}, *operands(x_shape, weight_shape, {}, device=device))


def test_without_bias_and_each_gradient_alone():
    x, weight, bias, grad = operands((2, 3, 5, 5), (4, 3, 3, 3), {})
    packed = pack(weight)
    torch.testing.assert_close(sparse_conv2d(x, packed), conv({})(x, weight))
    want = run_dense({}, x, weight, bias, grad)
    for i in range(3):
        got = run(sparse(packed, {}), (x, packed.values, bias), grad, (i,))[1]
        torch.testing.assert_close(got, want[i + 1])


def test_nan_survives(device):
    weight = torch.zeros(3, 2, 1, 1, device=device)
    weight[1, 0] = float("nan")
    y = sparse_conv2d(torch.ones(1, 2, 2, 2, device=device), pack(weight))
    assert y.isnan().flatten(2).all(2).tolist() == [[False, True, False]]


def test_strides_do_not_matter(device):
    x, weight, bias, grad = operands((2, 4, 5, 6), (4, 4, 3, 3), {}, device=device)
    want = run_dense({}, x, weight, bias, grad)
    for strided_x, strided_grad in zip(layouts(x), layouts(grad)):
        torch.testing.assert_close(run_sparse({}, strided_x, weight, bias, strided_grad), want)
    nhwc = x.contiguous(memory_format=torch.channels_last)
    assert sparse_conv2d(nhwc, pack(weight)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["3x3", "strided", "same, lopsided and dilated", "depthwise", "unbatched"])
def test_numerical_gradients(name):
    x_shape, weight_shape, geometry = GEOMETRIES[name]
    x_shape = (*((1,) * (len(x_shape) - 3)), x_shape[-3], 4, 5)
    x, weight, bias, _ = operands(x_shape, weight_shape, geometry)
    packed = pack(weight)
    leaves = tuple(t.requires_grad_() for t in (x, packed.values, bias))
    for check in (gradcheck, gradgradcheck):
        assert check(sparse(packed, geometry), leaves, fast_mode=True)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_opcheck(dtypes, device):
    x, weight, bias, _ = operands((2, 4, 5, 6), (4, 2, 3, 3), {"groups": 2}, 0.3, dtypes, device)
    packed = pack(weight)
    pieces, geometry = (packed.values, packed.columns, packed.offsets, packed.shape), ([2, 1], [1, 0], [1, 1], 2)
    for strided in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.library.opcheck(torch.ops.aswl.sparse_conv2d.default, (strided, *pieces, bias, *geometry))
        torch.library.opcheck(torch.ops.aswl.sparse_conv2d.default, (strided, *pieces, None, *geometry))


X, P = torch.ones(2, 3, 5, 5), pack(torch.ones(4, 3, 3, 3))


@pytest.mark.parametrize(
    "args, geometry, words",
    [
        ((X.int(), P), {}, "want floating x and weight; got int32[2, 3, 5, 5] on cpu"),
        ((X.double(), P), {}, "want x of weight's dtype, or bf16/fp16 x with fp32 weight; got float64[2, 3, 5, 5]"),
        ((X, P.to("meta")), {}, "want x and weight on one device"),
        ((X[:, :2], P), {}, "want x [N, 3, H, W] or [3, H, W], H and W not 0; got float32[2, 2, 5, 5] on cpu"),
        ((X[0, 0], P), {}, "got float32[5, 5] on cpu"),
        ((X, pack(torch.ones(4, 3))), {}, "want weight [out, in/groups, height, width]"),
        ((X, P, torch.ones(3)), {}, "want bias [4] of weight's dtype and device; got float32[3] on cpu"),
        ((X, P), {"groups": 3}, "want groups that divide the 4 output channels; got 3"),
        ((X, P), {"stride": (1, 0)}, "want stride one or two ints >= 1; got (1, 0)"),
        ((X, P), {"padding": "none"}, "want padding 'same', 'valid' or ints; got 'none'"),
        ((X, P), {"padding": "same", "stride": 2}, "want stride 1 with padding='same'; got [2, 2]"),
        ((X, P), {"dilation": 3}, "want x at least as large as the dilated kernel [3, 3] after padding [0, 0]"),
    ],
)
def test_refuses(args, geometry, words):
    with pytest.raises(ValueError) as error:
        sparse_conv2d(*args, **geometry)
    assert str(error.value).startswith("sparse_conv2d: want ") and words in str(error.value)
