"""Exact thresholds: the CPU kernel and the reference against kthvalue, element for element."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aswl_kernels import magnitude_threshold, reference

IMPLEMENTATIONS = [
    pytest.param(f, id=name) for name, f in (("op", magnitude_threshold), ("reference", reference.magnitude_threshold))
]
both = pytest.mark.parametrize("threshold", IMPLEMENTATIONS)
NAN, INF = float("nan"), float("inf")
SEED = torch.Generator().manual_seed(0)
LAYERS = {
    "random": torch.randn(1000, generator=SEED),
    "one": torch.tensor([-3.0]),
    "0-d": torch.tensor(2.5),
    "tied": torch.randint(-3, 4, (999,), generator=SEED).float(),
    "constant": torch.full((257,), -0.1),
    "zeros": torch.tensor([0.0, -0.0, 0.0]),
    "denormal": torch.tensor([1e-45, -3e-45, 0.0, 1e-40, 1.2e-38, 2e-45]),
    "one upper half": 1 + torch.rand(333, generator=SEED) * 2**-9,  # all in one bin of the histogram
    "with NaN": torch.tensor([1.0, NAN, -2.0, -NAN, 0.5]),
    "with inf": torch.tensor([1.0, INF, -INF, NAN, 3e38]),
    "4-d": torch.randn(4, 3, 2, 5, generator=SEED),
    "transposed": torch.randn(7, 9, generator=SEED).t(),
    "gaps": torch.randn(50, 6, generator=SEED)[::3, 1::2],
    "expanded": torch.randn(5, 1, generator=SEED).expand(5, 4),
    "channels_last": torch.randn(2, 3, 4, 5, generator=SEED).contiguous(memory_format=torch.channels_last),
}


def kth(weight, keep):
    """PyTorch's own keep-th largest magnitude, in fp32."""
    magnitudes = weight.abs().float().flatten()
    return magnitudes.kthvalue(len(magnitudes) - keep + 1).values


def assert_equal(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_equals_kthvalue(threshold, name, dtype, device):
    weight = LAYERS[name].to(device, dtype)
    n = weight.numel()
    for keep in sorted({1, 2, n // 3, n // 2, n - 1, n} & set(range(1, n + 1))):
        assert_equal(threshold([weight], torch.tensor([keep], device=device)), kth(weight, keep).reshape(1))


@both
def test_all_layers_in_one_call(threshold, device):
    weights = [weight.to(device) for weight in LAYERS.values()]
    keep = torch.tensor([max(1, weight.numel() // 4) for weight in weights], device=device)
    want = torch.stack([kth(weight, k) for weight, k in zip(weights, keep.tolist())])
    assert_equal(threshold(weights, keep), want)


@both
@pytest.mark.parametrize(
    "weight, keep, want",
    [
        ([3.0, -1.0, 2.0], 1, 3.0),
        ([3.0, -1.0, 2.0], 2, 2.0),
        ([3.0, -1.0, 2.0], 3, 1.0),
        ([3.0, -1.0, 2.0], 4, 1.0),  # more than there are: all
        ([3.0, -1.0, 2.0], 2**40, 1.0),
        ([3.0, -1.0, 2.0], 0, INF),  # none
        ([3.0, -1.0, 2.0], -5, INF),
        ([], 0, INF),
        ([], 3, INF),
        ([NAN, 1.0, -NAN], 2, NAN),
        ([NAN, 1.0, -NAN], 3, 1.0),
        ([NAN, -INF], 2, INF),
        ([-0.0, 0.0], 1, 0.0),
    ],
)
def test_worked_by_hand(threshold, weight, keep, want, device):
    got = threshold([torch.tensor(weight, device=device)], torch.tensor([keep], device=device))
    assert_equal(got, torch.tensor([want], device=device))


@both
def test_no_layers_and_empty_layers(threshold, device):
    keep = torch.tensor([1, 2], device=device)
    assert_equal(threshold([], keep[:0]), torch.empty(0, device=device))
    two = [torch.empty(0, 3, device=device), torch.tensor([1.0, -4.0], device=device)]
    assert_equal(threshold(two, keep), torch.tensor([INF, 1.0], device=device))


@both
def test_fp64_is_compared_in_fp32(threshold, device):
    weight = torch.tensor([1 + 1e-12, 1 + 1e-6, 1e300], dtype=torch.float64, device=device)
    want = torch.tensor([INF, 1 + 1e-6, 1.0], device=device)
    assert_equal(threshold([weight] * 3, torch.tensor([1, 2, 3], device=device)), want)


@both
@given(st.lists(st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0]), min_size=1, max_size=40), st.integers(-2, 45))
def test_is_the_keep_th_of_the_sorted_magnitudes(threshold, values, keep):
    got = threshold([torch.tensor(values)], torch.tensor([keep])).item()
    ranked = sorted((abs(v) for v in values), key=lambda v: (math.isnan(v), v), reverse=True)
    want = ranked[min(keep, len(ranked)) - 1] if keep >= 1 else INF
    assert got == want or math.isnan(got) and math.isnan(want)


@both
@given(st.lists(st.lists(st.integers(-4, 4), max_size=20), max_size=5), st.data())
def test_keeps_as_many_as_asked_and_the_ties(threshold, layers, data):
    keep = [data.draw(st.integers(0, len(layer))) for layer in layers]
    thresholds = threshold([torch.tensor(layer, dtype=torch.bfloat16) for layer in layers], torch.tensor(keep).long())
    for layer, k, t in zip(layers, keep, thresholds.tolist()):
        assert sum(abs(w) > t for w in layer) < max(k, 1)
        assert sum(abs(w) >= t for w in layer) >= k


def test_has_no_gradient():
    weight = torch.randn(5, requires_grad=True)
    assert not magnitude_threshold([weight], torch.tensor([2])).requires_grad


def test_opcheck(device):
    weights = [torch.randn(3, 4, device=device), torch.randn(5, device=device).half(), torch.empty(0, device=device)]
    keep = torch.tensor([5, 2, 1], device=device)
    torch.library.opcheck(torch.ops.aswl.magnitude_threshold.default, (weights, keep))


@pytest.mark.parametrize(
    "weights, keep, words",
    [
        ([torch.ones(2)], torch.tensor([1.0]), "want keep int64[1], one count per weight; got float32[1] on cpu"),
        ([torch.ones(2)], torch.tensor([1], dtype=torch.int32), "want keep int64[1]"),
        ([torch.ones(2)], torch.tensor([1, 2]), "got int64[2] on cpu"),
        ([torch.ones(2)], torch.tensor(1), "got int64[] on cpu"),
        ([], torch.tensor([1]), "want keep int64[0]"),
        (
            [torch.ones(2), torch.ones(3).long()],
            torch.tensor([1, 1]),
            "want floating weights on cpu, keep's device; got int64[3]",
        ),
        ([torch.ones(2, dtype=torch.complex64)], torch.tensor([1]), "got complex64[2]"),
        ([torch.ones(2).to(torch.float8_e4m3fn)], torch.tensor([1]), "got float8_e4m3fn[2]"),
        ([torch.ones(2, device="meta")], torch.tensor([1]), "got float32[2] on meta"),
    ],
)
def test_refuses(weights, keep, words):
    with pytest.raises(ValueError) as error:
        magnitude_threshold(weights, keep)
    assert str(error.value).startswith("magnitude_threshold: want ") and words in str(error.value)
