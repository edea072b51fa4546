"""products="sparse" of the masked operators: values and every gradient as on the dense path."""

import importlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from harness import DTYPES, assert_follows_formula, conv, geometries, geometry_table, layouts, operands, randn, run
from hypothesis import given
from torch.autograd import gradcheck, gradgradcheck

from aswl_kernels import masked_conv2d, masked_linear, native

EVERY = (0, 1, 3, 4)  # x, weight, attention, bias
linear = partial(masked_linear, products="sparse")


def convolve(geometry):
    return lambda *args: masked_conv2d(*args, **geometry, products="sparse")


def counted(monkeypatch):
    """The packed operators that are called from here on."""
    calls = []
    users = {"sparse_linear_op": ["masked_linear"], "sparse_conv2d_op": ["masked_conv2d", "sparse_conv2d"]}
    for name, user in ((name, user) for name, users_of in users.items() for user in users_of):
        module = importlib.import_module(f"aswl_kernels.{user}")  # the package's attribute is the function
        op = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, op=op, name=name: (calls.append(name), op(*args))[1])
    return calls


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("x_shape, outputs", [((4, 6), 5), ((33, 65), 31), ((2, 3, 17), 4), ((7,), 3), ((70, 1), 1)])
def test_linear_follows_the_formula(x_shape, outputs, dtypes, device):
    args = operands(x_shape, (outputs, x_shape[-1]), dtypes, device)
    assert_follows_formula(linear, F.linear, args, randn((*x_shape[:-1], outputs), dtypes[0]).to(device))


@pytest.mark.parametrize("x_shape, outputs", [((0, 4), 3), ((3, 0), 2), ((3, 4), 0), ((0, 0), 0)], ids=str)
def test_empty_linear(x_shape, outputs, device):
    args = operands(x_shape, (outputs, x_shape[-1]), device=device)
    assert_follows_formula(linear, F.linear, args, randn((*x_shape[:-1], outputs)).to(device))


@geometry_table
@pytest.mark.parametrize("dtypes", DTYPES)
def test_convolution_follows_the_formula(x_shape, weight_shape, geometry, dtypes, device):
    args = operands(x_shape, weight_shape, dtypes, device)
    y = conv(geometry)(args[0].double(), args[1].double())
    assert_follows_formula(convolve(geometry), conv(geometry), args, randn(y.shape, dtypes[0]).to(device))


@given(geometries())
def test_convolution_of_any_geometry(row):
    x_shape, weight_shape, geometry = row
    args = operands(x_shape, weight_shape)
    assert_follows_formula(convolve(geometry), conv(geometry), args, randn(conv(geometry)(*args[:2]).shape))


def test_strides_do_not_matter():
    x, weight, threshold, attention, bias = operands((2, 3, 5, 6), (4, 3, 3, 3))
    grad = randn((2, 4, 5, 6))
    op = convolve({"padding": 1})
    want = run(op, (x, weight, threshold, attention, bias), grad, EVERY)
    for strided_x, strided_w, strided_grad in zip(layouts(x), layouts(weight), layouts(grad)):
        torch.testing.assert_close(
            run(op, (strided_x, strided_w, threshold, attention, bias), strided_grad, EVERY), want
        )


@pytest.mark.parametrize("wrt", [(i,) for i in EVERY], ids=["x", "weight", "attention", "bias"])
@pytest.mark.parametrize("scaled", [True, False])
def test_each_gradient_alone(wrt, scaled):
    for op, shapes in ((masked_linear, ((4, 6), (5, 6))), (masked_conv2d, ((2, 3, 5, 6), (4, 3, 3, 3)))):
        args = operands(*shapes)
        grad = randn(op(*args).shape)
        dense, sparse = (partial(op, scaled=scaled, products=products) for products in ("dense", "sparse"))
        torch.testing.assert_close(run(sparse, args, grad, wrt), run(dense, args, grad, wrt))
        without = (*args[:3], None, None)
        if wrt[0] < 3:
            torch.testing.assert_close(run(sparse, without, grad, wrt), run(dense, without, grad, wrt))


def test_nan_survives_and_only_kept_weights_meet_it():
    x, weight, threshold, attention, bias = operands((4, 6), (5, 6))
    weight[2, 3] = float("nan")
    y = linear(x, weight, threshold, attention, bias)
    assert y.isnan().all(0).tolist() == [i == 2 for i in range(5)]


def test_products_are_sparse_in_both_directions(monkeypatch):
    calls = counted(monkeypatch)
    run(linear, operands((4, 6), (5, 6)), randn((4, 5)), EVERY)
    run(convolve({"padding": 1}), operands((2, 3, 5, 6), (4, 3, 3, 3)), randn((2, 4, 5, 6)), EVERY)
    assert calls == ["sparse_linear_op"] * 2 + ["sparse_conv2d_op"] * 2


@pytest.mark.parametrize("geometry", [{"stride": 2}, {"padding": 3}], ids=str)
def test_the_input_gradient_stays_dense_where_the_adjoint_is_no_convolution(geometry, monkeypatch):
    calls = counted(monkeypatch)
    args = operands((2, 3, 7, 7), (4, 3, 3, 3))
    run(convolve(geometry), args, randn(conv(geometry)(*args[:2]).shape), EVERY)
    assert calls == ["sparse_conv2d_op"]


def test_second_derivatives():
    x, weight, _, attention, bias = (t.requires_grad_(t.dim() > 0) for t in operands((3, 4), (3, 4)))
    args = (x, weight, torch.zeros(()), attention, bias)  # with nothing pruned, straight-through is the derivative
    assert gradcheck(linear, args) and gradgradcheck(linear, args)
    x, weight, _, attention, bias = (t.requires_grad_(t.dim() > 0) for t in operands((1, 2, 3, 3), (2, 2, 2, 2)))
    args = (x, weight, torch.zeros(()), attention, bias)
    assert gradcheck(convolve({"padding": 1}), args) and gradgradcheck(convolve({"padding": 1}), args)


def test_compiled_and_transformed_products_are_dense(monkeypatch):
    calls = counted(monkeypatch)
    args = operands((4, 6), (5, 6))
    want = masked_linear(*args)
    torch.testing.assert_close(torch.compile(linear, fullgraph=True, backend="eager")(*args), want)
    torch.testing.assert_close(torch.func.vmap(linear, (0, None, None, None, None))(args[0][None], *args[1:])[0], want)
    gradient = torch.func.grad(lambda x: linear(x, *args[1:]).sum())(args[0])
    torch.testing.assert_close(gradient, torch.func.grad(lambda x: masked_linear(x, *args[1:]).sum())(args[0]))
    assert calls == []


@pytest.mark.skipif(not native.AVAILABLE, reason="oneDNN's bits depend on the threads")
def test_any_number_of_threads_gives_the_same_output_and_input_gradient():
    args = operands((65, 300), (200, 300), (torch.float32, torch.float32))
    grad = randn((65, 200), torch.float32)
    one = run(linear, args, grad, (0,))
    for threads in (2, 3):
        torch.set_num_threads(threads)
        torch.testing.assert_close(run(linear, args, grad, (0,)), one, rtol=0, atol=0)


@pytest.mark.parametrize(
    "op, shapes", [(masked_linear, ((4, 6), (5, 6))), (masked_conv2d, ((1, 2, 3, 3), (2, 2, 1, 1)))]
)
def test_refuses_other_products(op, shapes):
    every = r"\('dense', 'fused', 'sparse'\)"
    with pytest.raises(ValueError, match=f"{op.__name__}: want products one of {every}; got 'auto'"):
        op(*operands(*shapes), products="auto")
