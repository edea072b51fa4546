"""The fused optimizers' Triton kernels, in Triton's interpreter on a machine without a GPU."""

import pytest
import torch
from fused_steps import assert_same, by_reference, cases, clone, layers, step
from harness import assert_no_worse, layouts, masked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from aswl_kernels import _fused_triton, fused_sgd_, fused_sgd_triton
from aswl_kernels._integers import integers
from aswl_kernels._triton import same_order

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
PAIRS = [  # of the weights, of the copies
    pytest.param(torch.float32, None, id="fp32"),
    pytest.param(torch.float32, torch.bfloat16, id="fp32 to bf16"),
    pytest.param(torch.bfloat16, torch.bfloat16, id="bf16 to bf16"),
    pytest.param(torch.bfloat16, torch.float32, id="bf16 to fp32"),
    pytest.param(torch.float16, None, id="fp16"),
]
NAN, INF = float("nan"), float("inf")
SIZES = (5, 700, 0, 1, 256, 0)  # past two programs of the smallest, none, one, and a whole one

pytestmark = pytest.mark.usefixtures("poisoned", "small")
names = pytest.mark.parametrize("name", ["sgd", "adamw"])


@pytest.fixture
def small(monkeypatch):
    """Programs of a few elements, so that several run and add up."""
    monkeypatch.setattr(_fused_triton, "WARPS", 1)
    monkeypatch.setattr(_fused_triton, "BLOCKS", 2)
    monkeypatch.setattr(_fused_triton, "PROGRAMS", 2)
    monkeypatch.setattr(_fused_triton, "SUMMED", 2)


@cases
def test_is_torchs_optimizer(name, options, triton_device):
    weights, _, _, thresholds = layers(SIZES, device=triton_device)
    theirs = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizer = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name](theirs, lr=0.1, foreach=False, **options)
    states = [[torch.zeros_like(w) for w in weights] for _ in range(2)]
    for number in range(1, 4):
        grads = [torch.randn_like(w) for w in weights]
        for parameter, grad in zip(theirs, grads):
            parameter.grad = grad.clone()
        optimizer.step()
        step(name, weights, grads, states, thresholds, number, **options)
    exact = {"rtol": 0, "atol": 0} if name == "sgd" and triton_device == "cuda" else {}
    torch.testing.assert_close(weights, [p.detach() for p in theirs], **exact)


