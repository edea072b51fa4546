"""SET, sparse evolutionary training (Mocanu et al., arXiv 1707.04780, algorithm 1)."""

from typing import Any

import torch
from torch import Tensor, nn

from bench.baselines.drop_and_grow import DropAndGrow
from bench.baselines.static import random_like

START = 1e-3  # the largest that a new weight is


class SET(DropAndGrow):
    """Drops the smallest positive and the largest negative weights, ``fraction`` (the paper's zeta, 0.3) of each, and
    grows as many at random. ``shares``: Erdős-Rényi, equation 1. ``every``: the paper's is once per epoch.

    New weights start next to zero, of either sign: at zero, the many that no gradient reaches would stay there, and not count.
    ``end``: the paper's masks change until the last epoch, at a constant learning rate; where the rate falls to 0, a
    third of the weights would then have no time left to learn.
    """

    def __init__(self, model: nn.Module, *, end: float = 0.75, **options: Any):
        super().__init__(model, end=end, **options)

    def rate(self) -> float:
        return self.fraction

    def survivors(self, name: str) -> Tensor:
        mask, negative = self.masks[name], self.layers[name].weight < 0
        return self.largest_of(name, mask & negative) | self.largest_of(name, mask & ~negative)

    def growth(self, name: str) -> Tensor:
        return random_like(self.layers[name].weight)

    def start(self, name: str, new: Tensor) -> None:
        weight = self.layers[name].weight
        small = START * (1 - random_like(weight))
        weight.copy_(torch.where(new, torch.where(random_like(weight) < 0.5, small, -small), weight))
