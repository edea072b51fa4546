"""products="fused" of the masked convolution: its Triton kernels, in Triton's interpreter where there is no GPU."""

from functools import partial

import hypothesis
import pytest
import torch
from harness import (
    DTYPES,
    GEOMETRIES,
    assert_follows_formula,
    conv,
    geometries,
    geometry_table,
    layouts,
    operands,
    run,
)
from torch._prims_common import suggest_memory_format

from aswl_kernels import _conv_triton, masked_conv2d, masked_conv2d_triton, masked_conv2d_weight_triton

EVERY = (0, 1, 3, 4)  # x, weight, attention, bias
LAYOUTS = [torch.contiguous_format, torch.channels_last]
NAN = float("nan")

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.fixture(autouse=True)
def exact():
    """On a GPU fp32 in full, PyTorch's too; the interpreter has no TF32, and takes its tiles."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=not torch.cuda.is_available()):
        yield


def fused(geometry):
    return partial(masked_conv2d, products="fused", **geometry)


def output_grad(x, weight, geometry):
    return torch.randn(conv(geometry)(x.double(), weight.double()).shape).to(x.device, x.dtype)


def laid_out(layout, *tensors):
    return tuple(t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in tensors)


def follows(x_shape, weight_shape, geometry, dtypes, layout, device):
    args = laid_out(layout, *operands(x_shape, weight_shape, dtypes, device))
    (grad,) = laid_out(layout, output_grad(*args[:2], geometry))
    assert_follows_formula(fused(geometry), conv(geometry), args, grad)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@geometry_table
def test_follows_the_formula(x_shape, weight_shape, geometry, layout, triton_device):
    follows(x_shape, weight_shape, geometry, (torch.float32,) * 2, layout, triton_device)


@pytest.mark.parametrize("dtypes", DTYPES[2:])
@pytest.mark.parametrize(
    "x_shape, weight_shape, geometry",
    [
        ((2, 3, 16, 17), (8, 3, 3, 3), {"padding": 1}),
        ((2, 8, 15, 16), (8, 4, 3, 3), {"groups": 2, "stride": 2}),
        ((2, 8, 11, 12), (16, 1, 2, 2), {"groups": 8}),
    ],
    ids=["3x3", "strided and grouped", "depthwise"],
)
def test_every_dtype(x_shape, weight_shape, geometry, dtypes, triton_device):
    follows(x_shape, weight_shape, geometry, dtypes, torch.channels_last, triton_device)


@pytest.mark.parametrize("dtypes", [DTYPES[1], DTYPES[4]])
@pytest.mark.parametrize(
    "x_shape, weight_shape, geometry",
    [
        ((1, 64, 6, 5), (80, 64, 2, 2), {"padding": 1}),  # blocks of channels, two of outputs
        ((1, 32, 7, 9), (96, 32, 2, 3), {"stride": 2, "padding": 1}),
        ((1, 48, 6, 7), (16, 48, 2, 3), {"stride": (2, 3), "dilation": (1, 2)}),
        ((1, 32, 7, 8), (64, 16, 1, 1), {"groups": 2}),
        ((3, 16, 20, 20), (80, 16, 1, 1), {"stride": 2}),  # many pixels that nothing depends on
    ],
    ids=str,
)
def test_channels_in_whole_blocks(x_shape, weight_shape, geometry, dtypes, triton_device):
    follows(x_shape, weight_shape, geometry, dtypes, torch.channels_last, triton_device)


@hypothesis.settings(max_examples=8, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(row=geometries(), x_layout=hypothesis.strategies.sampled_from(LAYOUTS))
def test_any_geometry(row, x_layout, triton_device):
    x_shape, weight_shape, geometry = row
    x, *rest = operands(x_shape, weight_shape, (torch.float32,) * 2, triton_device)
    if x.dim() == 4:
        x = x.contiguous(memory_format=x_layout)
    grad = output_grad(x, rest[0], geometry)
    assert_follows_formula(fused(geometry), conv(geometry), (x, *rest), grad)


@pytest.mark.parametrize("shapes", [((0, 3, 5, 5), (4, 3, 3, 3)), ((2, 0, 5, 5), (4, 0, 3, 3))], ids=str)
def test_empty(shapes, triton_device):
    args = operands(*shapes, (torch.float32,) * 2, triton_device)
    assert_follows_formula(fused({}), conv({}), args, output_grad(*args[:2], {}))


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_options_are_those_of_dense_products(attention, scaled, triton_device):
    x, weight, threshold, a, b = operands((2, 4, 5, 6), (4, 2, 3, 3), (torch.float32,) * 2, triton_device)
    geometry = {"groups": 2, "scaled": scaled, "learnable": 0.6 * threshold}
    args = (x, weight, threshold, a if attention else None, b if attention else None)
    wrt = tuple(i for i in EVERY if args[i] is not None)
    grad = output_grad(x, weight, {"groups": 2})
    want = run(partial(masked_conv2d, **geometry), args, grad, wrt)
    torch.testing.assert_close(run(fused(geometry), args, grad, wrt), want)
    for i in wrt:
        alone = run(fused(geometry), args, grad, (i,))
        torch.testing.assert_close(alone[1], want[1 + wrt.index(i)])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_ties_and_nan_are_kept_and_only_smaller_weights_are_not_learnable(dtype, groups, triton_device):
    values = torch.tensor([0.5, -0.5, 0.25, -2.0, 0.125, 0.0], dtype=dtype, device=triton_device)
    weight = values.reshape(2, 1, 1, 3)
    half, quarter = (torch.full((1,), value, device=triton_device) for value in (0.5, 0.25))
    x = torch.ones(1, groups, 1, 3, dtype=dtype, device=triton_device)
    geometry = [1, 1], [0, 0], [1, 1], groups
    launch = masked_conv2d_triton.masked_conv2d
    assert launch(x, weight, half, None, None, *geometry).flatten().tolist() == [0, -2]
    assert launch(x, weight, half * NAN, None, None, *geometry).flatten().tolist() == [0.25, -1.875]
    grad = torch.ones(1, 2, 1, 1, dtype=dtype, device=triton_device)
    gradients = masked_conv2d_weight_triton.masked_conv2d_weight_gradient
    dw, total = gradients(grad, x, weight, half, 2 * half + 1, quarter, *geometry)
    assert dw.flatten().tolist() == [2, 2, 2, 2, 0, 0] and total == -2
    weight[1, 0, 0, 2] = NAN
    assert launch(x, weight, half, None, None, *geometry).isnan().flatten().tolist() == [False, True]
    assert gradients(grad, x, weight, half, None, None, *geometry)[1].isnan()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_mask_is_decided_in_fp32(layout, triton_device):
    threshold = torch.tensor(1 + 2**-12, device=triton_device)
    weight = torch.tensor([1 + 2**-11, 1.0], device=triton_device).reshape(2, 1, 1, 1)
    x = torch.ones(1, 1, 2, 1, dtype=torch.bfloat16, device=triton_device).contiguous(memory_format=layout)
    y = fused({"stride": 2})(x, weight, threshold)
    assert y.dtype == torch.bfloat16 and y.flatten().tolist() == [1, 0]


@pytest.mark.parametrize("groups", [1, 4])
def test_strides_do_not_matter(groups, triton_device):
    shapes = (2, 4, 5, 6), (4, 4 // groups, 3, 3)
    x, weight, threshold, attention, bias = operands(*shapes, (torch.float32,) * 2, triton_device)
    geometry = {"groups": groups, "stride": (1, 2)}
    grad = output_grad(x, weight, geometry)
    want = run(partial(masked_conv2d, **geometry), (x, weight, threshold, attention, bias), grad, EVERY)
    for strided_x, strided_w, strided_grad in zip(layouts(x), layouts(weight), layouts(grad)):
        got = run(fused(geometry), (strided_x, strided_w, threshold, attention, bias), strided_grad, EVERY)
        torch.testing.assert_close(got, want)
    one = torch.ones((), device=triton_device).expand_as(grad)  # as from .sum()
    args = x[:1].expand_as(x), weight[:1].expand_as(weight), threshold, attention, bias[:1].expand(4)
    got, want = (run(op, args, one, EVERY) for op in (fused(geometry), partial(masked_conv2d, **geometry)))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "x_shape, shape",
    [
        ((2, 3, 6, 6), (4, 3, 3, 3)),
        ((2, 3, 6, 6), (4, 3, 1, 1)),
        ((2, 3, 6, 6), (3, 1, 3, 3)),
        ((2, 1, 4, 4), (3, 1, 1, 1)),
    ]
    + [((3, 2, 1, 1), (4, 2, 1, 1))],
    ids=str,
)
def test_results_lie_as_those_of_pytorch(x_shape, shape, triton_device):
    x, weight, threshold, _, _ = operands(x_shape, shape, (torch.float32,) * 2, triton_device)
    geometry = {"groups": x_shape[1] // shape[1], "padding": shape[2] // 2}
    for x_layout in LAYOUTS:
        for w_layout in LAYOUTS:
            args = *laid_out(x_layout, x), *laid_out(w_layout, weight), threshold
            leaf = args[0].requires_grad_()
            got, want = fused(geometry)(*args), masked_conv2d(*args, **geometry)
            assert got.contiguous(memory_format=suggest_memory_format(want)) is got
            (got,), (want,) = (torch.autograd.grad(y.square().sum(), leaf) for y in (got, want))
            assert got.contiguous(memory_format=suggest_memory_format(want)) is got


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("far", [0, 1, 2, 3])
def test_elements_further_apart_than_32_bits_can_say(far, groups, triton_device):
    shapes = (2, 4, 3, 3), (4, 4 // groups, 3, 3)
    x, weight, threshold, _, _ = operands(*shapes, (torch.float32,) * 2, triton_device)
    grad, geometry = torch.randn_like(x), ([1, 1], [1, 1], [1, 1], groups)

    def spread(t):
        strides = [2**30 // t.shape[far] if d == far else s for d, s in enumerate(t.stride())]
        storage = torch.UntypedStorage(2**32 + 2**20, device=triton_device)  # of which few pages are touched
        return t.new_empty(0).set_(storage, 0, t.shape, strides).copy_(t)

    def all_three(x, grad):
        args = x, weight, threshold, None, None, *geometry
        yield masked_conv2d_triton.masked_conv2d(*args)
        yield masked_conv2d_triton.masked_conv2d_input_gradient(grad, weight, threshold, None, x.shape[2:], *geometry)
        yield from masked_conv2d_weight_triton.masked_conv2d_weight_gradient(grad, *args)

    for got, want in zip(all_three(spread(x), spread(grad)), all_three(x, grad), strict=True):
        torch.testing.assert_close(got, want)


def test_more_pixels_than_32_bits_can_count(triton_device, monkeypatch):
    for module in (masked_conv2d_triton, masked_conv2d_weight_triton, _conv_triton):
        monkeypatch.setattr(module, "COUNT", 0)  # so that they count in 64 bits
    for name in ("3x3", "strided", "depthwise", "1x1"):
        follows(*GEOMETRIES[name], (torch.float32,) * 2, torch.channels_last, triton_device)


@pytest.mark.parametrize("name", ["3x3", "strided"])
def test_as_for_a_gpu_without_wgmma(name, triton_device, monkeypatch):
    for module in (masked_conv2d_triton, masked_conv2d_weight_triton):
        monkeypatch.setattr(module, "has_wgmma", lambda: False)
    follows(*GEOMETRIES[name], (torch.float32,) * 2, torch.channels_last, triton_device)


def test_with_and_without_tf32(triton_device):
    args = laid_out(torch.channels_last, *operands((2, 16, 9, 9), (80, 16, 3, 3), (torch.float32,) * 2, triton_device))
    want = masked_conv2d(*(t.double() for t in args), padding=1)
    for allowed, tolerance in ((True, 1e-2), (False, 1e-5)):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            assert _conv_triton.precision("full") == ("tf32" if allowed else "full")
            got = fused({"padding": 1})(*args)
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * want.abs().max().item())


@pytest.mark.parametrize("groups", [1, 8])
def test_two_runs_give_the_same_bits_from_several_slices(groups, triton_device, monkeypatch):
    monkeypatch.setattr(masked_conv2d_weight_triton, "LEAST", 1)
    shapes = (2, 8, 9, 9), (8, 8 // groups, 2, 2)
    args = laid_out(torch.channels_last, *operands(*shapes, DTYPES[4].values[0], triton_device))
    grad = output_grad(*args[:2], {"groups": groups})
    geometry = {"groups": groups}
    first, second = (run(fused(geometry), args, grad, EVERY) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second))
    assert_follows_formula(fused(geometry), conv(geometry), args, grad)


def test_second_derivatives_and_transforms(triton_device):
    x, weight, threshold, attention, bias = operands((2, 2, 5, 5), (4, 2, 3, 3), (torch.float32,) * 2, triton_device)
    args = x, weight, threshold, attention, bias

    def penalty(op):
        leaves = [a.clone().requires_grad_() for a in args]
        grads = torch.autograd.grad(op(*leaves).square().sum(), [leaves[i] for i in EVERY], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), [leaves[i] for i in EVERY])

    torch.testing.assert_close(penalty(fused({})), penalty(masked_conv2d), rtol=1e-4, atol=1e-4)
    per_sample = torch.vmap(lambda x: fused({})(x, *args[1:]))(x)
    torch.testing.assert_close(per_sample, masked_conv2d(*args))
    gradient = torch.func.grad(lambda *args: fused({})(*args).square().sum(), EVERY)(*args)
    want = torch.func.grad(lambda *args: masked_conv2d(*args).square().sum(), EVERY)(*args)
    torch.testing.assert_close(gradient, want)


def test_compiles_whole(triton_device, monkeypatch):
    monkeypatch.undo()  # dynamo cannot trace what poisons memory
    args = operands((2, 2, 5, 5), (4, 2, 3, 3), (torch.float32,) * 2, triton_device)
    grad = output_grad(*args[:2], {})
    torch._dynamo.reset()
    compiled = torch.compile(lambda *args: masked_conv2d(*args, products="fused"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, args, grad, EVERY), run(fused({}), args, grad, EVERY))


def test_opcheck(triton_device):
    dtypes = DTYPES[4].values[0]
    args = operands((2, 4, 5, 6), (6, 2, 3, 3), dtypes, triton_device)
    grad = torch.randn(2, 6, 3, 4, device=triton_device).to(dtypes[0])
    x, weight, threshold, attention, bias, grad = laid_out(torch.channels_last, *args, grad)
    geometry, ops = ([2, 1], [1, 0], [1, 1], 2), torch.ops.aswl
    torch.library.opcheck(ops.masked_conv2d.default, (x, weight, threshold, attention, bias, *geometry))
    args = grad, weight, threshold, attention, x.shape[2:], *geometry
    torch.library.opcheck(ops.masked_conv2d_input_gradient.default, args)
    args = grad, x, weight, threshold, None, threshold / 2, *geometry
    torch.library.opcheck(ops.masked_conv2d_weight_gradient.default, args)


def test_without_a_kernel_the_references_serve():
    args = operands((2, 4, 5, 6), (6, 2, 3, 3))
    geometry = {"groups": 2, "stride": 2}
    grad = output_grad(*args[:2], geometry).double()
    got, want = (run(op, args, grad, EVERY) for op in (fused(geometry), partial(masked_conv2d, **geometry)))
    torch.testing.assert_close(got, want)