@cases
@pytest.mark.parametrize("dtype, copy_dtype", PAIRS)
def test_is_no_worse_than_the_reference(name, options, dtype, copy_dtype, triton_device):
    options = options | {"pruned_gradient": 0.3, "pruned_decay": 1.0 if copy_dtype is None else 3.0, "band": 0.4}
    number = 1 if copy_dtype is None else 7
    args = layers(SIZES, dtype, triton_device)
    runs = []
    for f, to in ((step, dtype), (by_reference, dtype), (by_reference, torch.float64)):
        weights, grads, states, thresholds = *clone(args[:3], to), args[3]
        copies = [torch.full_like(w, NAN, dtype=copy_dtype) for w in weights] if copy_dtype else []
        sums = f(name, weights, grads, states, thresholds, number, copies=copies or None, **options)
        assert_same(grads, clone(args[1], to))
        used = states[: {"sgd": int("momentum" in options), "adamw": 2}[name]]
        runs.append([sums[:, 2], sums[:, :2].float(), *weights, *(t for state in used for t in state)])
        for copy, weight, threshold in zip(copies, weights, thresholds):
            assert_same(copy, masked(weight, threshold).to(copy_dtype))
    got, same, exact = ([run.pop(0) for _ in range(2)] for run in runs)
    assert_same(got[0], exact[0])  # counts
    terms = sum((w.double() * g.double()).abs().sum().item() for w, g in zip(*args[:2]))
    assert_no_worse(got[1], same[1], exact[1].double(), terms=terms)
    for triple in zip(*runs, strict=True):
        assert_no_worse(*triple)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 300), max_size=4),
    name=st.sampled_from(["sgd", "adamw"]),
    number=st.integers(1, 2),
    threshold=st.floats(0, 2),
    pruned_gradient=st.floats(0, 1),
    pruned_decay=st.sampled_from([0.0, 1.0, 7.5]),
    flags=st.lists(st.booleans(), min_size=3, max_size=3),
    weight_decay=st.sampled_from([0.0, 0.1]),
)
def test_any_layers(triton_device, sizes, name, number, threshold, pruned_gradient, pruned_decay, flags, weight_decay):
    maximize, nesterov, scaled = flags
    options = {"pruned_decay": pruned_decay, "maximize": maximize, "pruned_gradient": pruned_gradient}
    options |= {"weight_decay": weight_decay} | ({"momentum": 0.9, "nesterov": nesterov} if name == "sgd" else {})
    options |= {"grad_scale": torch.tensor(3.0, device=triton_device)} if scaled else {}
    weights, grads, states, _ = layers(tuple(sizes), device=triton_device)
    thresholds = [torch.tensor(threshold, device=triton_device)] * len(sizes)
    twin = clone((weights, grads, states))
    sums = step(name, weights, grads, states, thresholds, number, **options)
    torch.testing.assert_close(
        sums.cpu(), by_reference(name, *twin, thresholds, number, **options), rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close((weights, states), (twin[0], twin[2]))


@names
def test_numbers_in_tensors(name, triton_device):
    """The same results, and no number is read on the host or copied to the device, so that a CUDA graph can capture it."""

    class Refusing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.name() not in ("aten::_local_scalar_dense", "aten::_to_copy", "aten::copy_", "aten::nonzero")
            return func(*args, **kwargs or {})

    args = layers(SIZES, device=triton_device)
    numbers = {"lr": 0.125, "pruned_gradient": 0.25}
    runs = []
    for dtype in (None, torch.float32, torch.bfloat16):
        own, options, number = clone(args), numbers, 3.0
        if dtype:
            options = {key: torch.tensor(value, dtype=dtype, device=triton_device) for key, value in numbers.items()}
            number = torch.tensor(number, dtype=dtype, device=triton_device) if name == "adamw" else number
        with Refusing():
            runs.append((step(name, *own, number, weight_decay=0.1, **options), own))
    assert_same(runs[1], runs[2])
    torch.testing.assert_close(runs[0], runs[1])  # the interpreter's numbers are fp64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@names
def test_a_graph_finds_new_numbers(name):
    args = layers((5000, 70_001), device="cuda")
    lr, number = (torch.tensor(value, device="cuda") for value in (0.5, 2.0))
    want, got = clone(args), clone(args)
    step(name, *clone(args), number if name == "adamw" else 2, lr=lr)  # compiles, which a capture must not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sums = step(name, *got, number if name == "adamw" else 2, lr=lr)
    for value in (0.5, 0.25):
        lr.fill_(value)
        graph.replay()
        torch.testing.assert_close(sums, step(name, *want, 2.0, lr=value))
    torch.testing.assert_close(got, want)


@names
def test_mixed_kinds_each_have_their_place(name, triton_device):
    weights, grads, states, thresholds = layers((300, 20, 130, 40, 0, 7), device=triton_device)
    twin = clone((weights, grads, states))
    copies = [torch.empty_like(w, dtype=FLOATS[i % 3]) for i, w in enumerate(weights)]
    thresholds = [t.to(FLOATS[i % 2]).view([1] * (i % 2)) for i, t in enumerate(thresholds)]
    weights[0] = torch.cat([weights[0][:1], weights[0]])[1:]  # not at a multiple of 16 bytes
    sums = step(name, weights, grads, states, thresholds, 2, copies=copies)
    want = by_reference(name, *twin, thresholds, 2)
    torch.testing.assert_close(sums, want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close((weights, states), (twin[0], twin[2]))
    for copy, weight, threshold in zip(copies, weights, thresholds):
        assert_same(copy, masked(weight, threshold).to(copy.dtype))


@names
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter's, of NaN
def test_ties_nan_and_infinity(name, triton_device):
    weight = torch.tensor([0.5, -0.5, 0.25, NAN, 2.0, INF, 0.0], device=triton_device)
    grad = torch.tensor([1.0, -2.0, 4.0, 1.0, NAN, 0.0, 8.0], device=triton_device)
    half = torch.tensor([0.5], device=triton_device)
    options = {"momentum": 0.9} if name == "sgd" else {"weight_decay": 0.0}
    for threshold in (half, 0 * half, NAN * half):
        runs = []
        for f in (step, by_reference):
            own = [weight.clone()], [grad], [[torch.ones_like(weight)] for _ in range(2)], [threshold]
            copy = torch.full_like(weight, 7.0)
            sums = f(name, *own, 2, copies=[copy], pruned_gradient=0.5, **options)
            few = [weight[:3].clone()], [grad[:3]], [[torch.ones_like(grad[:3])] for _ in range(2)], [threshold]
            runs.append((sums, f(name, *few, 2, **options), own, copy))
        torch.testing.assert_close(*runs, equal_nan=True)
        assert runs[0][0].isnan()[0, 0] and own[0][0].isnan().tolist() == [
            False,
            False,
            False,
            True,
            True,
            False,
            False,
        ]


@names
def test_strides_do_not_matter(name, triton_device):
    shape = (4, 3, 2, 5)
    weights, grads, states, thresholds = layers((120,), device=triton_device)
    start, *tensors = (t.view(shape) for t in (weights[0], grads[0], states[0][0], states[1][0]))
    options = {"weight_decay": 0.1} | ({"momentum": 0.9} if name == "sgd" else {})
    want = clone([start, *tensors])
    copy = torch.empty_like(start)
    sums = step(name, want[:1], want[1:2], [want[2:3], want[3:]], thresholds, 2, copies=[copy], **options)
    for weight in (start.clone(), *layouts(start)):
        for grad, first, second in (tensors, [t.contiguous(memory_format=torch.channels_last) for t in tensors]):
            states = [[first.clone()], [second.clone()]]
            other = torch.full((*shape, 2), NAN, device=triton_device)[..., 0]
            if weight.is_contiguous(memory_format=torch.channels_last):
                other = torch.empty_like(weight)
            got = step(name, [weight], [grad], states, thresholds, 2, copies=[other], **options)
            torch.testing.assert_close(got, sums, rtol=1e-5, atol=1e-5)  # added up in another order
            assert_same([weight, other, states[0][0]], [want[0], copy, want[2]])
            weight.copy_(start)


def test_channels_last_is_taken_as_it_is(triton_device, monkeypatch):
    tensors = [torch.randn(4, 3, 2, 5, device=triton_device).to(memory_format=torch.channels_last) for _ in range(4)]
    weight, grad, momentum, copy = tensors
    monkeypatch.setattr(torch.Tensor, "contiguous", None)
    fused_sgd_([weight], [grad], [momentum], [weight.max()], lr=0.1, momentum=0.9, copies=[copy])
    assert same_order(tensors)
    for other in (weight[:, :2], weight.expand(2, 4, 3, 2, 5)):
        assert not same_order([other, other])


@names
def test_two_runs_give_the_same_bits(name, triton_device):
    args = layers((3000, 10), device=triton_device)
    runs = [(step(name, *own), own) for own in (clone(args), clone(args))]
    assert_same(*runs)


def test_offsets_past_32_bits(triton_device, monkeypatch):
    """The last programs of a layer too long to step in a test."""

    class Last:
        def __getitem__(self, grid):
            def run(table, *args, **options):
                table[0] -= grid[0] - 2  # the first program
                kernel[2,](table, *args, **options)

            return run

    kernel = _fused_triton.fused_kernel
    monkeypatch.setattr(_fused_triton, "fused_kernel", Last())
    monkeypatch.setattr(_fused_triton, "fused_sums_kernel", {(1, 3): lambda *args, **options: None})
    weight, grad = (torch.ones(1, dtype=torch.bfloat16, device=triton_device).new_empty(2**31 + 700) for _ in range(2))
    for t, values in ((weight, (0.0, 1.0)), (grad, (2.0, 4.0))):
        t[:900], t[-900:] = values
    fused_sgd_([weight], [grad], [], [torch.tensor(0.5, device=triton_device)], lr=0.125)
    assert weight[:900].eq(0).all() and weight[-900:-700].eq(1).all() and weight[-700:].eq(0.5).all()


@names
def test_nothing_to_do(name, triton_device):
    assert step(name, [], [], [[], []], []).shape == (0, 3)
    assert step(name, *layers((0, 0), device=triton_device)).tolist() == [[0, 0, 0]] * 2


def test_fp64_goes_to_the_reference(triton_device, monkeypatch):
    monkeypatch.setattr(fused_sgd_triton, "fused_sgd_", None)
    args = layers((30,), torch.float64, triton_device)
    twin = clone(args)
    assert_same((step("sgd", *args), args), (by_reference("sgd", *twin), twin))


def test_opcheck(triton_device):
    weights, grads, (first, second), thresholds = layers((5, 12), device=triton_device)
    copies, one = [w.bfloat16() for w in weights], torch.ones((), device=triton_device)
    tail = (3.0, 0.5, 0.15)
    args = (weights, grads, first, thresholds, copies, None, 0.1, 0.9, 0.0, 0.1, True, False, False, *tail, one, None)
    torch.library.opcheck(torch.ops.aswl.fused_sgd_.default, args)
    args = (weights, grads, first, second, [], [one, one], thresholds, [], one, 0.1, 0.9, 0.99, 1e-8, 0.1, False, *tail)
    torch.library.opcheck(torch.ops.aswl.fused_adamw_.default, (*args, None, one))


def test_integers_arrive_whole_and_are_kept():
    values, cpu = [1, 2**62 + 1, 0, -5, 2**53 + 1], torch.device("cpu")
    first, second = (integers(values, cpu) for _ in range(2))
    assert first.tolist() == values and first is second
