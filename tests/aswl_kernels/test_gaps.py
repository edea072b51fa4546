"""Gap-coded weights: what is packed comes back bit for bit, and what was tampered with is refused."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

from aswl_kernels import GapWeight, gap_linear, gaps, gate, pack_gaps, unpack_gaps
from aswl_kernels.reference_gaps import NARROWEST, STEP, STRIP, gap_blocks, gap_positions, segment_width

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAN, INF = float("nan"), float("inf")
SHAPES = [(7, 13), (1, 1), (31, 40), (33, 16), (65, 9), (2, NARROWEST + 1), (3, 3 * NARROWEST), (3, 0), (0, 5), (0, 0)]


def of_density(shape, density, dtype=torch.float32):
    return torch.randn(shape).where(torch.rand(shape) < density, 0).to(dtype)


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def assert_packed(weight):
    """Unpacking restores the weight, and each slot says the truth about itself."""
    packed = pack_gaps(weight)
    assert packed.shape == tuple(weight.shape)
    restored = unpack_gaps(replace(packed))  # a copy, whose indices are looked at
    assert_same(restored, weight)
    assert restored.is_contiguous()
    row, column, holds = gap_positions(*packed.indices, weight.shape[1])
    row, values = row.expand_as(column), packed.values.view(column.shape)
    assert_same(values[~holds], torch.zeros_like(values[~holds]))
    assert holds.sum() == (weight != 0).sum()
    assert_same(values[holds], weight[row[holds], column[holds]])
    return packed


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_round_trip(shape, density, dtype, device):
    assert_packed(of_density(shape, density, dtype).to(device))


def test_worked_by_hand(device, monkeypatch):
    monkeypatch.setattr(gaps, "NIBBLES_FROM", 0)
    weight = torch.zeros(2, 40, device=device)
    weight[0, 0], weight[0, 3], weight[0, 39], weight[1, 15] = 1.0, NAN, 3.0, -0.0
    packed = assert_packed(weight)
    codes = 0 << 0 | 3 << 4 | 15 << 8 | 15 << 12 | 6 << 16  # 36 columns on: twice 15 without a value, then 6
    assert packed.codes.tolist() == [codes, *[0] * (STRIP - 1)]
    assert_same(packed.values[:8], torch.tensor([1.0, NAN, 0, 0, 3.0, 0, 0, 0], device=device))
    assert packed.offsets.tolist() == [0, 1] and packed.lengths.tolist() == [[5], [0]]


@pytest.mark.parametrize("start", [0, 0.5, 2.0], ids=lambda t: f"nibbles from {t}")
def test_both_widths_of_codes(start, device, monkeypatch):
    monkeypatch.setattr(gaps, "NIBBLES_FROM", start)
    for density in (0.003, 0.1, 0.9):
        packed = assert_packed(of_density((40, 1100), density).to(device))
        assert packed.codes.dtype == (torch.int32 if density >= start else torch.int64)


@given(st.integers(0, 4), st.integers(0, 40), st.booleans(), st.data())
def test_any_pattern(rows, columns, nibbles, data):
    values = st.sampled_from([0.0, 0.0, 0.0, -0.0, 1.0, 1e-45, INF, NAN])
    flat = data.draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaps, "NIBBLES_FROM", 0 if nibbles else 2)
        weight = torch.tensor(flat).reshape(rows, columns)
        packed = pack_gaps(weight)
    assert_same(unpack_gaps(replace(packed)), weight + 0.0)  # -0.0 is no nonzero


@pytest.mark.parametrize(
    "outputs, inputs, width", [(28672, 8192, 2048), (4096, 4096, 512), (1, 1, 512), (9, 2**24, 4096)]
)
def test_blocks_are_many_enough_or_as_small_as_they_get(outputs, inputs, width):
    assert segment_width(outputs, inputs) == width
    assert gap_blocks(outputs, inputs) == (-(-outputs // 32), -(-inputs // width))


@pytest.mark.parametrize("density, most", [(0.5, 10.6), (0.3, 6.6), (0.1, 2.9), (0.02, 0.8)])
def test_bits_of_an_element(density, most, monkeypatch):
    monkeypatch.setattr("aswl_kernels.reference_gaps.NARROWEST", 2048)  # as the largest weights have it
    packed = pack_gaps(of_density((64, 8192), density, torch.bfloat16))
    assert 8 * sum(t.nbytes for t in (packed.values, *packed.indices)) / (64 * 8192) < most


def test_a_threshold_and_an_attention_pack_the_gated_weight(device):
    weight = torch.randn(40, 50, device=device)
    weight[0, :3] = torch.tensor([NAN, 0.7, -0.7], device=device)
    threshold, attention = torch.tensor(0.7, device=device), torch.tensor([0.3], device=device)
    assert_same(unpack_gaps(pack_gaps(weight, threshold, attention)), gate(weight, attention, threshold))


def test_gradients_reach_the_nonzeros_only():
    weight = torch.tensor([[0.1, 2.0], [-3.0, 0.2]], requires_grad=True)
    packed = pack_gaps(weight, torch.tensor(1.0), torch.tensor([0.5]))
    grad = torch.autograd.grad(unpack_gaps(packed), weight, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))[0]
    assert grad.tolist() == [[0, 1], [1.5, 0]]


def test_numerical_gradients():
    packed = pack_gaps(of_density((4, 40), 0.2, torch.float64))
    values = packed.values.requires_grad_()
    holds = gap_positions(*packed.indices, 40)[2].flatten()
    for check in (gradcheck, gradgradcheck):
        assert check(lambda v: unpack_gaps(replace(packed, values=v)), (values,), fast_mode=True)
    (grad,) = torch.autograd.grad(unpack_gaps(packed).sum(), values)
    assert_same(grad, holds.double())  # so that what holds nothing stays 0 in training


def test_opcheck(device):
    weight = of_density((35, 70), 0.2).to(device)
    packed, rows = pack_gaps(weight), gaps.pack(weight)
    layout, unpack = torch.ops.aswl.gap_layout.default, torch.ops.aswl.unpack_gaps.default
    for bits in (4, 8):
        torch.library.opcheck(layout, (rows.columns, rows.offsets, 70, bits))
    torch.library.opcheck(unpack, (packed.values, *packed.indices, packed.shape))


def test_to_another_device_keeps_the_pieces_together(device):
    moved = pack_gaps(of_density((3, 4), 0.5)).to(device)
    assert {t.device.type for t in (moved.values, *moved.indices)} == {device} and moved.shape == (3, 4)
    assert pack_gaps(torch.ones(3, 4)).to("meta").values.is_meta


def good():
    """Two strips and two segments of one step each."""
    shape = (STRIP + 1, NARROWEST + 2)
    codes = torch.zeros(4 * STRIP, dtype=torch.int32)
    codes[STRIP], codes[3 * STRIP] = 1, 1  # the first row of each strip has its second column in the second segment
    lengths = torch.zeros(shape[0], 2, dtype=torch.int32)
    lengths[0, 1] = lengths[STRIP, 1] = 1
    values = torch.zeros(4 * STRIP * STEP)
    values[STRIP * STEP] = values[3 * STRIP * STEP] = 5
    return GapWeight(values, codes, torch.arange(5), lengths, shape)


USERS = {"unpack_gaps": unpack_gaps, "gap_linear": lambda packed: gap_linear(torch.ones(2, NARROWEST + 2), packed)}


@pytest.mark.parametrize("op", USERS)
@pytest.mark.parametrize(
    "piece, position, value, words",
    [
        ("codes", STRIP, 2, "want packed codes within segments of 512 columns; got [0, 0"),
        ("codes", STRIP + 3, 3 << 28, "want packed codes within segments"),
        ("codes", 3 * STRIP, -1, "want packed codes within segments"),
        ("offsets", 4, 5, "want packed offsets that ascend from 0 to the 4 steps; got [0, 1, 2, 3, 5]"),
        ("offsets", 0, -1, "want packed offsets that ascend from 0"),
        ("offsets", 2, 2**40, "want packed offsets that ascend from 0"),
        ("offsets", 1, -(2**63), "want packed offsets that ascend from 0"),
    ],
)
def test_indices_that_lead_outside_are_refused(op, piece, position, value, words):
    """From the start, and after a use that found them good."""
    fresh, used = good(), good()
    assert unpack_gaps(used).nonzero().tolist() == [[0, NARROWEST + 1], [STRIP, NARROWEST + 1]]
    for packed in (fresh, used):
        getattr(packed, piece)[position] = value
        with pytest.raises(ValueError) as error:
            USERS[op](packed)
        assert str(error.value).startswith(f"{op}: ") and words in str(error.value)
    getattr(used, piece)[position] = getattr(good(), piece)[position]
    USERS[op](used)


@pytest.mark.parametrize("op", USERS)
@pytest.mark.parametrize("piece", ["values", "codes", "offsets", "lengths"])
def test_pieces_cut_short_in_place_are_refused(op, piece):
    packed = good()
    USERS[op](packed)
    getattr(packed, piece).resize_(2)
    with pytest.raises(ValueError, match="GapWeight: want floating values"):
        USERS[op](packed)


def test_any_lengths_are_safe():
    for length in (-(2**31), -1, 9, 2**31 - 1):
        packed = good()
        packed.lengths.fill_(length)
        for use in USERS.values():
            use(packed)


def test_indices_changed_before_the_backward_are_refused():
    packed = replace(good(), values=good().values.requires_grad_())
    y = unpack_gaps(packed)
    packed.codes[0] = 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_fake_tensors_pass():
    with FakeTensorMode():
        assert unpack_gaps(good()).shape == good().shape


@pytest.mark.parametrize(
    "piece, words",
    [
        ({"values": torch.ones(3)}, "want floating values [slots], int32 or int64 codes [slots / 8]"),
        ({"values": torch.ones(4 * STRIP * STEP).int()}, "got int32[1024] on cpu"),
        ({"codes": torch.zeros(4 * STRIP)}, "float32[128] on cpu"),
        ({"codes": torch.zeros(4 * STRIP - 1).int()}, "int32[127] on cpu"),
        ({"offsets": torch.arange(4)}, "int64 offsets [blocks + 1]"),
        ({"offsets": torch.arange(5).int()}, "int32[5] on cpu"),
        ({"lengths": torch.zeros(2, STRIP + 1).int()}, "int32 lengths [out, segments] on one device"),
        ({"lengths": torch.zeros(STRIP + 1, 2)}, "float32[33, 2] on cpu"),
        ({"offsets": torch.arange(5).to("meta")}, "int64[5] on meta"),
        ({"shape": (STRIP + 1, 2, 2)}, "for shape (33, 2, 2)"),
        ({"shape": (STRIP + 1, -1)}, "for shape (33, -1)"),
        ({"shape": (1, 2**31)}, "for shape (1, 2147483648)"),
    ],
)
def test_gap_weight_refuses_pieces_that_do_not_belong_together(piece, words):
    with pytest.raises(ValueError) as error:
        replace(good(), **piece)
    assert str(error.value).startswith("GapWeight: want ") and words in str(error.value)


@pytest.mark.parametrize(
    "args, words",
    [
        ((torch.ones(3),), "want a floating weight [out, in]; got float32[3] on cpu"),
        ((torch.ones(2, 2, 1),), "got float32[2, 2, 1] on cpu"),
        ((torch.ones(2, 2).int(),), "got int32[2, 2] on cpu"),
        ((torch.ones(1, 1).expand(1, 2**31),), "got float32[1, 2147483648] on cpu"),
        ((torch.ones(2, 2), torch.zeros(2)), "want threshold a floating 0-d or [1] tensor on cpu"),
    ],
)
def test_refuses(args, words):
    with pytest.raises(ValueError) as error:
        pack_gaps(*args)
    assert words in str(error.value)
