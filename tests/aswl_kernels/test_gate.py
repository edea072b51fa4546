"""The gate: values, straight-through gradients, ties, NaN, dtypes and strides."""

import pytest
import torch
from harness import assert_no_worse, layouts, masked, run
from torch.autograd import gradcheck, gradgradcheck

from aswl_kernels import gate, native, reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAN, INF = float("nan"), float("inf")


def by_formula(weight, attention, threshold, grad):
    """(y, dw, da): a * sparse, a * G, sum(G * sparse)."""
    sparse = masked(weight, threshold)
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = (grad.to(wide) * sparse.to(wide)).sum().to(attention.dtype).reshape(attention.shape)
    return (attention * sparse).to(weight.dtype), (attention * grad).to(weight.dtype), total


def inputs(shape, dtype=torch.float64, device="cpu"):
    weight, grad = (torch.randn(shape, dtype=torch.float64).to(device, dtype) for _ in range(2))
    threshold = weight.abs().float().median() if weight.numel() else torch.tensor(1.0, device=device)
    attention = torch.tensor([0.3], dtype=torch.promote_types(dtype, torch.float32), device=device)
    return weight, attention, threshold, grad


@pytest.mark.parametrize("op", [pytest.param(gate, id="op"), pytest.param(reference.gate, id="reference")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), (7,), (1023,), (5, 3, 3, 3)], ids=str)
def test_follows_the_formula(op, shape, dtype, device):
    weight, attention, threshold, grad = inputs(shape, dtype, device)
    got = run(op, (weight, attention, threshold), grad, wrt=(0, 1))
    exact = by_formula(weight.double(), attention.double(), threshold.double(), grad.double())
    for triple in zip(got, by_formula(weight, attention, threshold, grad), exact, strict=True):
        assert_no_worse(*triple)


