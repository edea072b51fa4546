"""Thresholds by the Triton kernels, in Triton's interpreter on a machine without a GPU: exact, whatever the weights."""

import pytest
import torch
from harness import layouts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aswl_kernels import magnitude_histogram, magnitude_threshold, reference, threshold_guesses

pytest.importorskip("triton")
from aswl_kernels import magnitude_histogram_triton, magnitude_threshold_triton
from aswl_kernels._integers import integers

pytestmark = pytest.mark.usefixtures("poisoned")
NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SMALL = {"CHUNK": 4096, "GROUP": 1, "BLOCK": 2048, "WARPS": 4}  # what a GPU does to millions of weights, on thousands
SMALL_THRESHOLD = {"SAMPLE": 128, "ALONE_WARPS": 2, "ALONE": 1200, "ROOM": 256, "FEW": 99}


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (SMALL | SMALL_THRESHOLD).items():
            patch.setattr(magnitude_threshold_triton, name, value)
            patch.setattr(magnitude_histogram_triton, name, value, raising=name in SMALL)
        yield


def bits(thresholds):
    """As integers, all NaN the same."""
    return thresholds.masked_fill(thresholds.isnan(), NAN).view(torch.int32).tolist()


def check(weights, keep, guess=None):
    keep = torch.as_tensor(keep, device=weights[0].device)
    guess = None if guess is None else torch.as_tensor(guess, device=keep.device)
    got = magnitude_threshold_triton.magnitude_threshold_near(weights, keep, guess)
    assert bits(got) == bits(reference.magnitude_threshold(weights, keep))


def counted(weights, keep, guess):
    """How many guesses held and how many did not."""
    before = threshold_guesses(weights[0].device)
    check(weights, keep, guess)
    return (threshold_guesses(weights[0].device) - before).tolist()


