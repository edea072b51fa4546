"""The fused optimizers: torch's steps bit for bit, masks, sums and copies against fp64, and what they refuse."""

import warnings

import pytest
import torch
from fused_steps import assert_same, by_reference, cases, clone, layers, step
from harness import assert_no_worse, layouts, masked
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from aswl import attention as rules
from aswl_kernels import fused_adamw_, fused_sgd_, native, reference

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAN = float("nan")


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_is_torchs_optimizer(name, options, dtype):
    weights, _, _, thresholds = layers(dtype=dtype)
    theirs = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name](theirs, lr=0.1, foreach=False, **options)
    states = [[torch.zeros_like(w) for w in weights] for _ in range(2)]
    for number in range(1, 5):
        grads = [torch.randn_like(w) for w in weights]
        for parameter, grad in zip(theirs, grads):
            parameter.grad = grad.clone()
        optimizer.step()
        step(name, weights, grads, states, thresholds, number, **options)
    fused = native.DETAIL in ("avx2", "avx512")  # elsewhere products are rounded before they are added
    tolerance = {"rtol": 0, "atol": 0} if fused else {}
    if name == "adamw":
        for own, key in zip(states, ("exp_avg", "exp_avg_sq")):
            torch.testing.assert_close(own, [optimizer.state[p][key] for p in theirs], **tolerance)
        tolerance = {}  # PyTorch's square root is not always the nearest number
    torch.testing.assert_close(weights, [p.detach() for p in theirs], **tolerance)


@cases
@pytest.mark.parametrize("number", [1, 7])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_no_worse_than_the_reference(name, options, dtype, number):
    options = options | {"pruned_gradient": 0.3, "pruned_decay": 3.0, "band": 0.4}
    args = layers(dtype=dtype)
    runs = []
    for f, to in ((step, dtype), (by_reference, dtype), (by_reference, torch.float64)):
        weights, grads, states, thresholds = clone(args[0], to), clone(args[1], to), clone(args[2], to), args[3]
        sums = f(name, weights, grads, states, thresholds, number, **options)
        assert_same(grads, clone(args[1], to))
        used = states[: {"sgd": int("momentum" in options), "adamw": 2}[name]]
        runs.append([sums[:, 2], sums[:, :2].float(), *weights, *(t for state in used for t in state)])
    got, same, exact = ([run.pop(0) for _ in range(2)] for run in runs)
    assert_same(got[0], exact[0])  # counts
    terms = sum((w.double() * g.double()).abs().sum().item() for w, g in zip(*args[:2]))
    assert_no_worse(got[1], same[1], exact[1].double(), terms=terms)
    for triple in zip(*runs, strict=True):
        assert_no_worse(*triple)


@given(
    st.lists(st.integers(0, 70), max_size=4),
    st.sampled_from(["sgd", "adamw"]),
    st.floats(0, 2),
    st.floats(0, 1),
    st.sampled_from([0.0, 1.0, 7.5]),
    st.booleans(),
    st.sampled_from(FLOATS),
)
def test_any_layers(sizes, name, threshold, pruned_gradient, pruned_decay, maximize, dtype):
    options = {"pruned_gradient": pruned_gradient, "pruned_decay": pruned_decay, "maximize": maximize}
    options |= {"weight_decay": 0.1} | ({"momentum": 0.9} if name == "sgd" else {})
    weights, grads, states, _ = layers(tuple(sizes), dtype)
    thresholds = [torch.tensor(threshold)] * len(sizes)
    twin = clone(weights), grads, clone(states), thresholds
    sums = step(name, weights, grads, states, thresholds, 2, **options)
    want = by_reference(name, *twin, 2, **options)
    torch.testing.assert_close(sums, want, rtol=1e-5, atol=1e-4)
    rough = {"rtol": 0.05, "atol": 0.01} if dtype.itemsize == 2 else {}
    torch.testing.assert_close((weights, states), (twin[0], twin[2]), **rough)


