"""The masks of many weights at once are those of one by one."""

import pytest
import torch
from harness import layouts

from aswl_kernels import gate, gate_all, gate_all_triton

SHAPES = [(3, 4), (0, 5), (gate_all_triton.BLOCK + 1,), (), (2, 3, 5, 5), (70, 33)]


def one_by_one(weights, thresholds, dtype=None):
    one = torch.ones(1, device=weights[0].device, dtype=torch.promote_types(weights[0].dtype, torch.float32))
    return [gate(weight, one, threshold, dtype) for weight, threshold in zip(weights, thresholds)]


def make(device, dtype=torch.float32, shapes=SHAPES):
    weights = [torch.randn(shape).to(device, dtype) for shape in shapes]
    return weights, [
        weight.abs().float().median() if weight.numel() else torch.zeros((), device=device) for weight in weights
    ]


def assert_same(got, want):
    assert len(got) == len(want)
    for mine, its in zip(got, want):
        torch.testing.assert_close(mine, its, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_every_device(dtype, device):
    weights, thresholds = make(device, dtype)
    assert_same(gate_all(weights, thresholds), one_by_one(weights, thresholds))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("to", [None, torch.bfloat16, torch.float32], ids=str)
def test_the_kernel(dtype, to, triton_device):
    weights, thresholds = make(triton_device, dtype)
    weights[0][0, 0] = float("nan")
    assert_same(gate_all(weights, thresholds, to), one_by_one(weights, thresholds, to))


def test_strides_odd_addresses_and_thresholds_of_several_dtypes(triton_device):
    weights, thresholds = make(triton_device, shapes=[(6, 7), (4, 3, 3, 2)])
    for strided in zip(*(layouts(weight) for weight in weights)):
        mixed = [thresholds[0].reshape(1), thresholds[1].to(torch.bfloat16)]
        got = gate_all(list(strided), mixed)
        assert_same(got, one_by_one(weights, mixed))
    last = weights[1].contiguous(memory_format=torch.channels_last)
    assert gate_all([last], thresholds[1:])[0].stride() == last.stride()


def test_none_at_all():
    assert gate_all([], []) == []


def test_bad_arguments_say_what_was_wanted():
    weights, thresholds = make("cpu")
    with pytest.raises(ValueError, match="gate_all: want 6 thresholds, one per weight; got 5"):
        gate_all(weights, thresholds[1:])
    with pytest.raises(ValueError, match="want floating weights of one dtype on one device; got float32"):
        gate_all([weights[0], weights[1].half()], thresholds[:2])
    with pytest.raises(ValueError, match="want a floating dtype; got torch.int8"):
        gate_all(weights, thresholds, torch.int8)


def test_the_operator_is_well_formed():
    weights, thresholds = make("cpu", shapes=[(8, 4), (16,)])  # without gaps, which hold anything
    torch.library.opcheck(torch.ops.aswl.gate_all.default, (weights, thresholds, torch.bfloat16))