def unsampled(n):
    """Where the sample of a layer of n weights does not look."""
    run = torch.arange(SMALL_THRESHOLD["SAMPLE"] // 4)
    start = (run * 1024 + (run * 0x9E3779B1 >> 12 & 1023)) * (n - 4) // (len(run) * 1024)
    seen = torch.zeros(n, dtype=torch.bool)
    seen[start[:, None] + torch.arange(4)] = True
    return ~seen


def ramp(n):
    return torch.arange(1.0, n + 1)


LAYERS = {  # of 5,001 weights: a chunk of two whole blocks, one of a part
    "random": lambda n: torch.randn(n),
    "sorted": lambda n: torch.randn(n).sort().values,
    "constant": lambda n: torch.full((n,), -0.1),
    "zeros": lambda n: torch.zeros(n).copysign(torch.randn(n)),
    "few values": lambda n: torch.randint(-3, 4, (n,)).float(),
    "many ties and a few others": lambda n: torch.where(torch.rand(n) < 0.02, torch.randn(n), 0.5),
    "subnormal": lambda n: torch.randint(-40, 40, (n,)).float() * 2.0**-149,
    "NaN and inf": lambda n: torch.randn(n).where(torch.rand(n) < 0.9, NAN).where(torch.rand(n) < 0.9, -INF),
    "all NaN": lambda n: torch.full((n,), NAN),
    "one large region": lambda n: torch.randn(n) * torch.where(ramp(n) % n < n // 5, 1e4, 1.0),
    "wide": lambda n: torch.randn(n) * torch.exp(12 * torch.randn(n)),
    "the sample misleads": lambda n: torch.where(unsampled(n), torch.randn(n) + 9, 1 / ramp(n)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_reference(name, triton_device, small):
    n = SMALL["CHUNK"] + 905
    weight = LAYERS[name](n).to(triton_device)
    check([weight, weight, weight.bfloat16(), weight.half()], [40, n - 3, n // 10, n // 2])


@pytest.mark.parametrize("n", [1, 127, 128, 129, 1023, 1200, 1201, 2048, 2049, 4095, 4096, 4097])
def test_sizes_about_a_sample_a_block_and_a_chunk(n, triton_device, small):
    keep = [1, n // 3, n, n + 5, 2**40, 0, -1]
    dtypes = [DTYPES[(n + i) % 3] for i in range(7)]
    some = slice(0, 7) if n < 1201 else slice(n % 5, n % 5 + 3)
    check([torch.randn(n).to(triton_device, dtype) for dtype in dtypes[some]], keep[some])


@pytest.mark.parametrize(
    "sizes", [(7, 0, 300, 1000), (7, 0, 300, 4500, 128, 1, 2500, 3, 0)], ids=["one launch", "seven"]
)
def test_mixed_layers_in_one_call(sizes, triton_device, small):
    weights = [torch.randn(n).to(triton_device, DTYPES[i % 3]) for i, n in enumerate(sizes)]
    check(weights, [n // 4 for n in sizes])
    check(weights, [n + 1 - i % 3 for i, n in enumerate(sizes)])


def test_many_layers(triton_device, small):
    sizes = torch.randint(0, 150, (67,)).tolist()
    check([torch.randn(n, device=triton_device) for n in sizes], [n // 3 for n in sizes])
    assert magnitude_threshold_triton.magnitude_threshold([], torch.empty(0, dtype=torch.int64)).shape == (0,)


def test_as_large_as_on_a_gpu(triton_device):
    large, half = torch.randn(67000, device=triton_device), torch.randn(33000, device=triton_device).half()
    check([large, half, large[:100], large[:0]], [6700, 30000, 3, 3])
    check([half, large[:20000], large[:8192]], [3300, 10000, 900], [1.6449, 0.67, 1.0])


@pytest.mark.parametrize("shape, dtype", [((30, 50), torch.float32), ((10, 7, 3, 5), torch.bfloat16)], ids=str)
def test_any_strides(shape, dtype, triton_device, small):
    weight = torch.randn(shape).to(triton_device, dtype)
    weights = [weight, *layouts(weight), weight[:1].expand(shape)]
    check(weights, [300] * len(weights))


@pytest.mark.parametrize("n", [1100, 2200], ids=["one launch", "seven"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_guess_changes_nothing_but_the_way(n, dtype, triton_device, small):
    weight = torch.randn(n).to(triton_device, dtype)
    exact = reference.magnitude_threshold([weight], torch.tensor([n // 4], device=triton_device))
    assert counted([weight] * 3, [n // 4] * 3, exact * torch.tensor([1, 0.99, -1.01], device=triton_device)) == [3, 0]
    wrong = [0.0, 0.5, 1e38, 1e-40, INF, NAN]
    assert counted([weight] * len(wrong), [n // 4] * len(wrong), wrong) == [0, len(wrong)]
    extreme = [torch.zeros_like(weight), torch.full_like(weight, -INF), weight[:100], weight, weight[:0]]
    assert counted(extreme, [n // 4, n // 4, 5, 0, 1], [0.0, INF, 1.0, 1.0, 1.0]) == [2, 0]


@given(data=st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_layers(data, triton_device, small):
    def layer():
        n = data.draw(st.sampled_from([0, 3, 128, 200, 1100, 2048, 2600]))
        values = data.draw(st.lists(st.floats(width=32) | st.sampled_from([0.0, 1.0, -1.0]), min_size=1, max_size=9))
        torch.manual_seed(data.draw(st.integers(0, 9)))
        noise = torch.randn(n) * data.draw(st.sampled_from([0.0, 1e-3, 1.0]))
        picked = torch.tensor(values, dtype=torch.float32)[torch.randint(len(values), (n,))]
        return (picked + noise).to(triton_device, data.draw(st.sampled_from(DTYPES)))

    weights = [layer() for _ in range(data.draw(st.integers(1, 2)))]
    keep = [data.draw(st.integers(-1, weight.numel() + 2)) for weight in weights]
    guess = data.draw(st.none() | st.lists(st.floats(width=32), min_size=len(keep), max_size=len(keep)))
    check(weights, keep, guess)


@pytest.mark.parametrize("shift", [24, 16, 8, 0])
def test_histogram_equals_the_reference(shift, triton_device, small):
    weights = [torch.randn(n).to(triton_device, DTYPES[i % 3]) for i, n in enumerate((2500, 0, 1100, 5, 4101))]
    weights[0][::7] = NAN
    chosen = [
        reference.magnitude_bits(w)[3] if w.numel() else torch.tensor(0, device=triton_device).int() for w in weights
    ]
    prefix = torch.stack(chosen) >> shift >> 8
    want = reference.magnitude_histogram(weights, prefix, shift)
    assert want.sum(1)[0] > 0
    assert torch.equal(magnitude_histogram_triton.magnitude_histogram(weights, prefix, shift), want)
    assert torch.equal(magnitude_histogram(weights, prefix, shift), want)
    torch.library.opcheck(torch.ops.aswl.magnitude_histogram.default, (weights, prefix, shift))


def test_through_the_public_function(triton_device, small):
    weights = [torch.randn(1300, device=triton_device), torch.randn(40, device=triton_device).half()]
    keep = torch.tensor([100, 7], device=triton_device)
    want = reference.magnitude_threshold(weights, keep)
    for guess in (None, want, want.double(), want.bfloat16()):
        before = threshold_guesses(triton_device)
        assert torch.equal(magnitude_threshold(weights, keep, guess), want)
        served = guess is not None and guess.dtype != torch.float64  # which goes to the reference
        assert (threshold_guesses(triton_device) - before).sum() == served
    torch.library.opcheck(torch.ops.aswl.magnitude_threshold.default, (weights, keep))
    torch.library.opcheck(torch.ops.aswl.magnitude_threshold_near.default, (weights, keep, want))


def test_positions_beyond_32_bits(triton_device, small):
    n = 2**31 + 700
    weight = torch.empty(n, dtype=torch.bfloat16, device=triton_device)  # zeros that take no memory, on a CPU
    begin = 2**31 - 2**31 % (SMALL["CHUNK"] * SMALL["GROUP"])
    weight[begin:] = torch.randn(n - begin).bfloat16()
    groups, chunks = begin // (SMALL["CHUNK"] * SMALL["GROUP"]), begin // SMALL["CHUNK"]
    table = integers([weight.data_ptr(), n, 1, -chunks, -groups], weight.device)  # the last ones come first
    histogram, prefix = torch.zeros(1, 256, dtype=torch.int64), torch.zeros(1, dtype=torch.int32)
    sizes = SMALL["CHUNK"] * SMALL["GROUP"], SMALL["BLOCK"]
    magnitude_histogram_triton.magnitude_histogram_kernel[(1,)](table, prefix, histogram, 24, 1, 1, *sizes)
    assert torch.equal(histogram, reference.magnitude_histogram([weight[begin:]], prefix, 24))
    state = torch.tensor([5, 0x3F000000, 0x3F800000, 0, 0, 0])  # keep, low, high; above, inside, lost
    filled, room = torch.empty(4, dtype=torch.int32), torch.empty(4, 1024, dtype=torch.int32)
    magnitude_threshold_triton.magnitude_threshold_collect_kernel[(1,)](
        table, state, filled, room, 1, 1, SMALL["CHUNK"], 1024, SMALL["BLOCK"]
    )
    magnitudes = weight[begin:].abs().float()
    inside = magnitudes[(magnitudes >= 0.5) & (magnitudes <= 1)]
    assert state[3:].tolist() == [(magnitudes > 1).sum(), len(inside), 0] and filled.sum() == len(inside)
    collected = torch.cat([own[:count] for own, count in zip(room, filled.tolist())])
    assert torch.equal(collected.view(torch.float32).sort().values, inside.sort().values)


def test_a_layer_may_sit_at_any_address(triton_device, small):
    store = torch.randn(1500, device=triton_device)
    check([store[1:1400], store[2:], store[3:], store.half()[1:1400], store.bfloat16()[7:150]], [120] * 5)
