"""``sparse_linear`` against the dense product, torch's CSR (MKL) and SparseProp."""

import torch
from torch.nn import functional as F

from aswl_kernels import PackedWeight, pack, sparse_linear
from bench import peers
from bench.suite import SPARSITIES, Variants, check, gradients, near, sparse, suite

SHAPES = ((4096, 4096, 256), (2048, 512, 512), (4096, 4096, 1))
SETTINGS = [
    {"outputs": o, "inputs": i, "batch": b, "sparsity": s, "backward": backward}
    for o, i, b in SHAPES
    for backward in ((False, True) if b > 1 else (False,))
    for s in SPARSITIES
]
VARIANTS = ("ours", "dense", "dense, x by columns", "torch CSR", "SparseProp")


def variants(outputs: int, inputs: int, batch: int, sparsity: float, backward: bool) -> Variants:
    x, weight, bias = torch.randn(batch, inputs), sparse((outputs, inputs), sparsity), torch.randn(outputs)
    columns = x.t().contiguous().t()
    if backward:
        return both_ways(x.requires_grad_(), columns.detach().requires_grad_(), weight, bias)
    packed, csr = pack(weight), weight.to_sparse_csr()
    made = {
        "ours": lambda: sparse_linear(x, packed, bias),
        "dense": lambda: F.linear(x, weight, bias),
        "dense, x by columns": lambda: F.linear(columns, weight, bias),
        "torch CSR": lambda: F.linear(x, csr, bias),
    }
    if peers.SPARSEPROP:
        layer = peers.sparseprop_linear(weight, bias).requires_grad_(False)
        made["SparseProp"] = lambda: layer(x)
    return check(made, F.linear(x.double(), weight.double(), bias.double()))


def both_ways(x: torch.Tensor, columns: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Variants:
    """Forward and backward; torch's CSR has no gradient for its weight."""
    grad, packed, dense = torch.randn(len(x), len(weight)), pack(weight), weight.clone().requires_grad_()
    values = packed.values.requires_grad_()
    trained = PackedWeight(values, packed.columns, packed.offsets, packed.shape)
    made = {
        "ours": gradients(lambda x: sparse_linear(x, trained, bias), x, values, grad),
        "dense": gradients(lambda x: F.linear(x, dense, bias), x, dense, grad),
        "dense, x by columns": gradients(lambda x: F.linear(x, dense, bias), columns, dense, grad),
    }
    if peers.SPARSEPROP:
        layer = peers.sparseprop_linear(weight, bias)
        made["SparseProp"] = gradients(layer, x, layer.W_val, grad)
    wide = grad.double()
    weight_grad = wide.t() @ x.detach().double()
    at_nonzeros = {"ours", "SparseProp"}
    for names, want in ((at_nonzeros, weight_grad[weight != 0]), (made.keys() - at_nonzeros, weight_grad)):
        for name in names & made.keys():
            near(made[name]()[1], want)
    check({name: lambda f=f: f()[0] for name, f in made.items()}, wide @ weight.double())
    return made


test_sparse_linear = suite(SETTINGS, VARIANTS, variants)
