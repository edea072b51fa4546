"""Static sparse training: a random mask that never changes (the "static" of Evci et al., arXiv 1911.11134, section 4)."""

import torch
from torch import nn

from bench.baselines.method import Masked
from bench.baselines.shares import SHARES, Shares, largest


class Static(Masked):
    """Starts from a random mask and keeps it. ``shares``: "erk", or "uniform", how many weights each layer has."""

    def __init__(self, model: nn.Module, *, density: float, steps: int, shares: Shares = "erk"):
        super().__init__(model, density=density, steps=steps)
        for name, count in SHARES[shares](self.layers, density).items():
            self.set_mask(name, largest(random_like(self.layers[name].weight), count))


def random_like(weight: torch.Tensor) -> torch.Tensor:
    """Uniform numbers of torch's seed, the same on all devices."""
    return torch.rand(weight.shape).to(weight.device)
