"""The masked convolution against PyTorch's own and the formulas of the method, over every geometry."""

import pytest
import torch
import torch.nn.functional as F
from harness import (
    DTYPES,
    GEOMETRIES,
    assert_follows_formula,
    by_formula,
    conv,
    geometries,
    geometry_table,
    layouts,
    masked,
    operands,
    run,
)
from hypothesis import given
from torch.autograd import gradcheck, gradgradcheck

from aswl_kernels import masked_conv2d

NAN = float("nan")
EVERY = (0, 1, 3, 4)  # x, weight, attention, bias


def masked_conv(geometry):
    return lambda *args: masked_conv2d(*args, **geometry)


def output_grad(x, weight, geometry):
    return torch.randn(conv(geometry)(x.double(), weight.double()).shape).to(x.device, x.dtype)


@pytest.mark.parametrize("dtypes", DTYPES)
@geometry_table
def test_follows_the_formula(x_shape, weight_shape, geometry, dtypes, device):
    args = operands(x_shape, weight_shape, dtypes, device)
    grad = output_grad(*args[:2], geometry)
    assert_follows_formula(masked_conv(geometry), conv(geometry), args, grad)


def test_unscaled_takes_the_attention_for_1_and_gives_it_its_gradient():
    args = operands((2, 3, 5, 7), (4, 3, 3, 3))
    x, weight, threshold, _, bias = args
    grad = torch.randn(2, 4, 3, 5).double()
    unscaled = masked_conv({"scaled": False})
    want = by_formula(F.conv2d, x, weight, threshold, torch.ones(1).double(), bias, grad)
    torch.testing.assert_close(run(unscaled, args, grad, EVERY), want)
    torch.testing.assert_close(unscaled(x, weight, threshold, None, bias), want[0])


@given(geometries())
def test_any_geometry(row):
    x_shape, weight_shape, geometry = row
    args = operands(x_shape, weight_shape)
    assert_follows_formula(masked_conv(geometry), conv(geometry), args, output_grad(*args[:2], geometry))


@pytest.mark.parametrize("x_shape, weight_shape", [((0, 3, 5, 5), (4, 3, 3, 3)), ((2, 0, 5, 5), (4, 0, 3, 3))], ids=str)
def test_empty(x_shape, weight_shape, device):
    args = operands(x_shape, weight_shape, device=device)
    assert_follows_formula(masked_conv({}), conv({}), args, output_grad(*args[:2], {}))


def test_worked_by_hand(device):
    weight = torch.tensor([[[[1.0, -0.5, 0.25]]]], device=device)
    x = torch.tensor([[[[1.0, 10.0, 100.0, 1000.0]]]], device=device)
    scalars = (torch.tensor(0.5), torch.tensor([2.0]), torch.tensor([3.0]))
    grad = torch.tensor([[[[1.0, 7.0]]]], device=device)
    y, dx, dw, da, db = run(masked_conv2d, (x, weight, *(t.to(device) for t in scalars)), grad, EVERY)
    assert y.flatten().tolist() == [2 * (1 - 5 + 3), 2 * (10 - 50 + 3)]  # the tie -0.5 is kept, 0.25 is pruned
    assert dx.flatten().tolist() == [2 * 1, 2 * (-0.5 + 7), 2 * -3.5, 0]
    assert dw.flatten().tolist() == [2 * 71, 2 * 710, 2 * 7100]  # a G, for the pruned 0.25 too
    assert da.tolist() == [71 - 355 + 3 * 8]  # sum(G * sparse) + sum(G_bias * bias)
    assert db.tolist() == [2 * 8]


def test_the_scaled_product_equals_the_scaled_output():
    x, weight, threshold, attention, bias = operands((2, 3, 5, 5), (4, 3, 3, 3))
    want = attention * F.conv2d(x, masked(weight, threshold), bias)  # the layer as the paper writes it
    torch.testing.assert_close(masked_conv2d(x, weight, threshold, attention, bias), want)


def test_attention_and_bias_are_optional():
    x, weight, threshold, _, _ = operands((2, 3, 5, 5), (4, 3, 3, 3))
    grad = output_grad(x, weight, {})
    leaves = x.clone().requires_grad_(), masked(weight, threshold).requires_grad_()
    y = F.conv2d(*leaves)
    want = (y.detach(), *torch.autograd.grad(y, leaves, grad))
    torch.testing.assert_close(run(masked_conv2d, (x, weight, threshold), grad, (0, 1)), want)