def test_worked_by_hand(device):
    weight = torch.tensor([0.5, -0.5, 0.4, -2.0, 0.0, 3.0], device=device)
    attention, threshold = torch.tensor([2.0], device=device), torch.tensor(0.5, device=device)
    grad = torch.tensor([1.0, 10.0, 100.0, 1000.0, 7.0, 0.5], device=device)
    y, weight_grad, attention_grad = run(gate, (weight, attention, threshold), grad, wrt=(0, 1))
    assert y.tolist() == [1.0, -1.0, 0.0, -4.0, 0.0, 6.0]  # ties at 0.5 are kept
    assert weight_grad.tolist() == [2.0, 20.0, 200.0, 2000.0, 14.0, 1.0]  # the pruned 0.4 and 0.0 too
    assert attention_grad.tolist() == [0.5 - 5.0 - 2000.0 + 1.5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("t", [0.0, 1.0, 1e30, INF])
def test_nan_and_inf_are_never_pruned(t, dtype, device):
    weight = torch.tensor([NAN, -NAN, INF, -INF, 0.25], dtype=dtype, device=device)
    y = gate(weight, torch.ones(1, device=device), torch.tensor(t, device=device))
    want = torch.tensor([NAN, NAN, INF, -INF, 0.25 if t == 0 else 0], dtype=dtype, device=device)
    torch.testing.assert_close(y, want, rtol=0, atol=0, equal_nan=True)


def test_a_nan_threshold_prunes_nothing():
    weight = torch.tensor([0.0, 1.0, NAN])  # the threshold of a layer that holds more NaN than it may keep
    assert gate(weight, torch.ones(1), torch.tensor(NAN))[:2].tolist() == [0, 1]


def test_a_nan_gradient_survives():
    weight, attention, threshold, grad = inputs((4,))
    grad[2] = NAN
    _, weight_grad, attention_grad = run(gate, (weight, attention, threshold), grad, wrt=(0, 1))
    assert weight_grad.isnan().tolist() == [False, False, True, False] and attention_grad.isnan().all()


def test_the_mask_is_decided_in_fp32(device):
    threshold = torch.tensor(1 + 2**-10, device=device)  # 1 when rounded to bf16
    weight = torch.tensor([1.0, 1 + 2**-7], dtype=torch.bfloat16, device=device)
    assert gate(weight, torch.ones(1, device=device), threshold).tolist() == [0, 1 + 2**-7]
    wide = torch.tensor([1 + 1e-12, 1 - 1e-12], dtype=torch.float64, device=device)  # both 1 in fp32
    assert gate(wide, torch.ones(1, device=device).double(), torch.ones((), device=device)).count_nonzero() == 2


def test_the_scale_is_rounded_once(device):
    weight, attention = torch.tensor([1.0078125], device=device).bfloat16(), torch.tensor([1 / 3], device=device)
    want = (weight.double() * attention.double()).bfloat16()
    assert gate(weight, attention, torch.zeros((), device=device)).equal(want)


def test_the_attention_gradient_is_summed_in_fp32():
    weight = torch.full((4096,), 0.01, dtype=torch.float16)  # a sum in fp16 stalls, and 4096 * 60 * 60 overflows
    _, attention_grad = run(gate, (weight, torch.ones(1), torch.zeros(())), torch.ones_like(weight), wrt=(1,))
    torch.testing.assert_close(attention_grad, weight.double().sum().float().reshape(1), rtol=1e-6, atol=0)
    big = torch.full((4096,), 60.0, dtype=torch.float16)
    assert run(gate, (big, torch.ones(1), torch.zeros(())), big, wrt=(1,))[1].item() == 4096 * 60 * 60


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4, 5)], ids=str)
def test_strides_do_not_matter(shape, device):
    weight, attention, threshold, grad = inputs(shape, torch.float32, device)
    want = run(gate, (weight, attention, threshold), grad, wrt=(0, 1))
    for strided in layouts(weight):
        for got, contiguous in zip(run(gate, (strided, attention, threshold), grad, wrt=(0, 1)), want):
            torch.testing.assert_close(got, contiguous)
    expanded = weight[:1].expand(shape)
    torch.testing.assert_close(gate(expanded, attention, threshold), gate(expanded.clone(), attention, threshold))


@pytest.mark.parametrize("a_shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("t_shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)], ids=str)
def test_shapes_of_scalars(shape, a_shape, t_shape):
    weight = torch.full(shape, 2.0)
    y, *grads = run(gate, (weight, torch.full(a_shape, 3.0), torch.full(t_shape, 1.0)), torch.ones(shape), wrt=(0, 1))
    assert y.equal(torch.full(shape, 6.0)) and grads[0].equal(torch.full(shape, 3.0))
    assert grads[1].equal(torch.full(a_shape, 2.0 * weight.numel()))


@pytest.mark.parametrize("wrt", [(0,), (1,)], ids=str)
def test_each_gradient_alone(wrt):
    weight, attention, threshold, grad = inputs((9,))
    _, weight_grad, attention_grad = by_formula(weight, attention, threshold, grad)
    _, got = run(gate, (weight, attention, threshold), grad, wrt)
    torch.testing.assert_close(got, (weight_grad, attention_grad)[wrt[0]])


def test_the_threshold_has_no_gradient():
    weight, attention, threshold, _ = inputs((9,))
    with pytest.raises(RuntimeError, match="does not require grad|unused"):
        torch.autograd.grad(gate(weight, attention, threshold.requires_grad_()).sum(), threshold)


def test_numerical_gradients():
    weight, attention, threshold, _ = inputs((7,))
    weight, attention = weight.requires_grad_(), attention.requires_grad_()
    zero = torch.zeros(())  # with nothing pruned, straight-through is the derivative
    assert gradcheck(gate, (weight, attention, zero)) and gradgradcheck(gate, (weight, attention, zero))
    fixed = weight.detach()
    assert gradcheck(gate, (fixed, attention, threshold)) and gradgradcheck(gate, (fixed, attention, threshold))


