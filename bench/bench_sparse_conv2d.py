"""``sparse_conv2d`` against the dense convolution in both layouts, and SparseProp in its two."""

from functools import partial

import torch
from torch.nn import functional as F

from aswl_kernels import PackedWeight, pack, sparse_conv2d
from bench import peers
from bench.suite import SPARSITIES, Variants, check, gradients, near, sparse, suite

SHAPES = ((64, 64, 3, 32), (128, 128, 3, 16), (256, 256, 3, 8), (512, 512, 3, 4), (64, 256, 1, 14), (256, 64, 1, 14))
SETTINGS = [
    {"outputs": o, "inputs": i, "kernel": k, "size": size, "batch": 32, "sparsity": s, "backward": backward}
    for o, i, k, size in SHAPES
    for backward in (False, True)
    for s in SPARSITIES
]
VARIANTS = (
    "ours",
    "ours, channels_last",
    "dense",
    "dense, channels_last",
    "SparseProp",
    "SparseProp, over the width",
)


def variants(
    outputs: int, inputs: int, kernel: int, size: int, batch: int, sparsity: float, backward: bool
) -> Variants:
    x, padding = torch.randn(batch, inputs, size, size), kernel // 2
    weight = sparse((outputs, inputs, kernel, kernel), sparsity)
    x_last, weight_last = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    packed = pack(weight)
    values = packed.values.requires_grad_(backward)
    trained = PackedWeight(values, packed.columns, packed.offsets, packed.shape)
    ours, dense = partial(sparse_conv2d, packed=trained, padding=padding), partial(F.conv2d, padding=padding)
    table = {  # name: (function of x, x, weight)
        "ours": (ours, x, values),
        "ours, channels_last": (ours, x_last, values),
        "dense": (lambda x: dense(x, weight), x, weight),
        "dense, channels_last": (lambda x: dense(x, weight_last), x_last, weight_last),
    }
    for name, over_on in (("SparseProp", False), ("SparseProp, over the width", True)) if peers.SPARSEPROP else ():
        layer = peers.sparseprop_conv2d(weight, padding, over_on).requires_grad_(backward)
        table[name] = layer, x, layer.W_val
    if not backward:
        made = {name: partial(f, x) for name, (f, x, _) in table.items()}
        return check(made, F.conv2d(x.double(), weight.double(), padding=padding))
    grad = torch.randn(batch, outputs, size, size)
    for t in (x, x_last, weight, weight_last):
        t.requires_grad_()
    made = {name: gradients(f, x, w, grad) for name, (f, x, w) in table.items()}
    wide = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    x_grad, weight_grad = torch.autograd.grad(F.conv2d(*wide, padding=padding), wide, grad.double())
    near(made["ours"]()[1], weight_grad[weight != 0])
    check({name: lambda f=f: f()[0] for name, f in made.items()}, x_grad)
    return made


test_sparse_conv2d = suite(SETTINGS, VARIANTS, variants)