@pytest.mark.parametrize("wrt", EVERY)
def test_each_gradient_alone(wrt):
    args = operands((2, 3, 5, 5), (4, 3, 3, 3))
    grad = output_grad(*args[:2], {})
    every = dict(zip(EVERY, run(masked_conv2d, args, grad, EVERY)[1:]))
    torch.testing.assert_close(run(masked_conv2d, args, grad, (wrt,))[1], every[wrt])


def test_nan_survives(device):
    x, weight, threshold, attention, bias = operands((2, 3, 5, 5), (4, 3, 3, 3), device=device)
    weight[1, 2, 0, 0] = NAN
    y = masked_conv2d(x, weight, threshold, attention, bias)
    assert y.isnan().all(0).all(1).all(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_mask_of_an_fp32_weight_is_decided_in_fp32(dtype, device):
    threshold = torch.tensor(1 + 2**-12, device=device)  # 1 in either dtype, as is the weight beside it
    weight = torch.tensor([1 + 2**-11, 1.0], device=device).reshape(2, 1, 1, 1)
    y = masked_conv2d(torch.ones(1, 1, 1, 1, dtype=dtype, device=device), weight, threshold)
    assert y.dtype == dtype and y.flatten().tolist() == [1, 0]


def test_strides_do_not_matter(device):
    x, weight, threshold, attention, bias = operands((2, 4, 5, 6), (4, 4, 3, 3), device=device)
    grad = output_grad(x, weight, {})
    want = run(masked_conv2d, (x, weight, threshold, attention, bias), grad, EVERY)
    for strided_x, strided_w, strided_grad in zip(layouts(x), layouts(weight), layouts(grad)):
        got = run(masked_conv2d, (strided_x, strided_w, threshold, attention, bias), strided_grad, EVERY)
        torch.testing.assert_close(got, want)
    expanded = (x[:1].expand(3, 4, 5, 6), weight[:1].expand(4, 4, 3, 3), threshold, attention, bias)
    ones = torch.ones((), device=device).double().expand(3, 4, 3, 4)  # as from .sum()
    want = run(masked_conv2d, tuple(t.clone() for t in expanded), ones.clone(), EVERY)
    torch.testing.assert_close(run(masked_conv2d, expanded, ones, EVERY), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_stays_channels_last(dtype, device):
    x, weight, threshold, attention, bias = operands((2, 8, 6, 6), (8, 8, 3, 3), (dtype, dtype), device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    for format in (torch.contiguous_format, torch.channels_last):
        y = masked_conv2d(x, weight.contiguous(memory_format=format), threshold, attention, bias, padding=1)
        assert y.is_contiguous(memory_format=torch.channels_last)
        (x_grad,) = torch.autograd.grad(y.square().sum(), x)
        assert x_grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["3x3", "strided", "same, lopsided and dilated", "depthwise", "unbatched"])
def test_numerical_gradients(name):
    x_shape, weight_shape, geometry = GEOMETRIES[name]
    x_shape = (*((1,) * (len(x_shape) - 3)), x_shape[-3], 4, 5)
    x, weight, threshold, attention, bias = operands(x_shape, weight_shape)
    x, weight, attention, bias = (t.requires_grad_() for t in (x, weight, attention, bias))
    zero = torch.zeros(())  # with nothing pruned, straight-through is the derivative
    for check in (gradcheck, gradgradcheck):
        assert check(masked_conv(geometry), (x, weight, zero, attention, bias), fast_mode=True)
        assert check(masked_conv(geometry), (x, weight.detach(), threshold, attention, bias), fast_mode=True)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_opcheck(dtypes, device):
    op = torch.ops.aswl.masked_conv2d.default
    x, weight, threshold, attention, bias = operands((2, 4, 5, 6), (4, 2, 3, 3), dtypes, device)
    geometry = ([2, 1], [1, 0], [1, 1], 2)
    for strided in (x, x.contiguous(memory_format=torch.channels_last)):
        torch.library.opcheck(op, (strided, weight, threshold, attention, bias.to(x.dtype), *geometry))
    torch.library.opcheck(op, (x, weight, threshold, None, None, *geometry))


X, W, T = torch.ones(2, 3, 5, 5), torch.ones(4, 3, 3, 3), torch.zeros(())


@pytest.mark.parametrize(
    "args, geometry, words",
    [
        ((X.long(), W, T), {}, "want floating x and weight; got int64[2, 3, 5, 5] on cpu"),
        ((X.double(), W, T), {}, "want x of weight's dtype, or bf16/fp16 x with fp32 weight; got float64[2, 3, 5, 5]"),
        ((X, W.to("meta"), T), {}, "want x and weight on one device"),
        ((X, W, torch.zeros(2)), {}, "want threshold a floating 0-d or [1] tensor on cpu; got float32[2] on cpu"),
        ((X, W, T, torch.ones(2)), {}, "want attention a floating 0-d or [1] tensor on cpu; got float32[2] on cpu"),
        ((X, W, T, None, torch.ones(3)), {}, "want bias [4] of weight's dtype and device; got float32[3] on cpu"),
        ((X, W[0], T), {}, "want weight [out, in/groups, height, width]"),
        ((X, W[..., :0], T), {}, "got [4, 3, 3, 0]"),
        ((X, W[:0], T), {}, "got [0, 3, 3, 3]"),
        ((X[0, 0], W, T), {}, "want x [N, 3, H, W] or [3, H, W], H and W not 0; got float32[5, 5] on cpu"),
        ((X[None], W, T), {}, "got float32[1, 2, 3, 5, 5] on cpu"),
        ((X[:, :2], W, T), {}, "got float32[2, 2, 5, 5] on cpu"),
        ((X[..., :0], W, T), {"padding": 2}, "got float32[2, 3, 5, 0] on cpu"),
        ((X, W, T), {"groups": 2}, "want x [N, 6, H, W] or [6, H, W], H and W not 0; got float32[2, 3, 5, 5] on cpu"),
        ((X, W, T), {"groups": 3}, "want groups that divide the 4 output channels; got 3"),
        ((X, W, T), {"groups": 0}, "want groups that divide the 4 output channels; got 0"),
        ((X, W, T), {"groups": 1.0}, "want groups that divide the 4 output channels; got 1.0"),
        ((X, W, T), {"stride": 0}, "want stride one or two ints >= 1; got 0"),
        ((X, W, T), {"stride": (1, 1, 1)}, "want stride one or two ints >= 1; got (1, 1, 1)"),
        ((X, W, T), {"stride": 1.5}, "want stride one or two ints >= 1; got 1.5"),
        ((X, W, T), {"dilation": (1, 0)}, "want dilation one or two ints >= 1; got (1, 0)"),
        ((X, W, T), {"dilation": ()}, "want dilation one or two ints >= 1; got ()"),
        ((X, W, T), {"padding": -1}, "want padding one or two ints >= 0; got -1"),
        ((X, W, T), {"padding": None}, "want padding one or two ints >= 0; got None"),
        ((X, W, T), {"padding": "full"}, "want padding 'same', 'valid' or ints; got 'full'"),
        ((X, W, T), {"padding": "same", "stride": 2}, "want stride 1 with padding='same'; got [2, 2]"),
        ((X, W, T), {"dilation": 3}, "want x at least as large as the dilated kernel [3, 3] after padding [0, 0]"),
        ((X[..., :2], W, T), {}, "got float32[2, 3, 5, 2] on cpu"),
    ],
)
def test_refuses(args, geometry, words):
    with pytest.raises(ValueError) as error:
        masked_conv2d(*args, **geometry)
    assert str(error.value).startswith("masked_conv2d: want ") and words in str(error.value)


@geometry_table
def test_a_weight_that_is_masked_already(x_shape, weight_shape, geometry, device):
    x, weight, _, attention, bias = operands(x_shape, weight_shape, device=device)
    got = masked_conv2d(x, weight, None, bias=bias, **geometry)
    torch.testing.assert_close(got, conv(geometry)(x, weight, bias))
    with pytest.raises(ValueError, match="want a threshold, or neither attention"):
        masked_conv2d(x, weight, None, attention, **geometry)
