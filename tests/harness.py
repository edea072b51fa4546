"""What the tests of the operators share: the exact result, the criterion, and tables of sizes, dtypes and geometries."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st

DTYPES = [  # of x, of the weight
    pytest.param((torch.float64, torch.float64), id="fp64"),
    pytest.param((torch.float32, torch.float32), id="fp32"),
    pytest.param((torch.bfloat16, torch.bfloat16), id="bf16"),
    pytest.param((torch.float16, torch.float16), id="fp16"),
    pytest.param((torch.bfloat16, torch.float32), id="bf16 over fp32"),
    pytest.param((torch.float16, torch.float32), id="fp16 over fp32"),
]
GEOMETRIES = {  # x, weight, arguments of conv2d
    "1x1": ((2, 3, 5, 7), (4, 3, 1, 1), {}),
    "3x3": ((2, 3, 5, 7), (4, 3, 3, 3), {"padding": 1}),
    "oblong": ((1, 2, 9, 8), (3, 2, 1, 5), {"stride": (1, 2), "padding": (0, 2)}),
    "strided": ((2, 3, 8, 9), (4, 3, 3, 3), {"stride": 2, "padding": (1, 0)}),
    "dilated": ((1, 2, 9, 9), (3, 2, 3, 2), {"dilation": (2, 3), "padding": 1}),
    "same": ((2, 3, 5, 6), (4, 3, 3, 5), {"padding": "same"}),
    "same, lopsided": ((2, 3, 5, 6), (4, 3, 2, 4), {"padding": "same"}),
    "same, lopsided and dilated": ((2, 3, 7, 6), (4, 3, 2, 3), {"padding": "same", "dilation": (3, 1)}),
    "valid": ((2, 3, 5, 6), (4, 3, 3, 3), {"padding": "valid"}),
    "grouped": ((2, 6, 5, 5), (4, 3, 3, 3), {"groups": 2, "padding": 1}),
    "depthwise": ((2, 4, 5, 5), (8, 1, 3, 3), {"groups": 4, "padding": 1}),
    "unbatched": ((3, 5, 7), (4, 3, 3, 3), {"padding": 1}),
    "unbatched, lopsided": ((3, 5, 7), (4, 3, 2, 2), {"padding": "same"}),
    "whole image": ((2, 3, 4, 4), (5, 3, 4, 4), {}),
    "lists": ((1, 1, 5, 5), (1, 1, 3, 3), {"stride": [2], "padding": [1, 1], "dilation": [1, 1]}),
}
geometry_table = pytest.mark.parametrize("x_shape, weight_shape, geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())


@st.composite
def geometries(draw):
    """A random row for the table above."""

    def few(low, high):
        return tuple(draw(st.lists(st.integers(low, high), min_size=2, max_size=2)))

    groups, kernel, dilation = draw(st.integers(1, 3)), few(1, 4), few(1, 3)
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.builds(few, st.just(0), st.just(3))))
    stride = (1, 1) if padding == "same" else few(1, 3)
    size = [d * (k - 1) + 1 + extra for d, k, extra in zip(dilation, kernel, few(0, 4))]
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    batch = draw(st.sampled_from([(), (0,), (1,), (2,)]))
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return (*batch, inputs, *size), (outputs, inputs // groups, *kernel), arguments


def assert_no_worse(got, same_dtype, exact, terms=0.0):
    """``got`` has PyTorch's shape and dtype, and at most twice its error; a NaN or an infinity fails.

    ``terms``: sum of the magnitudes of what a single sum adds up, whose rounding PyTorch may have missed by luck.
    """
    assert (got.dtype, got.shape) == (same_dtype.dtype, exact.shape)
    if exact.numel() == 0:
        return
    error, torch_error = ((y.double() - exact).abs().amax().item() for y in (got, same_dtype))
    slack = 1e-13 if got.dtype == torch.float64 else 1e-6
    assert error <= 2 * torch_error + slack * max(exact.abs().amax().item(), terms), (
        f"error {error:.3g}, PyTorch's {torch_error:.3g}"
    )


def run(op, args, grad, wrt):
    """``op(*args)`` and its gradients with respect to the arguments at the positions ``wrt``."""
    leaves = [a.detach().requires_grad_(i in wrt) if isinstance(a, torch.Tensor) else a for i, a in enumerate(args)]
    y = op(*leaves)
    return y.detach(), *torch.autograd.grad(y, [leaves[i] for i in wrt], grad)


def masked(weight, threshold):
    """The weight where its magnitude, in fp32, reaches the threshold or is NaN; else 0."""
    magnitude = weight.float().abs()
    return torch.where((magnitude >= threshold.float()) | magnitude.isnan(), weight, torch.zeros_like(weight))


def by_formula(product, x, weight, threshold, attention, bias, grad):
    """(y, dx, dw, da, db) of attention * (product(x, masked weight) + bias), from the formulas of the method.

    ``product(x, weight, bias)`` is PyTorch's; the gradients G of the folded weight and bias are its own, and
    dw = a G, da = sum(G * masked weight) + sum(G_bias * bias), db = a G_bias.
    """
    sparse = masked(weight, threshold)
    leaves = [t.to(x.dtype).detach().requires_grad_() for t in (x, attention * sparse, attention * bias)]
    y = product(*leaves)
    dx, weight_grad, bias_grad = torch.autograd.grad(y, leaves, grad)
    wide = torch.promote_types(weight.dtype, torch.float32)
    sums = [(g.to(wide) * t.to(wide)).sum() for g, t in ((weight_grad, sparse), (bias_grad, bias))]
    attention_grad = sum(sums).to(attention.dtype).reshape(attention.shape)
    return y, dx, (attention * weight_grad).to(weight.dtype), attention_grad, (attention * bias_grad).to(bias.dtype)


def assert_follows_formula(op, product, args, grad):
    """``op(x, weight, threshold, attention, bias)`` and all its gradients are no worse than PyTorch's own."""
    got = run(op, args, grad, wrt=(0, 1, 3, 4))
    x, weight, threshold, attention, bias = (t.double() for t in args)
    exact = by_formula(product, x, weight, threshold, attention, bias, grad.double())
    products = exact[2] * masked(weight, threshold), exact[4] * bias
    terms = sum(p.abs().sum() for p in products).item() / attention.abs().item()
    for i, triple in enumerate(zip(got, by_formula(product, *args, grad), exact, strict=True)):
        assert_no_worse(*triple, terms=terms if i == 3 else 0)


