"""The walk over gap-coded weights in Triton, in its interpreter on a machine without a GPU."""

import pytest
import torch
import torch.nn.functional as F
from harness import assert_no_worse, layouts

from aswl_kernels import gap_linear, gap_linear_triton, gaps, pack_gaps, reference_gaps, unpack_gaps
from aswl_kernels.reference_gaps import STEP, STRIP

DTYPES = [  # of x, of the weight
    pytest.param((torch.float32, torch.float32), id="fp32"),
    pytest.param((torch.bfloat16, torch.bfloat16), id="bf16"),
    pytest.param((torch.float16, torch.float16), id="fp16"),
    pytest.param((torch.bfloat16, torch.float32), id="bf16 over fp32"),
]
INF, NAN = float("inf"), float("nan")

pytestmark = pytest.mark.usefixtures("poisoned")


def operands(rows, shape, density, dtypes, device):
    """(x, weight, bias); one row of the weight is full, one empty."""
    weight = torch.randn(shape, dtype=torch.float64).where(torch.rand(shape) < density, 0).to(dtypes[1])
    weight[:1] = 0.5
    weight[-1:] = 0
    x, bias = (torch.randn(s, dtype=torch.float64).to(dtypes[0]) for s in ((rows, shape[1]), shape[:1]))
    return x.to(device), weight.to(device), bias.to(device)


def assert_right(x, weight, bias, packed=None):
    y = gap_linear(x, packed or pack_gaps(weight), bias)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert_no_worse(y, F.linear(x, weight.to(x.dtype), bias), exact)
    return y


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9, 16, 17])
def test_rows(rows, dtypes, triton_device):
    assert_right(*operands(rows, (37, 75), 0.3, dtypes, triton_device))


@pytest.mark.parametrize("start", [0, 2], ids=["codes of 4 bits", "codes of 8 bits"])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (32, 64), (33, 9), (3, 513)], ids=str)
def test_sizes_and_densities(shape, density, start, triton_device, monkeypatch):
    monkeypatch.setattr(gaps, "NIBBLES_FROM", start)
    x, weight, bias = operands(2, shape, density, (torch.float32, torch.float32), triton_device)
    assert_right(x, weight, bias)
    assert torch.equal(unpack_gaps(pack_gaps(weight)), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_unpacks_the_same_bits(dtype, triton_device):
    _, weight, _ = operands(1, (40, 600), 0.1, (dtype, dtype), triton_device)
    assert torch.equal(unpack_gaps(pack_gaps(weight)), weight)


@pytest.mark.parametrize("x_shape", [(0, 4), (2, 0, 4), (3, 0), (0,), (4,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("outputs", [0, 3])
def test_any_shape(x_shape, outputs, triton_device):
    x, weight = torch.randn(x_shape, device=triton_device), torch.randn(outputs, x_shape[-1], device=triton_device)
    assert_right(x, weight, torch.randn(outputs, device=triton_device))
    assert_right(x, weight, None)


def test_strides_do_not_matter(triton_device):
    x, weight, bias = operands(3, (5, 20), 0.5, (torch.float32, torch.float32), triton_device)
    packed = pack_gaps(weight)
    want = gap_linear(x, packed, bias)
    for strided in layouts(x):
        assert torch.equal(gap_linear(strided, packed, bias), want)
    assert torch.equal(gap_linear(x[0], packed, bias.repeat_interleave(2)[::2]), gap_linear(x[:1], packed, bias)[0])
    pieces = [t.repeat_interleave(2, dim=0)[::2] for t in (packed.values, *packed.indices)]
    assert torch.equal(gap_linear_triton.gap_linear(x, *pieces, bias), want)
    assert torch.equal(gap_linear_triton.unpack_gaps(*pieces, packed.shape), weight)


def test_nan_and_infinity_survive(triton_device):
    weight = torch.tensor([[0.0, NAN], [1.0, 0.0], [INF, 0.0], [0.0, 0.0]], device=triton_device)
    assert gap_linear(torch.ones(1, 2, device=triton_device), pack_gaps(weight)).isnan().tolist() == [[1, 0, 0, 0]]
    x = torch.tensor([[NAN, 1.0]], device=triton_device)
    assert gap_linear(x, pack_gaps(weight))[0, 1].isnan()


def test_gradients(triton_device):
    x, weight, bias = operands(3, (35, 40), 0.4, (torch.float32, torch.float32), triton_device)
    grads = []
    for product in (lambda: gap_linear(x, pack_gaps(weight), bias), lambda: F.linear(x, weight, bias)):
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        grads.append(torch.autograd.grad(product().square().sum(), leaves))
    for got, want, zero in zip(*grads, (False, weight == 0, False)):
        torch.testing.assert_close(got, want.masked_fill(torch.as_tensor(zero), 0))


def test_two_runs_give_the_same_bits(triton_device):
    x, weight, bias = operands(4, (33, 600), 0.2, (torch.bfloat16, torch.bfloat16), triton_device)
    packed = pack_gaps(weight)
    assert torch.equal(gap_linear(x, packed, bias), gap_linear(x, packed, bias))


def test_slots_past_32_bits(triton_device):
    """One step of 32 rows, so far back that the offset of its values has 33 bits; nothing before it is touched."""
    begin = 2**32 // (STRIP * STEP)
    weight = torch.randn(STRIP, 8).bfloat16().to(triton_device)
    packed = pack_gaps(weight)
    far = [torch.empty(0, dtype=t.dtype, device=triton_device) for t in (packed.values, packed.codes)]
    far[0] = far[0].new_empty(0).resize_((begin + 1) * STRIP * STEP)
    far[1] = far[1].new_empty(0).resize_((begin + 1) * STRIP)
    far[0][-STRIP * STEP :], far[1][-STRIP:] = packed.values, packed.codes
    x = torch.randn(1, 8).bfloat16().to(triton_device)
    pieces = (*far, packed.offsets + begin, packed.lengths)
    assert torch.equal(gap_linear_triton.gap_linear(x, *pieces, None), gap_linear(x, packed))
    assert torch.equal(gap_linear_triton.unpack_gaps(*pieces, packed.shape), weight)


def test_the_walk_is_for_few_rows_and_fp64_for_the_reference(triton_device, monkeypatch):
    x, weight, bias = operands(17, (5, 20), 0.5, (torch.float32, torch.float32), triton_device)
    packed = pack_gaps(weight)
    monkeypatch.setattr(gap_linear_triton, "gap_linear_kernel", None)
    assert_right(x, weight, bias)
    with pytest.raises(TypeError):
        gap_linear(x[:16], packed, bias)
    double = reference_gaps.gap_linear(x.double(), packed.values.double(), *packed.indices, bias.double())
    assert torch.equal(gap_linear(x.double(), pack_gaps(weight.double()), bias.double()), double)
