"""``gate`` against its reference, and against one copy."""

import torch

from aswl_kernels import gate, reference
from bench.suite import Variants, exact, suite

SETTINGS = [{"weights": 1 << 22}]
VARIANTS = ("ours", "reference", "one copy")


def variants(weights: int) -> Variants:
    weight = torch.randn(weights)
    args = weight, torch.tensor([0.7]), weight.abs().median()
    made = {"ours": lambda: gate(*args), "reference": lambda: reference.gate(*args), "one copy": weight.clone}
    exact(made["ours"](), made["reference"]())
    return made


test_gate = suite(SETTINGS, VARIANTS, variants)
