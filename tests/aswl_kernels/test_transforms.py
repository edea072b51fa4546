"""Every operator under torch.compile, torch.func, torch.export and autocast."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from harness import conv, masked, operands
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap

from aswl_kernels import (
    PackedWeight,
    gap_linear,
    gate,
    magnitude_threshold,
    masked_conv2d,
    masked_linear,
    pack,
    pack_gaps,
    sparse_conv2d,
    sparse_linear,
    unpack,
)

LINEAR, CONV = ((3, 4), (5, 4)), ((2, 4, 5, 6), (6, 2, 3, 2))
GEOMETRY = {"padding": "same", "groups": 2}


def packing(op, **geometry):
    """A sparse operator as a function of (x, weight, bias), packed once; the gradient reaches ``weight`` at nonzeros."""

    def bind(x, weight, threshold, attention, bias):
        packed = pack(masked(weight, threshold))
        pieces = (packed.columns, packed.offsets, packed.shape)
        return lambda x, values, bias: op(x, PackedWeight(values, *pieces), bias, **geometry), (x, packed.values, bias)

    return bind


def packing_gaps(x, weight, threshold, attention, bias):
    """As :func:`packing`, for ``gap_linear``."""
    packed = pack_gaps(masked(weight, threshold))
    return lambda x, values, bias: gap_linear(x, replace(packed, values=values), bias), (x, packed.values, bias)


def binding(op, **geometry):
    """A masked operator as a function of all its tensors."""
    return lambda *args: (lambda *args: op(*args, **geometry), args)


CASES = {  # shapes of (x, weight), (x, weight, threshold, attention, bias) -> (function, its arguments)
    "gate": (LINEAR, lambda x, w, t, a, b: (gate, (w, a, t))),
    "masked_linear": (LINEAR, binding(masked_linear)),
    "masked_conv2d": (CONV, binding(masked_conv2d, **GEOMETRY)),
    "sparse_linear": (LINEAR, packing(sparse_linear)),
    "sparse_conv2d": (CONV, packing(sparse_conv2d, **GEOMETRY)),
    "gap_linear": (LINEAR, packing_gaps),
}


@pytest.fixture(params=CASES)
def case(request):
    """(op, args): the operator as a function of its tensors, in fp64, the first of them varying per sample."""
    shapes, bind = CASES[request.param]
    return bind(*operands(*shapes))


def leaves(args):
    return tuple(a.detach().clone().requires_grad_(a.dim() > 0) for a in args)


def run(op, args):
    """The result, and the gradients of a weighted sum of it with respect to all but the (0-d) threshold."""
    args = leaves(args)
    y = op(*args)
    weights = torch.arange(1.0, y.numel() + 1, dtype=y.dtype).view(y.shape)
    return y.detach(), torch.autograd.grad((y * weights).sum(), [a for a in args if a.requires_grad])


class Wrapped(torch.nn.Module):
    """A function as a module, which is what torch.export takes."""

    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, *args):
        return self.op(*args)


def test_compile_forward_and_backward(case):
    op, args = case
    torch._dynamo.reset()
    torch.testing.assert_close(run(torch.compile(op, fullgraph=True, backend="aot_eager"), args), run(op, args))


@pytest.mark.parametrize("name", ["gate", "masked_linear", "masked_conv2d"])
def test_compile_once_for_all_thresholds_and_attentions(name):
    shapes, bind = CASES[name]
    op, args = bind(*operands(*shapes))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op, fullgraph=True, backend=counter)
    for t in (0.0, 0.3, 1.5, float("inf")):
        now = [torch.full_like(a, t) if a.dim() == 0 else a + t if a.shape == (1,) and t < 9 else a for a in args]
        torch.testing.assert_close(run(compiled, now), run(op, now))
    assert counter.frame_count == 1


def test_compile_once_for_all_batch_sizes():
    _, weight, threshold, attention, bias = operands(*CONV)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(masked_conv2d, fullgraph=True, backend=counter, dynamic=True)
    for batch, size in ((7, 5), (9, 11), (4, 8)):  # no two sizes equal: dynamo would tie them
        args = (torch.randn(batch, 2, size, size).double(), weight, threshold, attention, bias)
        torch.testing.assert_close(compiled(*args), masked_conv2d(*args))
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # inductor's own import
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="inductor needs a C++ compiler")
def test_compile_with_inductor():
    args = operands((3, 4), (5, 4), (torch.float32, torch.float32))
    torch._dynamo.reset()
    torch.testing.assert_close(run(torch.compile(masked_linear, fullgraph=True), args), run(masked_linear, args))


def test_compile_magnitude_threshold_and_packing():
    weights, keep = [torch.randn(5, 4), torch.randn(7)], torch.tensor([3, 2])
    torch._dynamo.reset()
    threshold = torch.compile(magnitude_threshold, fullgraph=True, backend="aot_eager")
    for k in (keep, keep + 1):
        assert threshold(weights, k).equal(magnitude_threshold(weights, k))
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        weight = weights[0].relu()
        there_and_back = torch.compile(lambda w: unpack(pack(w)), fullgraph=True, backend="aot_eager")
        assert there_and_back(weight).equal(weight)


def test_func_grad(case):
    op, args = case
    _, want = run(op, args)
    wrt = tuple(i for i, a in enumerate(args) if a.dim())
    got = grad(lambda *args: (op(*args).flatten() * torch.arange(1.0, op(*args).numel() + 1)).sum(), wrt)(*args)
    torch.testing.assert_close(got, want)


def test_vmap_over_each_argument(case):
    op, args = case
    for i, arg in enumerate(args):
        stacked = torch.stack([arg, -2 * arg, arg + 0.1])
        want = torch.stack([op(*args[:i], each, *args[i + 1 :]) for each in stacked])
        in_dims = tuple(0 if j == i else None for j in range(len(args)))
        torch.testing.assert_close(vmap(op, in_dims)(*args[:i], stacked, *args[i + 1 :]), want)
        moved = stacked.movedim(0, -1)
        in_dims = tuple(-1 if j == i else None for j in range(len(args)))
        torch.testing.assert_close(vmap(op, in_dims, out_dims=1)(*args[:i], moved, *args[i + 1 :]), want.movedim(0, 1))


def test_vmap_over_all_arguments_is_an_ensemble(case):
    op, args = case
    members = [tuple(a * s for a in args) for s in (1.0, 0.5, -1.5)]
    want = torch.stack([op(*member) for member in members])
    torch.testing.assert_close(vmap(op)(*(torch.stack(each) for each in zip(*members))), want)


@pytest.mark.parametrize("name", [name for name in CASES if name != "gate"])
def test_per_sample_gradients(name):
    shapes, bind = CASES[name]
    op, (x, *others) = bind(*operands(*shapes))
    wrt = tuple(i + 1 for i, a in enumerate(others) if a.dim())

    def loss(x, *others):
        return op(x, *others).square().sum()

    per_sample = vmap(grad(loss, wrt), (0, *[None] * len(others)))(x, *others)
    for i, sample in enumerate(x):
        one = leaves(others)
        want = torch.autograd.grad(loss(sample, *one), [o for o in one if o.requires_grad])
        torch.testing.assert_close(tuple(g[i] for g in per_sample), want)


def test_grad_of_vmap(case):
    op, args = case
    wrt = tuple(i for i, a in enumerate(args) if a.dim())
    stacked = torch.stack([args[0], 2 * args[0]])

    def loss(first, *others):
        return vmap(op, (0, *[None] * len(others)))(first, *others).square().sum()

    def by_loop(first, *others):
        return sum(op(each, *others).square().sum() for each in first)

    torch.testing.assert_close(grad(loss, wrt)(stacked, *args[1:]), grad(by_loop, wrt)(stacked, *args[1:]))


def test_export_round_trip(case, tmp_path):
    op, args = case
    torch.export.save(torch.export.export(Wrapped(op), args), tmp_path / "program.pt2")
    program = torch.export.load(tmp_path / "program.pt2").module()
    other = tuple(a + 0.1 for a in args)
    torch.testing.assert_close(program(*other), op(*other))


def test_export_with_any_batch_size():
    x, *others = operands(*CONV)
    batch = torch.export.Dim("batch", min=2, max=64)
    wrapped = Wrapped(lambda x: masked_conv2d(x, *others, **GEOMETRY))
    program = torch.export.export(wrapped, (x,), dynamic_shapes=(({0: batch},),)).module()
    many = torch.randn(7, *x.shape[1:]).double()
    torch.testing.assert_close(program(many), wrapped(many))


def contiguous(t):
    return t.contiguous()


def innermost_first(t):
    """The same values, channels_last or column-major."""
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t.t().contiguous().t()


@pytest.mark.parametrize("layout", [contiguous, innermost_first])
def test_fakes_have_the_real_metadata(case, layout):
    op, args = case
    args = [layout(a) for a in args]
    real = op(*args)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = op(*(mode.from_tensor(a) for a in args))
    assert (fake.shape, fake.dtype, fake.stride(), fake.device) == (real.shape, real.dtype, real.stride(), real.device)


@pytest.mark.parametrize("name", ["gate", "masked_linear", "masked_conv2d"])
def test_meta_tensors(name):
    shapes, bind = CASES[name]
    op, args = bind(*operands(*shapes))
    real, meta = op(*args), op(*(a.to("meta") for a in args))
    assert meta.is_meta and (meta.shape, meta.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["masked_linear", "masked_conv2d"])
def test_autocast_is_pytorchs_on_the_masked_weight(name, dtype):
    shapes, bind = CASES[name]
    product = F.linear if name == "masked_linear" else conv(GEOMETRY)
    args = operands(*shapes, (torch.float32, torch.float32))
    op, _ = bind(*args)

    def pytorch(x, weight, threshold, attention, bias):
        return product(x, attention * (weight - (weight - masked(weight, threshold)).detach()), attention * bias)

    with torch.autocast("cpu", dtype):
        got, want = run(op, args), run(pytorch, args)
    assert got[0].dtype == dtype and {g.dtype for g in got[1]} == {torch.float32}
    assert got[0].equal(want[0])
    torch.testing.assert_close(got[1], want[1], rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


@pytest.mark.parametrize("name", ["sparse_linear", "sparse_conv2d"])
def test_autocast_of_sparse_products(name):
    shapes, bind = CASES[name]
    x, weight, threshold, attention, bias = operands(*shapes, (torch.float32, torch.float32))
    op, args = bind(x, weight, threshold, attention, bias)
    product = F.linear if name == "sparse_linear" else conv(GEOMETRY)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = op(*args), product(x, masked(weight, threshold), bias)
    assert got.dtype == torch.bfloat16 and got.equal(want)


def test_autocast_leaves_fp64_alone():
    args = operands(*LINEAR)
    with torch.autocast("cpu", torch.bfloat16):
        inside = masked_linear(*args)
    assert inside.equal(masked_linear(*args))


def test_autocast_compiled():
    args = operands(*LINEAR, (torch.float32, torch.float32))
    torch._dynamo.reset()
    compiled = torch.compile(masked_linear, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled(*args).equal(masked_linear(*args))
    assert compiled(*args).dtype == torch.float32
