"""What the C++ convolution must hold beyond the operator's own tests: batches and images past a block, layouts, threads."""

import pytest
import torch
import torch.nn.functional as F
from harness import DTYPES, assert_no_worse, conv, geometries, layouts, randn
from hypothesis import given
from hypothesis import strategies as st

from aswl_kernels import native, pack, sparse_conv2d


def sparse_weight(shape, density, dtype=torch.float32):
    weight = randn(shape).where(torch.rand(shape) < density, 0).to(dtype)
    weight[-1] = 0
    return weight


def assert_convolves(x, weight, bias=None, **geometry):
    """At most twice the error of PyTorch's dense convolution, against fp64; PyTorch's memory format."""
    product = conv(geometry)
    same = product(x, weight.to(x.dtype), bias)
    exact = product(x.double(), weight.double(), None if bias is None else bias.double())
    got = sparse_conv2d(x, pack(weight), bias, **geometry)
    assert_no_worse(got, same, exact)
    assert got.stride() == same.stride() or x.dim() == 3


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("batch", [1, 3, 15, 16, 17, 33])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (8, 8), (2, 19), (9, 33)], ids=str)
def test_batches_and_images_past_every_block(batch, size, dtypes):
    x, bias = randn((batch, 19, *size), dtypes[0]), randn(18, dtypes[0])
    weight = sparse_weight((18, 19, 3, 3), 0.2, dtypes[1])
    assert_convolves(x, weight, bias, padding=1)
    assert_convolves(x.contiguous(memory_format=torch.channels_last), weight, padding=1)


@pytest.mark.parametrize("batch", [1, 2, 17])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (14, 14), (8, 16), (13, 29)], ids=str)
def test_1x1(batch, size):
    x, weight, bias = randn((batch, 21, *size), torch.float32), sparse_weight((35, 21, 1, 1), 0.2), randn(35).float()
    for strided in (x, *layouts(x)):
        assert_no_worse(
            *(
                (f(strided))
                for f in (lambda x: sparse_conv2d(x, pack(weight), bias), lambda x: F.conv2d(x, weight, bias))
            ),
            F.conv2d(x.double(), weight.double(), bias.double()),
        )
    assert_convolves(x, weight, stride=2)


@pytest.mark.parametrize("batch", [2, 16, 19])
@pytest.mark.parametrize(
    "geometry",
    [
        {"stride": 2},
        {"stride": 3, "padding": 5},
        {"dilation": 2, "padding": 2},
        {"stride": (2, 3), "dilation": (3, 2)},
        {"groups": 2},
        {"padding": (0, 20)},
    ],
    ids=str,
)
def test_geometry_of_larger_images(batch, geometry):
    x = randn((batch, 4, 21, 18), torch.float32)
    weight = sparse_weight((6, 4 // geometry.get("groups", 1), 3, 3), 0.5)
    for strided in (x, *layouts(x)):
        assert_no_worse(
            sparse_conv2d(strided, pack(weight), **geometry),
            F.conv2d(strided, weight, **geometry),
            F.conv2d(x.double(), weight.double(), **geometry),
        )


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("size, groups", [((4, 4), 1), ((8, 8), 1), ((5, 3), 2)], ids=str)
def test_blocks_of_channels(size, groups, dtypes):
    x, weight = randn((17, 150, *size), dtypes[0]), sparse_weight((36, 150 // groups, 3, 3), 0.3, dtypes[1])
    weight[3] = 1
    assert_convolves(x, weight, randn(36, dtypes[0]), padding=1, groups=groups)
    assert_convolves(x.contiguous(memory_format=torch.channels_last), weight, padding=1, groups=groups)
    packed = pack(weight)
    torch.set_num_threads(1)
    one = sparse_conv2d(x, packed, padding=1, groups=groups)
    torch.set_num_threads(3)
    assert torch.equal(sparse_conv2d(x, packed, padding=1, groups=groups), one)


def test_depthwise():
    assert_convolves(randn((17, 33, 9, 9), torch.float32), sparse_weight((33, 1, 3, 3), 0.5), groups=33, padding=1)
    assert_convolves(randn((1, 33, 40, 40), torch.float32), sparse_weight((66, 1, 5, 5), 0.5), groups=33, stride=2)


@given(geometries(), st.sampled_from([1, 3, 16, 18, 35]), st.floats(0, 1), st.booleans())
def test_any_geometry_and_batch(row, batch, density, last):
    (*_, channels, height, width), weight_shape, geometry = row
    x, weight = randn((batch, channels, height, width), torch.float32), sparse_weight(weight_shape, density)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    product = conv(geometry)
    assert_no_worse(
        sparse_conv2d(x, pack(weight), **geometry), product(x, weight), product(x.double(), weight.double())
    )


def test_empty_batch_keeps_the_shape():
    y = sparse_conv2d(torch.ones(0, 3, 9, 9), pack(torch.ones(4, 3, 3, 3)), stride=2)
    assert y.shape == (0, 4, 4, 4)


@pytest.mark.parametrize("size", [(3, 3), (8, 8), (40, 40)], ids=str)
def test_images_do_not_touch_one_another(size):
    x = torch.full((18, 5, *size), float("nan")).index_fill(0, torch.tensor([0, 7, 17]), 1.0)
    y = sparse_conv2d(x, pack(sparse_weight((20, 5, 3, 3), 0.5)), padding=1)
    assert y[[0, 7, 17]].isfinite().all() and y[1].isnan().any()


@pytest.mark.parametrize("x_shape", [(1, 8, 20, 20), (3, 8, 4, 4), (17, 8, 9, 9), (32, 8, 16, 16)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3])
def test_any_number_of_threads_gives_the_same_bits(x_shape, kernel):
    x, packed, bias = (
        randn(x_shape, torch.float32),
        pack(sparse_weight((37, 8, kernel, kernel), 0.3)),
        randn(37).float(),
    )
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        results.append(sparse_conv2d(x, packed, bias, padding=kernel // 2))
        assert torch.equal(results[0], results[-1])


@pytest.mark.parametrize(
    "piece, words",
    [
        ({"columns": torch.tensor([0, 36, 0], dtype=torch.int32)}, "want columns from 0 to 35; got 36"),
        ({"columns": torch.tensor([0, 1, -1], dtype=torch.int32)}, "want columns from 0 to 35; got -1"),
        ({"offsets": torch.tensor([0, 4, 3])}, "want offsets that ascend from 0 to the 3 nonzeros"),
        ({"offsets": torch.tensor([0, 2, 2**40])}, "want offsets that ascend from 0 to the 3 nonzeros"),
    ],
)
@pytest.mark.skipif(not native.AVAILABLE, reason="the reference has PyTorch's own errors")
def test_refuses_indices_that_lead_outside(piece, words):
    good = {"columns": torch.tensor([0, 1, 0], dtype=torch.int32), "offsets": torch.tensor([0, 2, 3])}
    geometry = {
        "shape": (2, 4, 3, 3),
        "bias": None,
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "groups": 1,
    }
    with pytest.raises(RuntimeError, match=words):  # the operator itself: the public function finds them before
        torch.ops.aswl.sparse_conv2d(torch.ones(2, 4, 5, 5), torch.ones(3), **good | piece, **geometry)
