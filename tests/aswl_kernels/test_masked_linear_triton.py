"""products="fused" of the masked linear product: its Triton kernels, in Triton's interpreter where there is no GPU."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from harness import DTYPES, assert_follows_formula, assert_no_worse, layouts, masked, operands, randn, run
from torch.func import grad as func_grad
from torch.func import vmap

from aswl_kernels import masked_linear, masked_linear_triton, reference

fused = partial(masked_linear, products="fused")
EVERY = (0, 1, 3, 4)  # x, weight, attention, bias
NAN, INF = float("nan"), float("inf")

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture
def launched(monkeypatch):
    """ "descriptor" or "pointer" for the way that each kernel launched from here on loads."""
    ways, choose = [], masked_linear_triton._choose

    def spy(*args):
        tile, descriptors, grid = choose(*args)
        ways.append("descriptor" if descriptors else "pointer")
        return tile, descriptors, grid

    monkeypatch.setattr(masked_linear_triton, "_choose", spy)
    return ways


@pytest.mark.parametrize("dtypes", DTYPES[1:])
@pytest.mark.parametrize(
    "x_shape, outputs, way",
    [
        ((33, 65), 31, "pointer"),
        ((2, 3, 64), 72, "descriptor"),
        ((2, 1, 3, 40), 136, "descriptor"),
        ((7,), 3, "pointer"),
        ((1, 1), 1, "pointer"),
        ((130, 8), 8, "descriptor"),
    ],
    ids=str,
)
def test_follows_the_formula(x_shape, outputs, way, dtypes, triton_device, launched):
    args = operands(x_shape, (outputs, x_shape[-1]), dtypes, triton_device)
    grad = randn((*x_shape[:-1], outputs), dtypes[0]).to(triton_device)
    assert_follows_formula(fused, F.linear, args, grad)
    assert launched == [way if masked_linear_triton._has_tma() else "pointer"] * 3


@pytest.mark.parametrize("dtypes", DTYPES[1:])
def test_tiles_of_every_size(dtypes, triton_device, monkeypatch):
    args = operands((150, 104), (136, 104), dtypes, triton_device)
    grad = randn((150, 136), dtypes[0]).to(triton_device)
    for size in range(3):
        pick = lambda sizes: sizes[min(size, len(sizes) - 1)]  # noqa: B023 used in this round only
        tiles = {key: [pick(sizes)] for key, sizes in masked_linear_triton.TILES.items()}
        monkeypatch.setattr(masked_linear_triton, "TILES", tiles)
        assert_follows_formula(fused, F.linear, args, grad)
        monkeypatch.undo()


def test_a_program_takes_tile_after_tile(triton_device, monkeypatch):
    monkeypatch.setattr(masked_linear_triton, "TILES", {(4, 4): [masked_linear_triton.Tile(16, 32, 32, 4, 3)]})
    monkeypatch.setattr(masked_linear_triton, "PROCESSORS", 1)  # which makes two programs
    args = operands((72, 40), (104, 40), (torch.float32,) * 2, triton_device)
    assert_follows_formula(fused, F.linear, args, randn((72, 104), torch.float32).to(triton_device))


@pytest.mark.parametrize(
    "x_shape, outputs", [((0, 4), 3), ((2, 0, 4), 3), ((3, 0), 2), ((3, 4), 0), ((0, 0), 0)], ids=str
)
def test_empty(x_shape, outputs, triton_device):
    args = operands(x_shape, (outputs, x_shape[-1]), (torch.float32, torch.float32), triton_device)
    grad = randn((*x_shape[:-1], outputs), torch.float32).to(triton_device)
    assert_follows_formula(fused, F.linear, args, grad)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_options_are_those_of_dense_products(attention, bias, scaled, triton_device):
    x, weight, threshold, a, b = operands((20, 24), (17, 24), (torch.float32, torch.float32), triton_device)
    args = (x, weight, threshold, a if attention else None, b if bias else None, scaled)
    wrt = tuple(i for i in EVERY if args[i] is not None)
    grad = randn((20, 17), torch.float32).to(triton_device)
    torch.testing.assert_close(run(fused, args, grad, wrt), run(masked_linear, args, grad, wrt))
    for i in wrt:
        torch.testing.assert_close(run(fused, args, grad, (i,)), run(masked_linear, args, grad, (i,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ties_and_nan_are_kept_and_only_smaller_weights_are_not_learnable(dtype, triton_device):
    weight = torch.tensor([[0.5, -0.5, 0.25], [-2.0, 0.125, 0.0]], dtype=dtype, device=triton_device)
    half, quarter = (torch.full((1,), value, device=triton_device) for value in (0.5, 0.25))
    eye = torch.eye(3, dtype=dtype, device=triton_device)
    launch = masked_linear_triton.masked_linear
    assert launch(eye, weight, half, None, None).mT.tolist() == [[0.5, -0.5, 0], [-2, 0, 0]]
    assert launch(eye, weight, half * NAN, None, None).mT.equal(weight)
    assert launch(eye, weight, half * INF, None, None).eq(0).all()
    assert launch(eye, weight, -half, None, None).mT.equal(weight)
    gradients = masked_linear_triton.masked_linear_weight_gradient
    dw, total = gradients(eye[:1, :2], eye[:1] + 1, weight, half, 2 * half, quarter)
    assert dw.tolist() == [[2, 1, 1], [0, 0, 0]] and total == 2 * 0.5 - 0.5
    weight[1, 1] = NAN
    assert launch(eye, weight, half, None, None).isnan().tolist() == [[False, True]] * 3
    dw, total = gradients(eye[:1, :2], eye[:1], weight, half, None, quarter)
    assert total.isnan() and not dw.isnan().any()


@pytest.mark.filterwarnings("ignore:overflow encountered")  # numpy's, where a threshold becomes fp16's infinity
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_threshold_is_compared_in_fp32(dtype, triton_device):
    step = torch.finfo(dtype).eps
    weight = torch.tensor([[1.0, 1 + step, 1 - step / 2, 2**-14, 0.0]], dtype=dtype, device=triton_device)
    for value in (1 + step / 4, 1 + step * 0.75, 1 - step / 8, 2**-14 * (1 + 2**-20), 1e-30, 3e38):
        threshold = torch.full((), value, device=triton_device)
        want = masked(weight, threshold)
        eye = torch.eye(5, dtype=dtype, device=triton_device)
        assert masked_linear_triton.masked_linear(eye, weight, threshold, None, None).mT.equal(want), value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_mask_of_an_fp32_weight_is_decided_in_fp32(dtype, triton_device):
    threshold = torch.tensor(1 + 2**-12, device=triton_device)
    weight = torch.tensor([[1 + 2**-11], [1.0]], device=triton_device)
    y = fused(torch.ones(1, 1, dtype=dtype, device=triton_device), weight, threshold)
    assert y.dtype == dtype and y.tolist() == [[1, 0]]


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's: NaN, as it should be
def test_infinite_inputs_meet_only_their_own_outputs(triton_device):
    x, weight, threshold, attention, bias = operands((20, 24), (17, 24), (torch.float32,) * 2, triton_device)
    x[3, 4], grad = INF, randn((20, 17), torch.float32).to(triton_device)
    threshold = threshold * 0  # so that no zero meets it
    got, want = (run(op, (x, weight, threshold, attention, bias), grad, EVERY) for op in (fused, masked_linear))
    torch.testing.assert_close(got, want, equal_nan=True)


def test_strides_do_not_matter(triton_device):
    x, weight, threshold, attention, bias = operands((16, 24), (32, 24), (torch.float32,) * 2, triton_device)
    grad = randn((16, 32), torch.float32).to(triton_device)
    want = run(masked_linear, (x, weight, threshold, attention, bias), grad, EVERY)
    for strided_x, strided_w, strided_grad in zip(layouts(x), layouts(weight), layouts(grad)):
        for args in ((strided_x, weight, grad), (x, strided_w, grad), (x, weight, strided_grad)):
            got = run(fused, (*args[:2], threshold, attention, bias), args[2], EVERY)
            torch.testing.assert_close(got, want)
    expanded = x[:1].expand(16, 24), weight[:1].expand(32, 24), threshold, attention, bias[:1].expand(32)
    one = torch.ones((), device=triton_device).expand(16, 32)  # as from .sum()
    torch.testing.assert_close(run(fused, expanded, one, EVERY), run(masked_linear, expanded, one, EVERY))
    cube = x.view(2, 8, 24).transpose(0, 1)
    torch.testing.assert_close(fused(cube, weight, threshold), masked_linear(cube, weight, threshold))


@pytest.mark.parametrize("gap", [2**28, 2**28 + 1], ids=["descriptor", "pointer"])
def test_rows_further_apart_than_32_bits_can_say(gap, triton_device):
    def spread(rows):
        storage = torch.UntypedStorage(len(rows) * gap * 4, device=triton_device)  # of which few pages are touched
        return rows.new_empty(0).set_(storage, 0, rows.shape, (gap, 1)).copy_(rows)

    x, weight, threshold, _, _ = operands((9, 8), (9, 8), (torch.float32,) * 2, triton_device)
    grad = randn((9, 9), torch.float32).to(triton_device)
    want = masked_linear(x, weight, threshold)
    torch.testing.assert_close(masked_linear_triton.masked_linear(spread(x), weight, threshold, None, None), want)
    torch.testing.assert_close(masked_linear_triton.masked_linear(x, spread(weight), threshold, None, None), want)
    want = reference.masked_linear_weight_gradient(grad, x, weight, threshold, None, None)
    got = masked_linear_triton.masked_linear_weight_gradient(
        spread(grad), spread(x), spread(weight), threshold, None, None
    )
    torch.testing.assert_close(got, want)


def test_two_runs_give_the_same_bits(triton_device):
    args = operands((150, 72), (200, 72), (torch.bfloat16, torch.float32), triton_device)
    grad = randn((150, 200), torch.bfloat16).to(triton_device)
    first, second = (run(fused, args, grad, EVERY) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second))


def test_what_is_not_learnable_has_no_gradient(triton_device):
    x, weight, threshold, attention, bias = operands((20, 24), (17, 24), (torch.float32,) * 2, triton_device)
    learning = {"learnable": 0.6 * threshold}
    grad = randn((20, 17), torch.float32).to(triton_device)
    got, want = (
        run(partial(op, **learning), (x, weight, threshold, attention, bias), grad, EVERY)
        for op in (fused, masked_linear)
    )
    torch.testing.assert_close(got, want)
    assert 0 < got[2].eq(0).float().mean() < 0.5


def test_the_sum_for_the_attention_is_taken_from_unrounded_gradients(triton_device):
    x, weight, threshold, _, _ = operands((64, 72), (80, 72), (torch.bfloat16, torch.bfloat16), triton_device)
    grad = randn((64, 80), torch.bfloat16).to(triton_device)
    args = (grad, x, weight, threshold, None, None)
    _, got = masked_linear_triton.masked_linear_weight_gradient(*args)
    _, same = reference.masked_linear_weight_gradient(*args)
    exact = (grad.double().mT @ x.double() * masked(weight, threshold).double()).sum()
    assert_no_worse(got, same, exact)
    assert got.dtype == torch.float32 and abs(got - exact) < 0.1 * abs(same - exact)


def test_second_derivatives_and_transforms(triton_device):
    x, weight, threshold, attention, bias = operands((6, 8), (8, 8), (torch.float32,) * 2, triton_device)
    args = x, weight, threshold, attention, bias

    def penalty(op, *args):
        leaves = [a.clone().requires_grad_() for a in args]
        grads = torch.autograd.grad(op(*leaves).square().sum(), [leaves[i] for i in EVERY], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), [leaves[i] for i in EVERY])

    torch.testing.assert_close(penalty(fused, *args), penalty(masked_linear, *args), rtol=1e-4, atol=1e-4)

    def loss(op, *args):
        return op(*args).square().sum()

    for transform in (lambda f: func_grad(f, EVERY), lambda f: vmap(f, (0, None, None, None, None))):
        got, want = (transform(partial(loss, op))(*args) for op in (fused, masked_linear))
        torch.testing.assert_close(got, want)


def test_compiles_whole(triton_device, monkeypatch):
    monkeypatch.undo()  # dynamo cannot trace what poisons memory
    args = operands((6, 8), (8, 8), (torch.float32,) * 2, triton_device)
    grad = randn((6, 8), torch.float32).to(triton_device)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: masked_linear(*args, products="fused"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, args, grad, EVERY), run(fused, args, grad, EVERY))


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[4]])
def test_opcheck(dtypes, triton_device):
    x, weight, threshold, attention, bias = operands((2, 3, 8), (5, 8), dtypes, triton_device)
    grad = randn((2, 3, 5), dtypes[0]).to(triton_device)
    ops = torch.ops.aswl
    for a, b in ((attention, bias), (None, None)):
        torch.library.opcheck(ops.masked_linear.default, (x.transpose(0, 1), weight, threshold, a, b))
        torch.library.opcheck(ops.masked_linear_input_gradient.default, (grad, weight, threshold, a))
        args = (grad, x, weight, threshold, a, threshold / 2)
        torch.library.opcheck(ops.masked_linear_weight_gradient.default, args)


def test_without_a_kernel_the_references_serve():
    args, grad = operands((2, 3, 8), (5, 8)), randn((2, 3, 5))
    torch.testing.assert_close(run(fused, args, grad, EVERY), run(masked_linear, args, grad, EVERY))
