"""The firm threshold: what is kept fades in from the threshold on, in every operator that takes one."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from harness import assert_no_worse, layouts, masked, operands, run

from aswl_kernels import gate, gate_all, gate_triton, masked_conv2d, masked_linear, pack, reference, unpack

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAN, INF = float("nan"), float("inf")
PRODUCTS = {
    "linear": (masked_linear, F.linear, (5, 12), (7, 12)),
    "convolution": (partial(masked_conv2d, padding=1), partial(F.conv2d, padding=1), (2, 3, 5, 6), (4, 3, 3, 3)),
}


def faded(weight, threshold):
    """By the formula, in fp64: 5 (abs(w) - t) below 1.25 t, where no more than 63/64 of t are taken."""
    w, t = weight.double(), threshold.double()
    value = torch.maximum(5 * (w.abs() - t), w.abs() - t * 63 / 64).copysign(w)
    return masked(weight, threshold).double().where((w.abs() >= 1.25 * t) | (masked(weight, threshold) == 0), value)


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_worked_by_hand(device):
    weight = torch.tensor([0.99, 1.0, -1.0, 1.125, -1.1875, 1.25, -3.0, 0.0, NAN, INF, -INF], device=device)
    y = gate(weight, torch.tensor([2.0], device=device), torch.tensor(1.0, device=device), firm=True)
    want = [0, 2 / 64, -2 / 64, 1.25, -1.875, 2.5, -6.0, 0, NAN, INF, -INF]
    assert_same(y, torch.tensor(want, device=device))
    nothing_pruned = gate(weight, torch.ones(1, device=device), torch.tensor(0.0, device=device), firm=True)
    assert_same(nothing_pruned, weight)
    assert_same(
        gate(weight, torch.ones(1, device=device), torch.tensor(INF, device=device), firm=True)[:8], 0 * weight[:8]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_all_operators_are_the_formula(dtype, triton_device):
    weight = torch.randn(33, 130).to(triton_device, dtype)
    threshold = weight.abs().float().flatten().sort().values[3000]
    want = faded(weight, threshold).to(dtype)
    one = torch.ones(1, device=triton_device, dtype=torch.promote_types(dtype, torch.float32))
    values = {
        "gate": gate(weight, one, threshold, firm=True),
        "reference": reference.gate(weight, one, threshold, firm=True),
        "of all": gate_all([weight], [threshold], firm=True)[0],
        "packed": unpack(pack(weight, threshold, firm=True)),
    }
    for name, got in values.items():
        torch.testing.assert_close(got, want, atol=0, rtol=1e-6 if dtype != torch.float64 else 1e-12, msg=name)
        assert_same(got, values["reference"])
        assert int(got.count_nonzero()) == int((weight.abs().float() >= threshold).sum())
    scaled = gate(weight, 3 * one, threshold, firm=True)
    assert_same(unpack(pack(weight, threshold, 3 * one, firm=True)), scaled)


def test_the_kernel_on_other_strides_and_as_other_dtypes(triton_device):
    weight, threshold = torch.randn(6, 70, device=triton_device), torch.tensor(0.5, device=triton_device)
    for strided in layouts(weight):
        for dtype in (None, torch.bfloat16):
            want = reference.gate(weight, None, threshold, dtype, firm=True)
            assert_same(gate_triton.gate(strided, None, threshold, dtype, True), want)
            assert_same(gate_all([strided, weight], [threshold] * 2, dtype, True)[0], want)


def test_gradients_are_straight_through(device):
    weight, grad = torch.randn(2, 50, dtype=torch.float64, device=device)
    threshold, attention = weight.abs().float().median(), torch.tensor([0.3], dtype=torch.float64, device=device)
    _, weight_grad, attention_grad = run(partial(gate, firm=True), (weight, attention, threshold), grad, wrt=(0, 1))
    assert_same(weight_grad, 0.3 * grad)
    torch.testing.assert_close(attention_grad, (grad * faded(weight, threshold)).sum().reshape(1))


@pytest.mark.parametrize("products", ["dense", "sparse", "learnable", "learnable, sparse"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name, products, device):
    op, plain, x_shape, weight_shape = PRODUCTS[name]
    args = operands(x_shape, weight_shape, device=device)
    x, weight, threshold, attention, bias = args
    grad = torch.randn_like(plain(x, weight))
    restricted = products.startswith("learnable")
    learnable = threshold / 2 if restricted else None
    ours = partial(op, products="sparse" if "sparse" in products else "dense", learnable=learnable, firm=True)
    got = run(ours, args, grad, wrt=(0, 1, 3, 4))
    sparse = faded(weight, threshold)
    y, dx, folded_grad, bias_grad = run(plain, (x, attention * sparse, attention * bias), grad, wrt=(0, 1, 2))
    learns = weight.abs() >= learnable if restricted else torch.ones_like(weight)
    weights_part = (folded_grad * sparse).where(learns.bool(), 0).sum()
    want = (
        y,
        dx,
        attention * folded_grad * learns,
        (weights_part + (bias_grad * bias).sum()).reshape(1),
        attention * bias_grad,
    )
    for mine, its in zip(got, want, strict=True):
        assert_no_worse(mine, its.to(mine.dtype), its)


@pytest.mark.parametrize("name", PRODUCTS)
def test_fused_products_have_hard_thresholds(name):
    op, _, x_shape, weight_shape = PRODUCTS[name]
    with pytest.raises(ValueError, match="want firm=False with products 'fused'; got True"):
        op(*operands(x_shape, weight_shape), products="fused", firm=True)


def test_under_transforms_and_a_compiler():
    x, weight, threshold, attention, bias = operands((5, 12), (7, 12))

    def loss(weight):
        return masked_linear(x, weight, threshold, attention, bias, firm=True).square().sum()

    want = run(loss, (weight,), torch.ones((), dtype=torch.float64), wrt=(0,))[1]
    torch.testing.assert_close(torch.func.grad(loss)(weight), want)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(torch.stack([weight, 2 * weight]))[0], want)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, (weight,), torch.ones((), dtype=torch.float64), wrt=(0,))[1], want)


def test_opcheck():
    weight, threshold = torch.randn(4, 8), torch.tensor(0.5)
    torch.library.opcheck(torch.ops.aswl.gate.default, (weight, None, threshold, torch.bfloat16, True))
    torch.library.opcheck(torch.ops.aswl.gate_all.default, ([weight, weight[:0]], [threshold] * 2, None, True))
    torch.library.opcheck(torch.ops.aswl.pack.default, (weight, threshold, None, True))
