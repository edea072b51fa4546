"""``magnitude_threshold`` on all of ResNet-50 against ``kthvalue`` per layer, and against one read of the weights."""

import torch

from aswl_kernels import magnitude_threshold
from bench.suite import Variants, exact, suite

SETTINGS = [{"density": density} for density in (0.02, 0.1, 0.5)]
VARIANTS = ("ours", "kthvalue", "one read (amax)")


def resnet50() -> list[torch.Tensor]:
    """Weights of ResNet-50's shapes, 25.5M."""
    shapes, inputs = [(64, 3, 7, 7)], 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            shapes += [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            shapes += [(4 * width, inputs, 1, 1)] if block == 0 else []
            inputs = 4 * width
    return [torch.randn(shape) * 0.05 for shape in (*shapes, (1000, 2048))]


def variants(density: float) -> Variants:
    weights = resnet50()
    counts = [max(1, int(density * w.numel())) for w in weights]
    keep, ranks = torch.tensor(counts), [w.numel() - k + 1 for w, k in zip(weights, counts)]
    made = {
        "ours": lambda: magnitude_threshold(weights, keep),
        "kthvalue": lambda: torch.stack([w.abs().flatten().kthvalue(r).values for w, r in zip(weights, ranks)]),
        "one read (amax)": torch.cat([w.flatten() for w in weights]).amax,
    }
    exact(made["ours"](), made["kthvalue"]())
    return made


test_magnitude_threshold = suite(SETTINGS, VARIANTS, variants)
