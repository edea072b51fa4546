"""What must not happen: an index that leads outside, a 32-bit overflow, a call from another thread or a forked process that
hangs or changes the result. Refusals hold with and without the C++ library."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from aswl_kernels import (
    PackedWeight,
    adjoint,
    gate,
    magnitude_threshold,
    masked_conv2d,
    masked_linear,
    native,
    pack,
    sparse_conv2d,
    sparse_linear,
    unpack,
)

SHAPES = {"unpack": (2, 4), "adjoint": (2, 4), "sparse_linear": (2, 4), "sparse_conv2d": (2, 1, 2, 2)}
USERS = {
    "unpack": unpack,
    "adjoint": adjoint,
    "sparse_linear": lambda packed: sparse_linear(torch.ones(3, 4), packed),
    "sparse_conv2d": lambda packed: sparse_conv2d(torch.ones(1, 1, 3, 3), packed),
}
users = pytest.mark.parametrize("op", USERS)


def good(op):
    columns, offsets = torch.tensor([0, 2, 3, 1], dtype=torch.int32), torch.tensor([0, 3, 4])
    return PackedWeight(torch.ones(4), columns, offsets, SHAPES[op])


@users
@pytest.mark.parametrize(
    "piece, values, words",
    [
        ("columns", [0, 2, 4, 1], "want packed columns from 0 to 3; got 0, 4"),
        ("columns", [0, 2, 10**9, 1], "want packed columns from 0 to 3; got 0, 1000000000"),
        ("columns", [0, 2, 3, -1], "want packed columns from 0 to 3; got -1, 3"),
        ("columns", [-(2**31), 2, 3, 1], "want packed columns from 0 to 3"),
        ("columns", [0, 2, 2, 1], "want packed columns that ascend within each row; got [0, 2, 2, 1]"),
        ("columns", [2, 0, 3, 1], "want packed columns that ascend within each row; got [2, 0, 3, 1]"),
        ("offsets", [0, 5, 4], "want packed offsets that ascend from 0 to the 4 nonzeros; got [0, 5, 4]"),
        ("offsets", [1, 3, 4], "want packed offsets that ascend from 0"),
        ("offsets", [0, 3, 3], "want packed offsets that ascend from 0"),
        ("offsets", [0, 3, 2**40], "want packed offsets that ascend from 0"),
        ("offsets", [0, -1, 4], "want packed offsets that ascend from 0"),
        ("offsets", [-(2**63), 3, 4], "want packed offsets that ascend from 0"),
    ],
)
def test_indices_that_lead_outside_are_refused(op, piece, values, words):
    """From the start, and after a use that found them good."""
    tampered = replace(good(op), **{piece: torch.tensor(values, dtype=getattr(good(op), piece).dtype)})
    changed = good(op)
    USERS[op](changed)
    getattr(changed, piece).copy_(getattr(tampered, piece))
    for packed in (tampered, changed):
        with pytest.raises(ValueError) as error:
            USERS[op](packed)
        assert str(error.value).startswith(f"{op}: ") and words in str(error.value)
    getattr(changed, piece).copy_(getattr(good(op), piece))
    USERS[op](changed)


@users
def test_pieces_cut_short_in_place_are_refused(op):
    for piece in ("values", "columns", "offsets"):
        packed = good(op)
        USERS[op](packed)
        getattr(packed, piece).resize_(2)
        with pytest.raises(ValueError, match="PackedWeight: want floating values"):
            USERS[op](packed)


@users
def test_pieces_with_gaps_work(op):
    gaps = replace(
        good(op), **{p: getattr(good(op), p).repeat_interleave(2)[::2] for p in ("values", "columns", "offsets")}
    )
    want, got = USERS[op](good(op)), USERS[op](gaps)
    for a, b in zip(*((p.values, p.columns) if op == "adjoint" else (p,) for p in (want, got)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("op", ["unpack", "sparse_linear", "sparse_conv2d"])
def test_indices_changed_before_the_backward_are_refused(op):
    packed = replace(good(op), values=torch.ones(4, requires_grad=True))
    y = USERS[op](packed)
    packed.columns[2] = 10**6
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("shape", [(2, 2**31), (2, 2**16, 2**8, 2**7), (2, -4)], ids=str)
def test_rows_that_32_bits_cannot_index_are_refused(shape):
    with pytest.raises(ValueError, match="PackedWeight: want"):
        replace(good("unpack"), shape=shape)


@pytest.mark.skipif(not native.AVAILABLE, reason="the reference has PyTorch's own limits")
def test_images_that_32_bits_cannot_index_are_refused():
    x = torch.zeros(1, 1, 1, 1).expand(1, 2**20, 3, 2**10)
    columns, offsets = torch.zeros(1, dtype=torch.int32), torch.tensor([0, 1])
    with pytest.raises(RuntimeError, match="fewer than 2\\*\\*31"):
        sparse_conv2d(x, PackedWeight(torch.ones(1), columns, offsets, (1, 2**20, 3, 3)), padding=1)


def test_fake_tensors_and_inference_mode_pass():
    with FakeTensorMode():
        assert sparse_linear(torch.ones(3, 4), good("sparse_linear")).shape == (3, 2)
    with torch.inference_mode():
        packed = good("unpack")
        assert unpack(packed).sum() == 4 and unpack(packed).sum() == 4


def calls():
    """Every operator on inputs large enough for several threads; no gradients."""
    x, weight = torch.randn(70, 300), torch.randn(120, 300)
    images, kernel = torch.randn(5, 16, 12, 12), torch.randn(24, 16, 3, 3)
    large = torch.randn(400, 300)
    threshold, attention, keep = torch.tensor(1.2), torch.tensor([0.7]), torch.tensor([9000, 99])
    packed, packed_kernel = pack(weight, threshold), pack(kernel, threshold)
    return {
        "gate": lambda: gate(large, attention, threshold),
        "magnitude_threshold": lambda: magnitude_threshold([large, x], keep),
        "masked_linear": lambda: masked_linear(x, weight, threshold, attention),
        "masked_conv2d": lambda: masked_conv2d(images, kernel, threshold, attention),
        "pack": lambda: pack(large, threshold, attention).values,
        "unpack": lambda: unpack(packed),
        "adjoint": lambda: adjoint(packed).values,
        "sparse_linear": lambda: sparse_linear(x, packed),
        "sparse_linear, one row": lambda: sparse_linear(x[0], packed),
        "sparse_conv2d": lambda: sparse_conv2d(images, packed_kernel, padding=1),
    }


def test_concurrent_calls_of_all_operators_while_the_number_of_threads_changes():
    ops = calls()
    alone = {name: op() for name, op in ops.items()}
    with ThreadPoolExecutor(4) as pool:
        for threads in (1, 2, 3, 1, 4):
            torch.set_num_threads(threads)
            for name, got in [(name, pool.submit(op)) for name, op in ops.items() for _ in range(3)]:
                torch.testing.assert_close(got.result(), alone[name], rtol=1e-5, atol=1e-5)


FORK = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
from test_robustness import calls
from torch.utils.data import DataLoader

torch.manual_seed(0)
torch.set_num_threads(2)
ops = calls()
alone = {name: op() for name, op in ops.items()}

class Results(torch.utils.data.Dataset):
    def __len__(self):
        return len(ops)
    def __getitem__(self, i):
        name = list(ops)[i]
        return bool(torch.allclose(ops[name](), alone[name], atol=1e-5))

for workers in (1, 2):
    right = list(DataLoader(Results(), batch_size=None, num_workers=workers, multiprocessing_context="fork", timeout=60))
    assert right == [True] * len(ops), right
assert all(torch.allclose(op(), alone[name], atol=1e-5) for name, op in ops.items())
print("the same")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="fork is the way of Linux")
def test_workers_forked_after_use_compute_the_same():
    folder = str(__file__).rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", FORK, folder], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout == "the same\n", done.stderr[-2000:]
