"""The masked linear product against PyTorch's own and the formulas of the method."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from harness import DTYPES, assert_follows_formula, by_formula, layouts, masked, operands, run
from torch.autograd import gradcheck, gradgradcheck

from aswl_kernels import masked_linear, reference

NAN = float("nan")
EVERY = (0, 1, 3, 4)  # x, weight, attention, bias
ops = pytest.mark.parametrize(
    "op", [pytest.param(f, id=f.__module__) for f in (masked_linear, reference.masked_linear)]
)


@ops
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(
    "x_shape, outputs",
    [((4, 6), 5), ((33, 65), 31), ((2, 3, 17), 4), ((7,), 3), ((1, 1), 1), ((5, 1), 3), ((2, 1, 3, 8), 1)],
    ids=str,
)
def test_follows_the_formula(op, x_shape, outputs, dtypes, device):
    args = operands(x_shape, (outputs, x_shape[-1]), dtypes, device)
    grad = torch.randn(*x_shape[:-1], outputs, dtype=torch.float64).to(device, dtypes[0])
    assert_follows_formula(op, F.linear, args, grad)


@pytest.mark.parametrize(
    "x_shape, outputs", [((0, 4), 3), ((2, 0, 4), 3), ((3, 0), 2), ((0,), 2), ((3, 4), 0), ((0, 0), 0)], ids=str
)
def test_empty(x_shape, outputs, device):
    args = operands(x_shape, (outputs, x_shape[-1]), device=device)
    grad = torch.randn(*x_shape[:-1], outputs, dtype=torch.float64, device=device)
    assert_follows_formula(masked_linear, F.linear, args, grad)


def test_worked_by_hand(device):
    weight = torch.tensor([[1.0, -0.5], [0.25, -2.0]], device=device)
    args = (torch.tensor([[1.0, 10.0]]), weight, torch.tensor(0.5), torch.tensor([2.0]), torch.tensor([3.0, 4.0]))
    grad = torch.tensor([[1.0, 100.0]], device=device)
    y, dx, dw, da, db = run(masked_linear, tuple(t.to(device) for t in args), grad, EVERY)
    assert y.tolist() == [[2 * (1 - 5 + 3), 2 * (-20 + 4)]]  # the tie -0.5 is kept, 0.25 is pruned
    assert dx.tolist() == [[2 * 1, 2 * (-0.5 - 200)]]
    assert dw.tolist() == [[2, 20], [200, 2000]]  # a G, for the pruned 0.25 too
    assert da.tolist() == [(1 - 5 - 2000) + (3 + 400)]  # sum(G * sparse) + sum(G_bias * bias)
    assert db.tolist() == [2, 200]


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_and_bias_are_optional(attention, bias):
    x, weight, threshold, a, b = operands((4, 6), (5, 6))
    grad = torch.randn(4, 5).double()
    given = (x, weight, threshold, a if attention else None, b if bias else None)
    wrt = tuple(i for i in EVERY if given[i] is not None)
    ones = (x, weight, threshold, a if attention else torch.ones(1), b if bias else torch.zeros_like(b))
    want = dict(zip((-1, *EVERY), by_formula(F.linear, *ones, grad)))
    for i, got in zip((-1, *wrt), run(masked_linear, given, grad, wrt), strict=True):
        torch.testing.assert_close(got, want[i])


@pytest.mark.parametrize("wrt", [(i,) for i in EVERY], ids=["x", "weight", "attention", "bias"])
def test_each_gradient_alone(wrt):
    args, grad = operands((4, 6), (5, 6)), torch.randn(4, 5).double()
    want = dict(zip((-1, *EVERY), by_formula(F.linear, *args, grad)))
    torch.testing.assert_close(run(masked_linear, args, grad, wrt)[1], want[wrt[0]])


def test_unscaled_takes_the_attention_for_1_and_gives_it_its_gradient():
    x, weight, threshold, attention, bias = operands((4, 6), (5, 6))
    y = F.linear(x, weight, bias)
    grad = torch.randn_like(y)
    unscaled = partial(masked_linear, scaled=False)
    want = by_formula(F.linear, x, weight, threshold, torch.ones(1).double(), bias, grad)
    torch.testing.assert_close(run(unscaled, (x, weight, threshold, attention, bias), grad, EVERY), want)
    torch.testing.assert_close(unscaled(x, weight, threshold, None, bias), want[0])


def test_the_threshold_has_no_gradient():
    x, weight, threshold, attention, bias = operands((4, 6), (5, 6))
    y = masked_linear(x, weight, threshold.requires_grad_(), attention.requires_grad_(), bias)
    assert torch.autograd.grad(y.sum(), threshold, allow_unused=True) == (None,)


def test_nan_survives(device):
    x, weight, threshold, attention, bias = operands((4, 6), (5, 6), device=device)
    weight[2, 3] = NAN
    assert masked_linear(x, weight, threshold, attention, bias).isnan().all(0).tolist() == [i == 2 for i in range(5)]
    weight[2, 3], x[1, 0] = 1, NAN
    assert masked_linear(x, weight, threshold, attention, bias).isnan().all(1).tolist() == [i == 1 for i in range(4)]


def test_an_infinite_weight_is_kept(device):
    weight = torch.tensor([[float("inf"), 1.0]], device=device)
    y = masked_linear(torch.ones(1, 2, device=device), weight, torch.tensor(float("inf"), device=device))
    assert y.item() == float("inf")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_mask_of_an_fp32_weight_is_decided_in_fp32(dtype, device):
    threshold = torch.tensor(1 + 2**-12, device=device)  # 1 in either dtype, as is the weight beside it
    weight = torch.tensor([[1 + 2**-11], [1.0]], device=device)
    y = masked_linear(torch.ones(1, 1, dtype=dtype, device=device), weight, threshold)
    assert y.dtype == dtype and y.tolist() == [[1, 0]]
    assert masked_linear(torch.ones(1, 1, dtype=dtype, device=device), weight.to(dtype), threshold).tolist() == [[0, 0]]


def test_strides_do_not_matter(device):
    x, weight, threshold, attention, bias = operands((4, 6), (5, 6), device=device)
    grad = torch.randn(4, 5, device=device).double()
    want = run(masked_linear, (x, weight, threshold, attention, bias), grad, EVERY)
    for strided_x, strided_w, strided_grad in zip(layouts(x), layouts(weight), layouts(grad)):
        got = run(masked_linear, (strided_x, strided_w, threshold, attention, bias), strided_grad, EVERY)
        torch.testing.assert_close(got, want)


def test_expanded_inputs(device):
    x, weight, threshold, attention, bias = operands((1, 6), (1, 6), device=device)
    expanded = (x.expand(4, 6), weight.expand(5, 6), threshold, attention, bias.expand(5))
    grad = torch.ones((), device=device).double().expand(4, 5)  # as from .sum()
    want = run(masked_linear, tuple(t.clone() for t in expanded), grad.clone(), EVERY)
    torch.testing.assert_close(run(masked_linear, expanded, grad, EVERY), want)


@pytest.mark.parametrize("x_shape", [(3, 4), (4,), (2, 2, 4)], ids=str)
def test_numerical_gradients(x_shape):
    x, weight, threshold, attention, bias = operands(x_shape, (3, 4))
    x, weight, attention, bias = (t.requires_grad_() for t in (x, weight, attention, bias))
    zero = torch.zeros(())  # with nothing pruned, straight-through is the derivative
    assert gradcheck(masked_linear, (x, weight, zero, attention, bias))
    assert gradgradcheck(masked_linear, (x, weight, zero, attention, bias))
    pruned = (x, weight.detach(), threshold, attention, bias)
    assert gradcheck(masked_linear, pruned) and gradgradcheck(masked_linear, pruned)


def test_the_scaled_product_equals_the_scaled_output():
    x, weight, threshold, attention, bias = operands((4, 6), (5, 6))
    want = attention * F.linear(x, masked(weight, threshold), bias)  # the layer as the paper writes it
    torch.testing.assert_close(masked_linear(x, weight, threshold, attention, bias), want)


@pytest.mark.parametrize("dtypes", DTYPES)
def test_opcheck(dtypes, device):
    x, weight, threshold, attention, bias = operands((4, 6), (5, 6), dtypes, device)
    bias = bias.to(x.dtype)
    for strided in (x, *layouts(x)):
        torch.library.opcheck(torch.ops.aswl.masked_linear.default, (strided, weight, threshold, attention, bias))
    torch.library.opcheck(torch.ops.aswl.masked_linear.default, (x, weight, threshold, None, None))


X, W, T, A, B = torch.ones(2, 3), torch.ones(4, 3), torch.zeros(()), torch.ones(1), torch.ones(4)


@pytest.mark.parametrize(
    "args, words",
    [
        ((X.long(), W, T), "want floating x and weight; got int64[2, 3] on cpu, float32[4, 3] on cpu"),
        ((X, W.to(torch.complex64), T), "want floating x and weight; got float32[2, 3] on cpu, complex64[4, 3] on cpu"),
        ((X, W.to(torch.float8_e4m3fn), T), "got float32[2, 3] on cpu, float8_e4m3fn[4, 3] on cpu"),
        ((X, W.to("meta"), T), "want x and weight on one device; got float32[2, 3] on cpu, float32[4, 3] on meta"),
        ((X.double(), W, T), "want x of weight's dtype, or bf16/fp16 x with fp32 weight; got float64[2, 3]"),
        ((X, W.half(), T), "want x of weight's dtype"),
        ((X.half(), W.bfloat16(), T), "want x of weight's dtype"),
        ((X, W[0], T), "want weight [out, in]; got float32[3] on cpu"),
        ((X, W[None], T), "want weight [out, in]; got float32[1, 4, 3] on cpu"),
        ((X.t(), W, T), "want x [..., 3]; got float32[3, 2] on cpu"),
        ((X[0, 0], W, T), "want x [..., 3]; got float32[] on cpu"),
        ((X, W, torch.zeros(4)), "want threshold a floating 0-d or [1] tensor on cpu; got float32[4] on cpu"),
        ((X, W, T, torch.ones(4)), "want attention a floating 0-d or [1] tensor on cpu; got float32[4] on cpu"),
        ((X, W, T, A, torch.ones(3)), "want bias [4] of weight's dtype and device; got float32[3] on cpu"),
        ((X, W, T, A, B.double()), "want bias [4] of weight's dtype and device; got float64[4] on cpu"),
        ((X, W, T, A, B.to("meta")), "got float32[4] on meta"),
    ],
)
def test_refuses(args, words):
    with pytest.raises(ValueError) as error:
        masked_linear(*args)
    assert str(error.value).startswith("masked_linear: want ") and words in str(error.value)


def test_a_weight_that_is_masked_already(device):
    x, weight, threshold, attention, bias = operands((3, 5), (4, 5), device=device)
    assert torch.equal(masked_linear(x, weight, None, bias=bias), F.linear(x, weight, bias))
    for options in ({"attention": attention}, {"learnable": threshold}, {"products": "sparse"}):
        with pytest.raises(
            ValueError, match="want a threshold, or neither attention nor learnable, and products 'dense'"
        ):
            masked_linear(x, weight, None, **options)
