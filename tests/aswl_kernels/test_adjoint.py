"""The adjoint of a packed weight: its product with an output gradient is the input gradient."""

import pytest
import torch
import torch.nn.functional as F
from harness import randn
from hypothesis import given
from hypothesis import strategies as st

from aswl_kernels import PackedWeight, adjoint, native, pack, reference, sparse_conv2d, sparse_linear, unpack

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def sparse(shape, density, dtype=torch.float64):
    return randn(shape).where(torch.rand(shape) < density, 0).to(dtype)


def assert_adjoint(weight, groups=1):
    """The adjoint is the packed weight with its axes exchanged and its taps turned around, bit for bit."""
    out, inputs, *kernel = weight.shape
    packed = adjoint(pack(weight), groups)
    turned = weight.view(groups, out // groups, inputs, torch.Size(kernel).numel()).transpose(1, 2).flip(-1)
    want = pack(turned.reshape(groups * inputs, out // groups, *kernel))
    assert packed.shape == want.shape
    pieces = [(p.values, p.columns, p.offsets) for p in (packed, want)]
    for got, exact in zip(*pieces, strict=True):
        torch.testing.assert_close(got, exact, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", [(7, 13), (4, 6, 3, 3), (2, 4, 1, 5), (1, 1), (3, 0), (0, 5)], ids=str)
def test_exchanges_axes_and_turns_taps(shape, density, dtype, device):
    weight = sparse(shape, density, dtype).to(device)
    if weight.numel():
        weight.view(-1)[-1] = float("nan")
    for groups in (1, 2):
        if shape[0] % groups == 0:
            assert_adjoint(weight, groups)


@given(st.integers(1, 3), st.integers(0, 9), st.integers(1, 9), st.integers(1, 4), st.floats(0, 1))
def test_any_shape(groups, outputs, inputs, taps, density):
    assert_adjoint(sparse((groups * outputs, inputs, taps, 2), density), groups)


def test_worked_by_hand(device):
    weight = torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]], [[[0.0, 0.0]], [[4.0, 5.0]]]], device=device)  # [2, 2, 1, 2]
    turned = adjoint(pack(weight))
    assert unpack(turned).tolist() == [[[[2, 1]], [[0, 0]]], [[[3, 0]], [[5, 4]]]]
    assert turned.columns.tolist() == [0, 1, 0, 2, 3]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads):
    torch.set_num_threads(threads)
    assert_adjoint(sparse((300, 400), 0.2))  # enough nonzeros for more than one part
    assert_adjoint(sparse((96, 40, 3, 3), 0.9), 3)


def test_gives_the_input_gradient_of_the_linear_product():
    x, weight = randn((5, 9)).requires_grad_(), sparse((7, 9), 0.5)
    grad = randn((5, 7))
    (want,) = torch.autograd.grad(F.linear(x, weight), x, grad)
    torch.testing.assert_close(sparse_linear(grad, adjoint(pack(weight))), want)


@pytest.mark.parametrize("padding, dilation, groups", [((0, 1), 1, 1), ((1, 2), (2, 1), 2), ((2, 0), 2, 1)])
def test_gives_the_input_gradient_of_the_convolution(padding, dilation, groups):
    x, weight = randn((2, 6, 9, 8)).requires_grad_(), sparse((4, 6 // groups, 3, 3), 0.5)
    y = F.conv2d(x, weight, None, 1, padding, dilation, groups)
    grad = torch.randn_like(y)
    (want,) = torch.autograd.grad(y, x, grad)
    steps = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    turned = [2 * d - p for d, p in zip(steps, padding)]
    got = sparse_conv2d(grad, adjoint(pack(weight), groups), None, 1, turned, dilation, groups)
    torch.testing.assert_close(got, want)


def test_opcheck(device):
    packed = pack(sparse((4, 3, 2, 2), 0.5).to(device))
    pieces = (packed.values, packed.columns, packed.offsets, packed.shape)
    torch.library.opcheck(torch.ops.aswl.adjoint.default, (*pieces, 2))
    for got, want in zip(torch.ops.aswl.adjoint(*pieces, 2), reference.adjoint(*pieces, 2)):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("groups", [0, 3, -1])
def test_refuses_groups_that_do_not_divide(groups):
    with pytest.raises(ValueError, match=f"adjoint: want groups that divide the 4 rows; got {groups}"):
        adjoint(pack(torch.ones(4, 2)), groups)


def test_refuses_rows_that_columns_cannot_count():
    values, columns = torch.empty(0, device="meta"), torch.empty(0, dtype=torch.int32, device="meta")
    packed = PackedWeight(values, columns, torch.empty(2**31 + 1, dtype=torch.int64, device="meta"), (2**31, 1))
    with pytest.raises(ValueError, match=r"want rows of fewer than 2\*\*31 elements; got \(1, 2147483648\)"):
        adjoint(packed)


@pytest.mark.parametrize("column, offset", [(4, 2), (-1, 2), (0, 7), (0, -1)])
@pytest.mark.skipif(not native.AVAILABLE, reason="the reference has PyTorch's own errors")
def test_the_operator_refuses_indices_that_lead_outside(column, offset):
    columns, offsets = torch.tensor([0, 1, column], dtype=torch.int32), torch.tensor([0, offset, 3])
    with pytest.raises(RuntimeError, match="adjoint: want (columns from 0 to 3|offsets that ascend)"):
        torch.ops.aswl.adjoint(torch.ones(3), columns, offsets, [2, 4], 1)