def test_second_derivatives_are_straight_through():
    weight, attention, threshold, grad = inputs((7,))
    weight, attention = weight.requires_grad_(), attention.requires_grad_()
    along = torch.randn_like(grad)
    weight_grad, attention_grad = torch.autograd.grad(
        gate(weight, attention, threshold), (weight, attention), grad, create_graph=True
    )
    (mixed,) = torch.autograd.grad(weight_grad, attention, along, retain_graph=True)  # dw = a G
    torch.testing.assert_close(mixed, (along * grad).sum().reshape(1))
    (mixed,) = torch.autograd.grad(attention_grad, weight)  # da = sum(G * sparse), straight through sparse
    torch.testing.assert_close(mixed, grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype, device):
    weight, attention, threshold, _ = inputs((4, 3, 3, 3), dtype, device)
    for strided in layouts(weight) if dtype == torch.float32 else (weight,):
        torch.library.opcheck(torch.ops.aswl.gate.default, (strided, attention, threshold))


@pytest.mark.parametrize("grad_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 31, 33, 1023, 70_000])
def test_the_attention_gradient_operator(n, dtype, grad_dtype, device):
    weight, attention, threshold, grad = inputs((n,), dtype, device)
    grad = grad.to(grad_dtype)
    args = (grad, weight, attention, threshold)
    products = grad.double() * masked(weight, threshold).double()
    same, exact = reference.attention_gradient(*args), products.sum().reshape(1)
    got = torch.ops.aswl.attention_gradient(*args)
    assert_no_worse(got, same, exact, terms=products.abs().sum().item())
    for threads in (2, 3) if native.AVAILABLE else ():  # PyTorch's own sum depends on them
        torch.set_num_threads(threads)
        assert torch.ops.aswl.attention_gradient(*args).equal(got)
    if n == 33:
        torch.library.opcheck(torch.ops.aswl.attention_gradient.default, args)


def test_batched_gradients():
    weight, attention, threshold, grad = inputs((4, 5))
    leaves = weight.requires_grad_(), attention.requires_grad_()
    y = gate(*leaves, threshold)
    grads = torch.stack([grad, -2 * grad])
    got = torch.autograd.grad(y, leaves, grads, retain_graph=True, is_grads_batched=True)
    for i, each in enumerate(grads):
        want = torch.autograd.grad(y, leaves, each, retain_graph=True)
        torch.testing.assert_close(tuple(g[i] for g in got), want)


W, A, T = torch.ones(2, 3), torch.ones(1), torch.zeros(())


@pytest.mark.parametrize(
    "args, words",
    [
        ((W.long(), A, T), "want a floating weight; got int64[2, 3] on cpu"),
        ((W.to(torch.complex64), A, T), "want a floating weight; got complex64[2, 3] on cpu"),
        ((W.to(torch.float8_e5m2), A, T), "want a floating weight; got float8_e5m2[2, 3] on cpu"),
        ((W, torch.ones(2), T), "want attention a floating 0-d or [1] tensor on cpu; got float32[2] on cpu"),
        ((W, torch.ones(1, 1), T), "got float32[1, 1] on cpu"),
        ((W, torch.ones(0), T), "got float32[0] on cpu"),
        ((W, A.long(), T), "got int64[1] on cpu"),
        ((W, A.to("meta"), T), "got float32[1] on meta"),
        ((W, A, torch.zeros(3)), "want threshold a floating 0-d or [1] tensor on cpu; got float32[3] on cpu"),
        ((W, A, T.bool()), "got bool[] on cpu"),
        ((W, A, T.to("meta")), "got float32[] on meta"),
    ],
)
def test_refuses(args, words):
    with pytest.raises(ValueError) as error:
        gate(*args)
    assert str(error.value).startswith("gate: want ") and words in str(error.value)
