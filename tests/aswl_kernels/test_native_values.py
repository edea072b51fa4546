"""What the C++ kernels must hold beyond the operators' own tests: sizes past a block, threads, concurrent calls."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from harness import DTYPES, assert_no_worse, layouts, randn
from hypothesis import given
from hypothesis import strategies as st

from aswl_kernels import gate, magnitude_threshold, native, pack, reference, sparse_linear, unpack

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAN, INF = float("nan"), float("inf")


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def with_threads(count, op, *args):
    torch.set_num_threads(count)
    return op(*args)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("attention_dtype", FLOATS, ids=str)
def test_gate_is_the_reference_bit_for_bit(dtype, attention_dtype):
    special = torch.tensor([0.0, -0.0, NAN, INF, -INF, 1e-45, 65519.0, 65520.0, 6e-8, 3e-8, 1e300, -0.3])
    weight = torch.cat([randn(100_003, dtype), special.to(dtype), (randn(999) * 1e-6).to(dtype)])
    for attention, threshold in ((0.7, 0.5), (-1.3, 0.0), (1e-3, INF), (1.0, NAN), (INF, 0.2)):
        args = weight, torch.tensor([attention], dtype=attention_dtype), torch.tensor(threshold)
        assert_same(gate(*args), reference.gate(*args))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(7, 9), (2, 3, 4, 5), (1, 6, 1)], ids=str)
def test_gate_keeps_the_layout(shape, dtype):
    weight = randn(shape, dtype)
    for strided in (weight, *layouts(weight), weight[:1].expand(3, *shape[1:])):
        args = strided, torch.tensor([0.7]), torch.tensor(0.5)
        assert_same(gate(*args), reference.gate(*args))
        assert gate(*args).stride() == reference.gate(*args).stride()


DISTRIBUTIONS = {
    "normal": lambda n: torch.randn(n),
    "uniform": lambda n: torch.rand(n),
    "heavy tails": lambda n: torch.randn(n) ** 9,
    "one value": lambda n: torch.full((n,), -0.25),
    "mostly zeros": lambda n: torch.randn(n) * (torch.rand(n) < 0.1),
    "a few values": lambda n: torch.randint(-2, 3, (n,)).float(),
    "sorted": lambda n: torch.linspace(-1, 1, n),
    "what the sample does not see": lambda n: torch.arange(n).remainder(97).eq(50).float() * torch.rand(n),
    "parts of different scale": lambda n: torch.randn(n) * (torch.arange(n) // 3000 % 7).float().exp(),
    "few nonzeros in zeros": lambda n: torch.randn(n) * (torch.arange(n) % 50 == 0),
    "denormals": lambda n: torch.randint(-(2**20), 2**20, (n,)).int().abs().view(torch.float32),
    "waves of the sample's period": lambda n: torch.arange(n).mul(2 * torch.pi / n * (n ** (2 / 3) // 64)).sin(),
    "all NaN": lambda n: torch.full((n,), NAN),
    "with NaN and inf": lambda n: torch.randn(n).index_fill(0, torch.tensor([3, n // 2, n - 1]), NAN).div(0.0),
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("n", [8192, 8193, 65_537, 300_001])
def test_thresholds_of_large_layers(name, n, dtype):
    weight = DISTRIBUTIONS[name](n).to(dtype)
    ranked = weight.abs().float().sort(descending=True).values
    for keep in (1, 2, n // 50, n // 50 + 2, n // 10, n // 2, n - 1, n):
        assert_same(magnitude_threshold([weight], torch.tensor([keep])), ranked[keep - 1 : keep])


def sparse_weight(outputs, inputs, density, dtype=torch.float32):
    return randn((outputs, inputs)).where(torch.rand(outputs, inputs) < density, 0).to(dtype)


def assert_product(x, weight, bias):
    """At most twice the error of PyTorch's dense product, against fp64."""
    same = F.linear(x, weight.to(x.dtype), bias)
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert_no_worse(sparse_linear(x, pack(weight), bias), same, exact)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 127, 130])
def test_sparse_linear_past_every_tile(batch, dtypes):
    x, bias = randn((batch, 67), dtypes[0]), randn(35, dtypes[0])
    assert_product(x, sparse_weight(35, 67, 0.3, dtypes[1]), bias)


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("batch", [1, 5, 70])
def test_sparse_linear_of_long_rows(batch, density):
    assert_product(randn((batch, 1500), torch.float32), sparse_weight(129, 1500, density), None)


@given(st.integers(1, 150), st.integers(1, 80), st.integers(1, 80), st.floats(0, 1), st.sampled_from(DTYPES))
def test_sparse_linear_of_any_shape(batch, inputs, outputs, density, dtypes):
    x_dtype, weight_dtype = dtypes.values[0]
    weight = sparse_weight(outputs, inputs, density, weight_dtype)
    weight[torch.randint(outputs, (1,))] = 0
    assert_product(randn((batch, inputs), x_dtype), weight, randn(outputs, x_dtype))


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(
    "batch, inputs, outputs", [(129, 1024, 16), (200, 1030, 35), (260, 1025, 300), (1100, 2100, 530)]
)
def test_sparse_linear_by_blocks_of_inputs(batch, inputs, outputs, dtypes):
    x, bias = randn((batch, inputs), dtypes[0]), randn(outputs, dtypes[0])
    weight = sparse_weight(outputs, inputs, 0.2, dtypes[1])
    weight[3:5], weight[7], weight[9, 300:] = 0, 1, 0  # empty, full and short rows
    assert_product(x, weight, bias)
    torch.set_num_threads(3)
    assert_same(sparse_linear(x, pack(weight), bias), with_threads(1, sparse_linear, x, pack(weight), bias))


