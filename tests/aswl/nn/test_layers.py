"""The sparse layers: values with a mask, every geometry of their parents, wrong inputs, transforms."""

import pytest
import torch
import torch.nn.functional as F
from harness import by_formula, masked, prune, randn
from torch import nn

from aswl.nn import SparseConv2d, SparseLinear
from aswl_kernels import native


@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_follow_the_formula(kind, bias, device):
    construct, parent, shape = kind
    layer = prune(construct(bias=bias, dtype=torch.float64, device=device))
    x = randn(shape).to(device).requires_grad_()
    y = layer(x)
    grad = torch.randn_like(y)
    y.backward(grad)
    b = layer.bias if bias else layer.weight.new_zeros(len(layer.weight))
    product = F.linear if parent is nn.Linear else F.conv2d
    want_y, *want = by_formula(product, x, layer.weight, layer.threshold, layer.attention, b, grad)
    torch.testing.assert_close(y, want_y)
    got = (x.grad, layer.weight.grad, layer.attention.grad, layer.bias.grad if bias else want[3])
    torch.testing.assert_close(got, tuple(want))


def test_detached_scale_keeps_the_output_and_the_attentions_gradient(kind):
    construct, parent, shape = kind
    paper, detached = (prune(construct(dtype=torch.float64)) for _ in range(2))
    detached.load_state_dict(paper.state_dict())
    detached.attention_scale = "detached"
    x = randn(shape)
    y = detached(x)
    torch.testing.assert_close(y * 0.6, paper(x))
    grad = torch.randn_like(y)
    y.backward(grad)
    ones = torch.ones(1, dtype=torch.float64)
    product = F.linear if parent is nn.Linear else F.conv2d
    _, _, weight_grad, attention_grad, bias_grad = by_formula(
        product, x, detached.weight, detached.threshold, ones, detached.bias, grad
    )
    torch.testing.assert_close(detached.attention.grad, attention_grad)  # sum(G * sparse) + sum(G_bias * bias)
    torch.testing.assert_close((detached.weight.grad, detached.bias.grad), (weight_grad, bias_grad))


def test_kept_and_density(kind):
    layer = kind[0]()
    n = layer.weight.numel()
    assert layer.kept == n and layer.density == 1.0
    prune(layer, 0.25)
    assert layer.kept == n - n // 4 and layer.density == (n - n // 4) / n
    with torch.no_grad():
        layer.weight.view(-1)[0] = float("nan")
        layer.threshold.fill_(float("inf"))
    assert layer.kept == 1  # the NaN
    with pytest.warns(UserWarning, match="zero-element"):  # the parent's
        empty = SparseLinear(0, 3)
    assert empty.density == 1.0 and empty.kept == 0


def test_positions_of_the_last_forward():
    linear, conv = SparseLinear(6, 4), SparseConv2d(4, 6, 3)
    assert linear.positions is None and conv.positions is None
    for shape, positions in (((6,), 1), ((3, 6), 1), ((3, 5, 7, 6), 35)):
        linear(torch.randn(shape))
        assert linear.positions == positions
    for shape in ((2, 4, 7, 6), (4, 7, 6)):
        conv(torch.randn(shape))
        assert conv.positions == 5 * 4


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 2), "padding": (2, 1), "stride": 2},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": 5, "padding": "same", "groups": 2},
        {"kernel_size": 3, "padding": "valid", "stride": (1, 2)},
        {"kernel_size": 3, "padding": 1, "groups": 4, "bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(2, 4, 7, 9), (4, 7, 9), (0, 4, 7, 9)], ids=str)
def test_convolution_equals_the_parent(mode, options, shape):
    layer = prune(SparseConv2d(4, 8, padding_mode=mode, dtype=torch.float64, **options), attention=1.0)
    dense = nn.Conv2d(4, 8, padding_mode=mode, dtype=torch.float64, **options)
    with torch.no_grad():
        dense.weight.copy_(masked(layer.weight, layer.threshold))
        if dense.bias is not None:
            dense.bias.copy_(layer.bias)
    x = randn(shape).requires_grad_()
    y, want = layer(x), dense(x)
    torch.testing.assert_close(y, want)
    grads = [torch.autograd.grad(out.square().sum(), [x, m.weight]) for out, m in ((y, layer), (want, dense))]
    torch.testing.assert_close(*grads)  # with attention 1, straight-through is the dense gradient


@pytest.mark.parametrize("shape", [(6,), (0, 6), (2, 0, 6), (2, 3, 5, 6)], ids=str)
def test_linear_equals_the_parent(shape):
    layer = prune(SparseLinear(6, 4, dtype=torch.float64))
    x = randn(shape)
    torch.testing.assert_close(layer(x), 0.6 * F.linear(x, masked(layer.weight, layer.threshold), layer.bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_stays_channels_last(dtype):
    model = nn.Sequential(SparseConv2d(8, 8, 3, padding=1), SparseConv2d(8, 8, 1)).to(dtype)
    model = model.to(memory_format=torch.channels_last)
    y = model(randn((2, 8, 6, 6), dtype).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert model[0].weight.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not native.AVAILABLE, reason="the reference's elementwise operations rewrite such strides")
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 4, 1, 1)], ids=["one channel", "one pixel"])
@pytest.mark.parametrize("steered", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_layouts_that_dimensions_of_1_leave_open_are_the_parents(shape, steered, autocast):
    x = torch.randn(shape)
    dense = nn.Conv2d(shape[1], 6, 3, padding=1).to(memory_format=torch.channels_last)
    sparse = prune(SparseConv2d.from_dense(dense))
    sparse.attention_steered, sparse.attention_scale = steered, "detached"
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert sparse(x).stride() == dense(x).stride()


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    "x",
    [
        torch.ones(3),
        torch.ones(5, 5),
        torch.ones(1, 2, 3, 5, 5),
        torch.ones(1, 2, 5, 5),
        torch.ones(1, 3, 0, 5),
        torch.ones(1, 3, 5, 5).double(),
        torch.ones(1, 3, 5, 5).long(),
    ],
    ids=lambda x: f"{x.dtype}{list(x.shape)}",
)
def test_convolution_refuses(mode, x):
    with pytest.raises(ValueError, match="want .*; got "):
        SparseConv2d(3, 4, 3, padding=1, padding_mode=mode)(x)