def operands(x_shape, weight_shape, dtypes=(torch.float64, torch.float64), device="cpu"):
    """(x, weight, threshold, attention, bias) with about half of the weights pruned, one of them at the threshold."""
    x_dtype, weight_dtype = dtypes
    x, weight = torch.randn(x_shape, dtype=torch.float64), torch.randn(weight_shape, dtype=torch.float64)
    weight = weight.to(weight_dtype)
    threshold = weight.abs().float().median() if weight.numel() else torch.tensor(0.5)
    attention = torch.tensor([0.7], dtype=torch.promote_types(weight_dtype, torch.float32))
    bias = torch.randn(weight_shape[0], dtype=torch.float64).to(weight_dtype)
    return tuple(t.to(device) for t in (x.to(x_dtype), weight, threshold, attention, bias))


def randn(shape, dtype=torch.float64):
    """The same random values, up to rounding, in every dtype."""
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def prune(layer, fraction=0.5, attention=0.6):
    """Prune the smallest weights of a sparse layer, the one at the threshold kept, and set its attention."""
    with torch.no_grad():
        magnitudes = layer.weight.abs().float().flatten().sort().values
        layer.threshold.copy_(magnitudes[int(fraction * len(magnitudes))])
        layer.attention.fill_(attention)
    return layer


def conv(geometry):
    """PyTorch's convolution (x, weight, bias) with these arguments."""

    def convolve(x, weight, bias=None):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths", UserWarning)
            return F.conv2d(x, weight, bias, **geometry)

    return convolve


def layouts(t):
    """The same values with other strides: transposed, a slice with gaps, at an offset; channels_last where 4-d."""
    gaps = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), float("nan"))
    gaps[..., ::2] = t
    flat = torch.cat([t.new_full((3,), float("nan")), t.flatten()])
    yield gaps[..., ::2]
    yield flat[3:].view(t.shape)
    if t.dim() > 1:
        yield t.transpose(0, -1).contiguous().transpose(0, -1)
    if t.dim() == 4:
        yield t.contiguous(memory_format=torch.channels_last)
