"""``pack`` by zeros and by a threshold against torch's conversion to CSR."""

import torch

from aswl_kernels import pack, reference
from bench.suite import SPARSITIES, Variants, exact, suite

SETTINGS = [{"outputs": 4096, "inputs": 4096, "sparsity": sparsity} for sparsity in SPARSITIES]
VARIANTS = ("ours", "ours, by threshold", "to_sparse_csr")


def variants(outputs: int, inputs: int, sparsity: float) -> Variants:
    weight = torch.randn(outputs, inputs)
    threshold = weight.abs().flatten().kthvalue(int(sparsity * weight.numel())).values
    masked = weight.where(weight.abs() >= threshold, 0)
    made = {
        "ours": lambda: pack(masked),
        "ours, by threshold": lambda: pack(weight, threshold),
        "to_sparse_csr": masked.to_sparse_csr,
    }
    for packed in (made["ours"](), made["ours, by threshold"]()):
        for got, want in zip((packed.values, packed.columns, packed.offsets), reference.pack(masked)):
            exact(got, want)
    return made


test_pack = suite(SETTINGS, VARIANTS, variants)
