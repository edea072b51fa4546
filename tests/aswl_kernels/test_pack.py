"""Packing keeps exactly the nonzeros; unpacking brings the weight back bit for bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from aswl_kernels import PackedWeight, gate, pack, reference, unpack

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAN, INF = float("nan"), float("inf")


def of_density(shape, density, dtype=torch.float32):
    weight = torch.randn(shape).where(torch.rand(shape) < density, 0)
    return weight.to(dtype)


def assert_packed(weight):
    """The pieces describe the nonzeros of ``weight`` in order, and unpacking restores it."""
    packed, rows = pack(weight), weight.flatten(1)
    assert packed.shape == tuple(weight.shape)
    assert packed.columns.dtype == torch.int32 and packed.offsets.dtype == torch.int64
    counts = [int((row != 0).sum()) for row in rows]
    assert packed.offsets.tolist() == [sum(counts[:i]) for i in range(len(counts) + 1)]
    columns = [j for row in rows.tolist() for j, value in enumerate(row) if value != 0]
    assert packed.columns.tolist() == columns
    nonzeros = torch.cat([weight.new_empty(0), *(row[row != 0] for row in rows)])
    torch.testing.assert_close(packed.values, nonzeros, rtol=0, atol=0, equal_nan=True)
    restored = unpack(packed)
    assert restored.is_contiguous()
    torch.testing.assert_close(restored, weight, rtol=0, atol=0, equal_nan=True, check_stride=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(7, 13), (4, 3, 3, 3), (1, 1), (3, 0), (0, 5), (0, 3, 3, 3), (2, 0, 1, 1)], ids=str)
def test_round_trip(shape, density, dtype, device):
    assert_packed(of_density(shape, density, dtype).to(device))


def test_worked_by_hand(device):
    weight = torch.tensor([[0.0, 5.0, -1.0], [0.0, 0.0, -0.0], [NAN, 0.0, INF], [1.0, 2.0, 3.0]], device=device)
    packed = pack(weight)
    assert packed.offsets.tolist() == [0, 2, 2, 4, 7]  # an empty row, a full row
    assert packed.columns.tolist() == [1, 2, 0, 2, 0, 1, 2]
    want = torch.tensor([5.0, -1.0, NAN, INF, 1.0, 2.0, 3.0], device=device)
    torch.testing.assert_close(packed.values, want, rtol=0, atol=0, equal_nan=True)
    assert unpack(packed)[1].signbit().logical_not().all()  # -0.0 is no nonzero: it comes back as 0.0


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threshold", [0.0, -1.0, 1e-45, 0.7, INF, NAN])
@pytest.mark.parametrize("attention", [None, torch.tensor([0.3]), torch.tensor(-1.7, dtype=torch.float64)], ids=str)
@pytest.mark.parametrize("shape", [(5, 16), (9, 37), (3, 2, 3, 3), (301, 260), (4, 0), (0, 4)], ids=str)
def test_a_threshold_and_an_attention_pack_the_gated_weight(shape, attention, threshold, dtype, device):
    weight = torch.randn(shape, dtype=torch.float64).to(dtype)
    special = torch.tensor([0.0, -0.0, NAN, INF, -INF, 0.7, -0.7, 1e-45, 1e-300], dtype=torch.float64).to(dtype)
    weight.flatten()[: len(special)] = special[: weight.numel()]
    weight, threshold = weight.to(device), torch.tensor(threshold, device=device)
    scale = attention if attention is None else attention.to(device)
    got = pack(weight, threshold, scale)
    assert_same(unpack(got), gate(weight, torch.ones(1, device=device) if scale is None else scale, threshold) + 0.0)
    for piece, want in zip(torch.ops.aswl.pack(weight, threshold, scale), reference.pack(weight, threshold, scale)):
        assert_same(piece, want)


def test_any_number_of_threads_packs_the_same_bits():
    weight, threshold, attention = torch.randn(333, 500), torch.tensor(1.5), torch.tensor([0.3])
    one = torch.ops.aswl.pack(weight, threshold, attention)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for got, want in zip(torch.ops.aswl.pack(weight, threshold, attention), one):
            assert_same(got, want)


def test_gradients_of_a_scaled_pack():
    weight = torch.tensor([[0.1, 2.0], [-3.0, 0.2]], requires_grad=True)
    packed = pack(weight, torch.tensor(1.0), torch.tensor([0.5]))
    assert packed.values.tolist() == [1.0, -1.5]
    (grad,) = torch.autograd.grad(packed.values, weight, torch.tensor([10.0, 20.0]))
    assert grad.tolist() == [[0, 5], [10, 0]]


@given(st.integers(0, 6), st.integers(0, 6), st.data())
def test_any_pattern(rows, columns, data):
    values = st.sampled_from([0.0, -0.0, 1.0, -2.5, 1e-45, 3e38, INF, NAN])
    flat = data.draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
    assert_packed(torch.tensor(flat).reshape(rows, columns))


@pytest.mark.parametrize(
    "shape, view",
    [
        pytest.param((5, 6), lambda w: w.t(), id="transposed"),
        pytest.param((5, 12), lambda w: w[:, 1::2], id="gaps"),
        pytest.param((1, 6), lambda w: w.expand(4, 6), id="expanded"),
        pytest.param((4, 3, 2, 5), lambda w: w.contiguous(memory_format=torch.channels_last), id="channels_last"),
    ],
)
def test_strides_do_not_matter(shape, view, device):
    assert_packed(view(of_density(shape, 0.5).to(device)))


def test_numerical_gradients():
    weight = of_density((4, 5), 0.5, torch.float64)
    packed = pack(weight)
    pieces = (packed.columns, packed.offsets, packed.shape)
    values = packed.values.requires_grad_()
    for check in (gradcheck, gradgradcheck):
        assert check(lambda v: unpack(PackedWeight(v, *pieces)), (values,))
    dense = torch.randn(4, 5, dtype=torch.float64).requires_grad_()  # no zero that a small step could make nonzero
    for check in (gradcheck, gradgradcheck):
        assert check(lambda w: pack(w).values, (dense,))


def test_gradients_reach_the_nonzeros_only():
    weight = torch.tensor([[0.0, 2.0], [3.0, 0.0]], requires_grad=True)
    values = pack(weight).values
    (grad,) = torch.autograd.grad(values, weight, torch.tensor([10.0, 20.0]))
    assert grad.tolist() == [[0, 10], [20, 0]]
    round_trip = torch.autograd.grad(unpack(pack(weight)), weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))[0]
    assert round_trip.tolist() == [[0, 2], [3, 0]]


def test_to_another_device_keeps_the_pieces_together(device):
    moved = pack(of_density((3, 4), 0.5)).to(device)
    assert {t.device.type for t in (moved.values, moved.columns, moved.offsets)} == {device} and moved.shape == (3, 4)
    assert pack(torch.ones(3, 4)).to("meta").values.is_meta


def test_opcheck(device):
    weight = of_density((3, 4, 2, 2), 0.5).to(device)
    packed = pack(weight)
    torch.library.opcheck(torch.ops.aswl.pack.default, (weight,))
    scalars = torch.tensor(0.5, device=device), torch.tensor([0.7], device=device)
    torch.library.opcheck(torch.ops.aswl.pack.default, (weight, *scalars))
    pieces = (packed.values, packed.columns, packed.offsets, packed.shape)
    torch.library.opcheck(torch.ops.aswl.unpack.default, pieces)


@pytest.mark.parametrize(
    "weight, words",
    [
        (torch.ones(3), "want a floating weight [out, ...]; got float32[3] on cpu"),
        (torch.tensor(1.0), "want a floating weight [out, ...]; got float32[] on cpu"),
        (torch.ones(2, 2).int(), "want a floating weight [out, ...]; got int32[2, 2] on cpu"),
        (torch.ones(2, 2).to(torch.complex64), "got complex64[2, 2] on cpu"),
        (
            torch.ones(1, 1).expand(2, 2**31),
            "want rows of fewer than 2**31 elements; got float32[2, 2147483648] on cpu",
        ),
    ],
)
def test_refuses(weight, words):
    with pytest.raises(ValueError) as error:
        pack(weight)
    assert str(error.value).startswith("pack: want ") and words in str(error.value)


@pytest.mark.parametrize("threshold", [torch.zeros(2), torch.tensor(1), torch.zeros((), device="meta")], ids=str)
def test_refuses_what_is_no_scalar(threshold):
    for scalars, name in (((threshold,), "threshold"), ((None, threshold), "attention")):
        with pytest.raises(ValueError, match=rf"pack: want {name} a floating 0-d or \[1\] tensor on cpu"):
            pack(torch.ones(2, 2), *scalars)


GOOD = {
    "values": torch.ones(3),
    "columns": torch.tensor([0, 1, 0], dtype=torch.int32),
    "offsets": torch.tensor([0, 2, 3]),
    "shape": (2, 4),
}


@pytest.mark.parametrize(
    "piece, words",
    [
        ({"values": torch.ones(2)}, "got float32[2] on cpu, int32[3] on cpu, int64[3] on cpu"),
        ({"values": torch.ones(3, 1)}, "got float32[3, 1] on cpu"),
        ({"values": torch.ones(3).int()}, "want floating values [nonzeros]"),
        ({"columns": torch.zeros(3).long()}, "int32 columns [nonzeros]"),
        ({"columns": torch.zeros(4).int()}, "got float32[3] on cpu, int32[4] on cpu"),
        ({"offsets": torch.tensor([0, 3])}, "int64 offsets [rows + 1] on one device for a weight of shape (2, 4)"),
        ({"offsets": torch.tensor([0, 2, 3]).int()}, "int32[3] on cpu, int32[3] on cpu"),
        ({"offsets": torch.tensor([0, 2, 3]).to("meta")}, "int64[3] on meta"),
        ({"shape": (3, 4)}, "for a weight of shape (3, 4)"),
        ({"shape": (2,)}, "for a weight of shape (2,)"),
    ],
)
def test_packed_weight_refuses_pieces_that_do_not_belong_together(piece, words):
    assert unpack(PackedWeight(**GOOD)).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0]]
    with pytest.raises(ValueError) as error:
        PackedWeight(**GOOD | piece)
    assert str(error.value).startswith("PackedWeight: want ") and words in str(error.value)