@pytest.mark.skipif(not native.AVAILABLE, reason="the public function refuses them before")
def test_sparse_linear_of_columns_in_any_order():
    x, packed = randn((150, 1100), torch.float32), pack(sparse_weight(40, 1100, 0.15))
    turned = [slice(begin, end) for begin, end in packed.offsets.unfold(0, 2, 1)]
    values, columns = (torch.cat([t[row].flip(0) for row in turned]) for t in (packed.values, packed.columns))
    got = torch.ops.aswl.sparse_linear(x, values, columns, packed.offsets, None)
    assert_no_worse(got, sparse_linear(x, packed), F.linear(x.double(), unpack(packed).double()))


def test_sparse_linear_uses_no_padding():
    x = torch.full((6, 40), NAN).index_fill(0, torch.tensor([0, 3]), 1.0)  # rows must not touch one another
    y = sparse_linear(x, pack(sparse_weight(20, 40, 0.2)))
    assert y[[0, 3]].isfinite().all() and y[[1, 2, 4, 5]].isnan().any(1).all()


@pytest.mark.parametrize("column", [-1, 1100, 2**31 - 1])
@pytest.mark.skipif(not native.AVAILABLE, reason="the reference has PyTorch's own errors")
def test_sparse_linear_by_blocks_refuses_columns_outside(column):
    packed = pack(sparse_weight(40, 1100, 0.15))
    columns = packed.columns.index_fill(0, torch.tensor([1000]), column)
    with pytest.raises(RuntimeError, match="want columns from 0 to 1099"):
        torch.ops.aswl.sparse_linear(torch.ones(150, 1100), packed.values, columns, packed.offsets, None)


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize(
    "piece, words",
    [
        ({"columns": torch.tensor([0, 4, 0], dtype=torch.int32)}, "want columns from 0 to 3"),
        ({"columns": torch.tensor([0, 1, -1], dtype=torch.int32)}, "want columns from 0 to 3"),
        ({"offsets": torch.tensor([0, 4, 3])}, "want offsets that ascend from 0 to the 3 nonzeros"),
        ({"offsets": torch.tensor([0, 2, 2**40])}, "want offsets that ascend from 0 to the 3 nonzeros"),
        ({"offsets": torch.tensor([-1, 2, 3])}, "want offsets that ascend from 0 to the 3 nonzeros"),
    ],
)
@pytest.mark.skipif(not native.AVAILABLE, reason="the reference has PyTorch's own errors")
def test_sparse_linear_refuses_indices_that_lead_outside(batch, piece, words):
    good = {"columns": torch.tensor([0, 1, 0], dtype=torch.int32), "offsets": torch.tensor([0, 2, 3])}
    with pytest.raises(RuntimeError, match=words):  # the operator itself: the public function finds them before
        torch.ops.aswl.sparse_linear(torch.ones(batch, 4), torch.ones(3), **good | piece, bias=None)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("shape", [(3, 1), (5, 15), (5, 16), (9, 17), (300, 333), (1, 70_000)], ids=str)
def test_pack_is_the_reference(shape, density, dtype):
    weight = sparse_weight(*shape, density, dtype)
    weight[0, :1] = NAN
    for got, want in zip(torch.ops.aswl.pack(weight), reference.pack(weight)):
        assert_same(got, want)
    assert_same(unpack(pack(weight)), weight)


def test_any_number_of_threads_gives_the_same_bits():
    weights = [torch.randn(n) for n in (1, 10, 9000, 70_000, 200_000)]
    keep = torch.tensor([1, 3, 500, 7000, 100_000])
    one = with_threads(1, magnitude_threshold, weights, keep)
    for threads in (2, 3, 7):
        assert_same(with_threads(threads, magnitude_threshold, weights, keep), one)
        args = weights[-1], torch.tensor([0.7]), torch.tensor(0.5)
        assert_same(with_threads(threads, gate, *args), with_threads(1, gate, *args))
    weight = sparse_weight(301, 200, 0.2)
    for packed, want in zip(with_threads(3, torch.ops.aswl.pack, weight), torch.ops.aswl.pack(weight)):
        assert_same(packed, want)
    for batch in (1, 5, 64, 200):
        args = randn((batch, 200), torch.float32), pack(weight), randn(301, torch.float32)
        one = with_threads(1, sparse_linear, *args)
        for threads in (2, 3, 7):
            assert_same(with_threads(threads, sparse_linear, *args), one)


def test_concurrent_calls():
    weights = [torch.randn(100_000) for _ in range(8)]
    keep = torch.tensor([10_000])
    alone = [magnitude_threshold([w], keep) for w in weights]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, want in zip(pool.map(lambda w: magnitude_threshold([w], keep), weights), alone):
                assert_same(got, want)


def test_concurrent_products():
    torch.set_num_threads(2)
    packed = pack(sparse_weight(100, 300, 0.1))
    inputs = [randn((batch, 300), torch.float32) for batch in (1, 10, 100, 200) * 2]
    alone = [sparse_linear(x, packed) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for got, want in zip(pool.map(lambda x: sparse_linear(x, packed), inputs), alone):
                assert_same(got, want)
