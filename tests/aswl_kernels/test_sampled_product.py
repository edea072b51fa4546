"""Single elements of a product, and the weight gradient that is restricted to them."""

import importlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from harness import assert_no_worse, by_formula, conv, operands, randn, run
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from aswl_kernels import masked_conv2d, masked_linear, native, pack, reference
from aswl_kernels.sampled_product import sampled_product_op

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EVERY = (0, 1, 3, 4)  # x, weight, attention, bias


def assert_sampled(batch, outputs, inputs, density, dtype):
    left, right = randn((batch, outputs), dtype), randn((batch, inputs), dtype)
    where = torch.rand(outputs, inputs) < density
    packed = pack(where.float())
    got = sampled_product_op(left, right, packed.columns, packed.offsets)
    product = left.mT @ right if batch else left.new_zeros(outputs, inputs)
    exact = (left.double().mT @ right.double()).where(where, 0)
    assert_no_worse(got, product.where(where, 0), exact)
    assert (got[~where] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [0, 1, 7, 16, 33, 64, 130, 257, 300])
def test_past_every_tile(batch, dtype):
    assert_sampled(batch, 19, 70, 0.3, dtype)


@given(st.integers(0, 80), st.integers(0, 40), st.integers(0, 40), st.floats(0, 1), st.sampled_from(DTYPES))
def test_any_shape(batch, outputs, inputs, density, dtype):
    assert_sampled(batch, outputs, inputs, density, dtype)


def test_nan_stays_with_its_row():
    left, right = torch.ones(3, 2), torch.ones(3, 2)
    left[1, 0] = float("nan")
    packed = pack(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    got = sampled_product_op(left, right, packed.columns, packed.offsets)
    assert got[0].isnan().all() and got[1].tolist() == [0, 3]


def test_any_number_of_threads_gives_the_same_bits():
    packed = pack(torch.randn(100, 70), torch.tensor(1.0))
    args = torch.randn(50, 100), torch.randn(50, 70), packed.columns, packed.offsets
    one = sampled_product_op(*args)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        torch.testing.assert_close(sampled_product_op(*args), one, rtol=0 if native.AVAILABLE else 1e-5, atol=0)


def test_opcheck():
    packed = pack(torch.randn(4, 6), torch.tensor(0.5))
    torch.library.opcheck(sampled_product_op, (randn((3, 4)), randn((3, 6)), packed.columns, packed.offsets))


@pytest.mark.parametrize("column, offset", [(6, 2), (-1, 2), (0, 9), (0, -1)])
@pytest.mark.skipif(not native.AVAILABLE, reason="the reference has PyTorch's own errors")
def test_refuses_indices_that_lead_outside(column, offset):
    columns, offsets = torch.tensor([0, 1, column], dtype=torch.int32), torch.tensor([0, offset, 3])
    with pytest.raises(RuntimeError, match="sampled_product: want (columns from 0 to 5|offsets that ascend)"):
        sampled_product_op(torch.ones(3, 2), torch.ones(3, 6), columns, offsets)


CASES = {
    "linear": (masked_linear, F.linear, (40, 30), (20, 30)),
    "convolution": (masked_conv2d, conv({}), (2, 3, 8, 9), (4, 3, 3, 3)),
}


@pytest.mark.parametrize("products", ["dense", "sparse"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.9])
@pytest.mark.parametrize("case", CASES)
def test_only_learnable_weights_have_a_gradient(case, share, products):
    op, product, *shapes = CASES[case]
    x, weight, _, attention, bias = operands(*shapes)
    magnitudes = weight.abs().float().flatten().sort(descending=True).values
    limit, threshold = magnitudes[int(share * len(magnitudes))], magnitudes[int(share * len(magnitudes) / 2)]
    args = x, weight, threshold, attention, bias
    grad = randn(product(x, weight).shape)
    _, *want = by_formula(product, *args, grad)
    want[1] = want[1].where(weight.abs().float() >= limit, 0)
    _, *got = run(partial(op, products=products, learnable=limit), args, grad, EVERY)
    torch.testing.assert_close(got, want)
    geometry = () if op is masked_linear else ([1, 1], [0, 0], [1, 1], 1)
    specified = partial(reference.masked_linear if op is masked_linear else reference.masked_conv2d, learnable=limit)
    _, *spec = run(lambda *args: specified(*args, *geometry), args, grad, EVERY)
    torch.testing.assert_close(spec, want)


def test_few_elements_are_computed_one_by_one(monkeypatch):
    if not native.AVAILABLE:
        pytest.skip("the reference computes all of them")
    module, calls = importlib.import_module("aswl_kernels.masked_linear"), []
    op = module.sampled_product_op
    monkeypatch.setattr(module, "sampled_product_op", lambda *args: (calls.append(1), op(*args))[1])
    weight = torch.arange(100.0).sub(50).clamp(0).view(10, 10)
    for limit, expected in ((30.0, 1), (10.0, 1), (0.0, 1)):
        leaf = weight.clone().requires_grad_()
        masked_linear(torch.ones(2, 10), leaf, torch.tensor(40.0), learnable=torch.tensor(limit)).sum().backward()
        assert leaf.grad.eq(2).equal(weight >= limit) and len(calls) == expected  # at 0, a zero weight learns too


def test_second_derivatives_compilation_and_transforms():
    x, weight, _, attention, bias = operands((3, 4), (3, 4))
    limit = weight.abs().median().float()
    op = partial(masked_linear, learnable=limit)
    args = x, weight, limit, attention, bias
    grad = randn((3, 3))
    assert gradcheck(lambda x: op(x, *args[1:]), (x.clone().requires_grad_(),))
    want = run(op, args, grad, EVERY)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, args, grad, EVERY), want)
    transformed = torch.func.grad(lambda w: (op(x, w, limit, attention, bias) * grad).sum())(weight)
    torch.testing.assert_close(transformed, want[2])


@pytest.mark.parametrize(
    "op, shapes", [(masked_linear, ((4, 6), (5, 6))), (masked_conv2d, ((1, 2, 3, 3), (2, 2, 1, 1)))]
)
def test_refuses_a_limit_that_is_no_scalar(op, shapes):
    with pytest.raises(ValueError, match=rf"{op.__name__}: want learnable a floating 0-d or \[1\] tensor on cpu"):
        op(*operands(*shapes), learnable=torch.ones(2))
