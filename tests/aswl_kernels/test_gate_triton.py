"""The gate's Triton kernels, in Triton's interpreter on a machine without a GPU."""

import pytest
import torch
from harness import assert_no_worse, layouts, masked, run

from aswl_kernels import gate, gate_triton, reference

PAIRS = [
    pytest.param((torch.float32, None), id="fp32"),
    pytest.param((torch.bfloat16, None), id="bf16"),
    pytest.param((torch.float16, None), id="fp16"),
    pytest.param((torch.float32, torch.bfloat16), id="fp32 to bf16"),
    pytest.param((torch.float32, torch.float16), id="fp32 to fp16"),
]
SIZES = [0, 1, 1023, gate_triton.BLOCK, gate_triton.BLOCK + 1, 3 * gate_triton.BLOCK * gate_triton.CHUNK + 5]
NAN, INF = float("nan"), float("inf")


pytestmark = pytest.mark.usefixtures("poisoned")


def inputs(shape, device, dtype=torch.float32):
    weight, grad = (torch.randn(shape, dtype=torch.float64).to(device, dtype) for _ in range(2))
    threshold = weight.abs().float().median() if weight.numel() else torch.tensor(1.0, device=device)
    return weight, torch.tensor([0.3], device=device), threshold, grad


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("n", SIZES)
def test_is_no_worse_than_the_reference(n, pair, triton_device):
    dtype, to = pair
    weight, attention, threshold, grad = inputs(n, triton_device, dtype)
    grad = grad.to(to or dtype)
    got = run(gate, (weight, attention, threshold, to), grad, wrt=(0, 1))
    same = run(reference.gate, (weight, attention, threshold, to), grad, wrt=(0, 1))
    exact = run(reference.gate, (weight.double(), attention.double(), threshold.double()), grad.double(), wrt=(0, 1))
    terms = (grad.double() * masked(weight, threshold)).abs().sum().item()
    for i, triple in enumerate(zip(got, same, exact, strict=True)):
        assert_no_worse(*triple, terms=terms if i == 2 else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ties_and_nan_are_kept_and_signs_stay(dtype, triton_device):
    weight = torch.tensor([0.5, -0.5, 0.25, -2.0, 0.0, NAN, INF, -INF], dtype=dtype, device=triton_device)
    half, one = (torch.full((1,), value, device=triton_device) for value in (0.5, 1.0))
    y = gate_triton.gate(weight, None, half)
    torch.testing.assert_close(y, weight.where(weight.abs() != 0.25, 0), rtol=0, atol=0, equal_nan=True)
    assert gate_triton.gate(weight, None, half * NAN)[:5].tolist() == weight[:5].tolist()
    total = gate_triton.attention_gradient(weight[:4], weight[:4], one, half)
    assert total.item() == 4.5
    assert gate_triton.attention_gradient(weight, weight, one, half).isnan().all()


@pytest.mark.parametrize("shape", [(6, 7), (4, 3, 3, 2)], ids=str)
def test_any_strides(shape, triton_device):
    weight, attention, threshold, grad = inputs(shape, triton_device)
    want = run(gate, (weight, attention, threshold), grad, wrt=(0, 1))
    for strided_weight, strided_grad in zip(layouts(weight), layouts(grad)):
        for args in ((strided_weight, grad), (weight, strided_grad), (strided_weight, strided_grad)):
            got = run(gate, (args[0], attention, threshold), args[1], wrt=(0, 1))
            for mine, its in zip(got[:2], want[:2]):
                torch.testing.assert_close(mine, its, rtol=0, atol=0)
            torch.testing.assert_close(got[2], want[2])
    dense = weight.transpose(0, -1).contiguous().transpose(0, -1)
    assert gate_triton.gate(dense, attention, threshold).stride() == dense.stride()


def test_two_runs_give_the_same_bits(triton_device):
    weight, attention, threshold, grad = inputs(SIZES[-1], triton_device)
    sums = [gate_triton.attention_gradient(grad, weight, attention, threshold) for _ in range(2)]
    assert torch.equal(*sums)


def test_fp64_goes_to_the_reference(triton_device, monkeypatch):
    monkeypatch.setattr(gate_triton, "gate", None)
    weight, attention, threshold, _ = inputs(9, triton_device, torch.float64)
    assert torch.equal(gate(weight, attention.double(), threshold), reference.gate(weight, attention, threshold))
    with pytest.raises(TypeError):
        gate(weight.float(), attention, threshold)