@pytest.mark.parametrize("mode, least", [("reflect", (4, 2)), ("replicate", (1, 1)), ("circular", (3, 1))])
def test_convolution_refuses_an_image_too_small_to_pad(mode, least):
    layer = SparseConv2d(1, 1, 1, padding=(3, 1), padding_mode=mode)
    height, width = least
    assert layer(torch.ones(1, 1, height, width)).shape == (1, 1, height + 6, width + 2)
    for shape in ((height - 1, width), (height, width - 1)):
        with pytest.raises(ValueError, match=rf"H >= {height} and W >= {width} to pad by '{mode}'; got shape \[1, 1, "):
            layer(torch.ones(1, 1, *shape))


@pytest.mark.parametrize("x", [torch.ones(2, 5), torch.tensor(1.0), torch.ones(2, 6).double(), torch.ones(2, 6).int()])
def test_linear_refuses(x):
    with pytest.raises(ValueError, match="masked_linear: want .*; got "):
        SparseLinear(6, 4)(x)


def test_compile_once_while_threshold_and_attention_move(kind):
    construct, _, shape = kind
    layer, x = prune(construct()), torch.randn(shape)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for fraction in (0.1, 0.5, 0.9):
            prune(layer, fraction, attention=fraction)
            got, want = (torch.autograd.grad(f(x).square().sum(), list(layer.parameters())) for f in (compiled, layer))
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("strict", [True, False])
def test_export_with_any_batch_size(kind, strict):
    construct, _, shape = kind
    layer = prune(construct())
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(layer, (torch.randn(shape),), dynamic_shapes=(batch,), strict=strict)
    assert layer.positions is None  # nothing of the trace stays behind
    x = torch.randn(11, *shape[1:])
    torch.testing.assert_close(program.module()(x), layer(x))


def test_functional_call_per_sample_gradients_and_ensembles(kind):
    construct, _, shape = kind
    layer, x = prune(construct(dtype=torch.float64)), randn(shape)
    parameters, buffers = dict(layer.named_parameters()), dict(layer.named_buffers())

    def loss(parameters, x):
        return torch.func.functional_call(layer, (parameters, buffers), (x,)).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i, sample in enumerate(x):
        want = torch.autograd.grad(layer(sample).square().sum(), list(parameters.values()))
        torch.testing.assert_close(tuple(per_sample[name][i] for name in parameters), want)

    members = [prune(construct(dtype=torch.float64), f, attention=f) for f in (0.2, 0.5, 0.8)]
    stacked = torch.func.stack_module_state(members)
    out = torch.func.vmap(lambda p, b: torch.func.functional_call(layer, (p, b), (x,)))(*stacked)
    torch.testing.assert_close(out, torch.stack([member(x) for member in members]))


def test_autocast_takes_an_fp32_layer(kind):
    construct, _, shape = kind
    layer, x = prune(construct()), torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = layer(x), layer.to_dense()(x)
    assert got.dtype == torch.bfloat16 and got.equal(want)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("steered", [False, True])
@pytest.mark.parametrize("learnable", [None, 0.1])
def test_nested_tensors(layout, steered, learnable):
    """Sequences of several lengths give, each, what they give by themselves."""
    layer = prune(SparseLinear(6, 4))
    layer.attention_steered = steered
    layer.learnable = None if learnable is None else torch.tensor(learnable)
    parts = [torch.randn(n, 6) for n in (2, 5, 1)]
    y = layer(torch.nested.nested_tensor(parts, layout=layout))
    torch.testing.assert_close(list(y.unbind()), [layer(part) for part in parts])
    sum(part.square().sum() for part in y.unbind()).backward()
    got, layer.weight.grad = layer.weight.grad, None
    sum(layer(part).square().sum() for part in parts).backward()
    torch.testing.assert_close(got, layer.weight.grad)