def test_worked_by_hand(device):
    weight = torch.tensor([1.0, -0.5, 0.25, -2.0], device=device)
    grad = torch.tensor([1.0, 10.0, 100.0, -1.0], device=device)
    momentum = torch.tensor([0.0, 1.0, 2.0, 4.0], device=device)
    threshold, copy = torch.tensor(0.5, device=device), torch.empty(4, device=device, dtype=torch.bfloat16)
    options = {"momentum": 0.5, "weight_decay": 1.0, "pruned_decay": 4.0, "pruned_gradient": 0.5, "band": 0.5}
    sums = fused_sgd_([weight], [grad], [momentum], [threshold], lr=0.5, copies=[copy], **options)
    assert momentum.tolist() == [2.0, 10.0, 52.0, -1.0]  # the pruned 0.25: 0.5 * 2 + 0.5 * 100 + 4 * 0.25
    assert weight.tolist() == [0.0, -5.5, -25.75, -1.5]
    assert copy.tolist() == [0.0, -5.5, -25.75, -1.5]
    assert sums.tolist() == [[1.0 - 5.0 + 2.0, -5.0 + 25.0, 2.0]]  # the band is 0.25 to 0.75
    assert sums.dtype == torch.float64


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("copy_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_copies(name, dtype, copy_dtype):
    weights, grads, states, thresholds = layers(dtype=dtype)
    copies = [torch.full_like(w, NAN, dtype=copy_dtype) for w in weights]
    step(name, weights, grads, states, thresholds, 3, copies=copies)
    if dtype.itemsize > 2:  # narrow weights are masked before they are rounded
        for copy, weight, threshold in zip(copies, weights, thresholds):
            assert_same(copy, masked(weight, threshold).to(copy_dtype))
    assert all(copy.isfinite().all() for copy in copies)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_sums_are_the_methods(name):
    weights, grads, states, thresholds = layers((5000, 40))
    before = clone(weights)
    sums = step(name, weights, grads, states, thresholds)
    for row, weight, grad, threshold in zip(sums, before, grads, thresholds):
        want = rules.marginal_value(weight, grad, threshold, 0.15)
        torch.testing.assert_close((-row[1] / row[2]).float(), want, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(row[0], (grad * masked(weight, threshold)).double().sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_gradient_scale_divides(name):
    weights, grads, states, thresholds = layers((1000,))
    twin = clone(weights), [256 * g for g in grads], clone(states), thresholds
    sums = step(name, weights, grads, states, thresholds)
    assert_same(step(name, *twin, grad_scale=torch.tensor([256.0])), sums)
    assert_same(twin[0], weights)


@cases
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_numbers_in_tensors(name, options, dtype):
    def tensor(value):
        return torch.tensor(value, dtype=torch.float64).float()  # whatever the weights are

    def call(op, tensors):
        weights, grads, states, thresholds = clone(args)
        number, rest = (tensor(3.0) if tensors else 3.0), options | {"pruned_decay": 0.0}
        rest |= {n: tensor(v) if tensors else v for n, v in (("lr", 0.125), ("pruned_gradient", 0.25))}
        if name == "sgd":
            return op(weights, grads, states[0], thresholds, **rest), weights, states
        return op(weights, grads, *states, [number] * len(weights), thresholds, **rest), weights, states

    args, op = layers((5, 700, 0), dtype), {"sgd": fused_sgd_, "adamw": fused_adamw_}[name]
    if native.AVAILABLE:
        assert_same(call(op, True), call(op, False))
    kernel = torch.library.Library("aswl", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        kernel.impl(op.__name__, getattr(reference, op.__name__), "CPU", allow_override=True)
    want = call(op, False)
    torch.testing.assert_close(call(op, True), want)
    kernel._destroy()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_reads_no_number_on_the_host(name):
    """What a CUDA graph captures finds new numbers at its next run: nothing is read from tensors outside of the operator."""

    class Refusing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.name() != "aten::_local_scalar_dense"
            return func(*args, **kwargs or {})

    weights, grads, states, thresholds = layers((5, 33))
    numbers = {"lr": torch.tensor([0.1]), "pruned_gradient": torch.tensor(0.5), "grad_scale": torch.tensor(2.0)}
    with Refusing():
        step(name, weights, grads, states, thresholds, torch.tensor(2.0) if name == "adamw" else 2, **numbers)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_nan_survives(name):
    weights, grads, states, thresholds = layers((40,))
    weights[0][3] = grads[0][5] = NAN
    weights[0][5] = 0
    sums = step(name, weights, grads, states, thresholds, weight_decay=0.1, pruned_gradient=0.0)
    assert weights[0].isnan().nonzero().flatten().tolist() == [3, 5] and sums[0, 0].isnan()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_strides_do_not_matter(name):
    shape = (4, 3, 2, 5)
    weights, grads, states, thresholds = layers((120,))
    start, *tensors = (t.view(shape) for t in (weights[0], grads[0], states[0][0], states[1][0]))
    want = clone([start, *tensors])
    options = {"momentum": 0.9} if name == "sgd" else {}
    copy = torch.empty(shape)
    options |= {"weight_decay": 0.1}
    sums = step(name, want[:1], want[1:2], [want[2:3], want[3:]], thresholds, 2, copies=[copy], **options)
    for weight in (start.clone(), *layouts(start)):
        for grad, first, second in (tensors, [t.contiguous(memory_format=torch.channels_last) for t in tensors]):
            own, states = [weight], [[first.clone()], [second.clone()]]
            with_gaps = torch.full((*shape, 2), NAN)[..., 0]
            got = step(name, own, [grad], states, thresholds, 2, copies=[with_gaps], **options)
            torch.testing.assert_close(got, sums)
            assert_same([weight, with_gaps, states[0][0]], [want[0], copy, want[2]])
            weight.copy_(start)


def test_any_number_of_threads_gives_the_same_bits():
    for name in ("sgd", "adamw"):
        args = layers((300_000, 10, 40_000))
        results = []
        for threads in (1, 2, 3) if native.AVAILABLE else ():  # PyTorch's own sums depend on them
            torch.set_num_threads(threads)
            own = clone(args)
            results.append((step(name, *own), own))
        assert_same(results[1:], results[:1] * (len(results) - 1))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_nothing_to_do(name):
    assert step(name, [], [], [[], []], []).shape == (0, 3)
    weights, grads, states, thresholds = layers((0,))
    assert step(name, weights, grads, states, thresholds).tolist() == [[0, 0, 0]]


def test_opcheck(device):
    weights, grads, (first, second), thresholds = layers((5, 12))
    copies = [w.bfloat16() for w in weights]
    tail = (3.0, 0.5, 0.15)
    args = (weights, grads, first, thresholds, copies, None, 0.1, 0.9, 0.0, 0.1, True, False, False, *tail)
    torch.library.opcheck(torch.ops.aswl.fused_sgd_.default, args)
    args = (weights, grads, first, second, [1.0, 2.0], [], thresholds, [], torch.tensor(2.0), 0.1, 0.9, 0.99, 1e-8, 0.1)
    torch.library.opcheck(torch.ops.aswl.fused_adamw_.default, (*args, False, *tail))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_compile(name):
    args = layers((7, 20))
    twin = clone(args)
    torch._dynamo.reset()

    def call(weights, grads, states, thresholds):
        return step(name, weights, grads, states, thresholds, 2, weight_decay=0.1)

    sums = torch.compile(call, fullgraph=True, backend="aot_eager")(*args)
    assert_same((sums, args), (call(*twin), twin))


W, T = torch.ones(3), torch.zeros(())


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"weights": [W.long()], "grads": [W.long()]},
            "want floating weights of one dtype on one device; got int64[3]",
        ),
        ({"grads": [W, W]}, "want 1 grads, one per weight; got 2"),
        ({"grads": [W.double()]}, "want dense grads of the weights' shapes, dtype and device; got float32[3] on cpu"),
        ({"grads": [torch.ones(2)]}, "got float32[3] on cpu, float32[2] on cpu"),
        ({"grads": [W.to_sparse()]}, "want dense grads"),
        ({"thresholds": []}, "want 1 thresholds, one per weight; got 0"),
        ({"thresholds": [W]}, "want threshold a floating 0-d or [1] tensor on cpu; got float32[3] on cpu"),
        ({"copies": [W.long()]}, "want floating copies of the weights' shapes and device; got float32[3]"),
        ({"copies": [W.to("meta")]}, "want floating copies"),
        ({"grad_scale": W}, "want grad_scale a floating 0-d or [1] tensor"),
        ({"lr": W}, "want lr a floating 0-d or [1] tensor on cpu; got float32[3] on cpu"),
        ({"lr": T.long()}, "want lr a floating 0-d or [1] tensor on cpu; got int64[] on cpu"),
        ({"lr": T.to("meta")}, "want lr a floating 0-d or [1] tensor on cpu; got float32[] on meta"),
        ({"pruned_gradient": W}, "want pruned_gradient a floating 0-d or [1] tensor"),
        ({"pruned_gradient": 1.5}, "want pruned_gradient in [0, 1]; got 1.5"),
        ({"pruned_decay": -1.0}, "want pruned_decay a number >= 0; got -1.0"),
        ({"band": 0.0}, "want band in (0, 1); got 0.0"),
    ],
)
def test_refuses(changes, words):
    for op, states in ((fused_sgd_, {"momenta": [W.clone()]}), (fused_adamw_, {"exp_avgs": [W], "exp_avg_sqs": [W]})):
        args = {"weights": [W.clone()], "grads": [W], "thresholds": [T], "lr": 0.1} | states
        args |= {"momentum": 0.9} if op is fused_sgd_ else {"steps": [1]}
        op(**args)
        with pytest.raises(ValueError) as error:
            op(**args | changes)
        assert str(error.value).startswith(f"{op.__name__}: want ") and words in str(error.value)


@pytest.mark.parametrize("steps", [[W], [T.long()], [T.to("meta")]], ids=["vector", "integer", "elsewhere"])
def test_refuses_steps(steps):
    with pytest.raises(ValueError, match="fused_adamw_: want step a floating 0-d or .1. tensor on cpu"):
        fused_adamw_([W.clone()], [W], [W.clone()], [W.clone()], steps, [T], lr=0.1)
    with pytest.raises(ValueError, match="fused_adamw_: want 2 steps from 1 on, numbers or tensors"):
        fused_adamw_([W.clone()] * 2, [W] * 2, [W.clone()] * 2, [W.clone()] * 2, [T + 1, 1.0], [T] * 2, lr=0.1)


def test_refuses_steps_before_the_first():
    with pytest.raises(ValueError, match=r"fused_adamw_: want 1 steps from 1 on, numbers or tensors; got \[0\]"):
        fused_adamw_([W.clone()], [W], [W.clone()], [W.clone()], [0], [T], lr=0.1)
