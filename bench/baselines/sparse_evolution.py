"""SET, sparse evolutionary training (Mocanu et al., arXiv 1707.04780, algorithm 1)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bench.baselines.drop_and_grow import DropAndGrow
from bench.baselines.static import random_like


class SET(DropAndGrow):
    """Drops the smallest positive and the largest negative weights, ``fraction`` (the paper's zeta, 0.3) of each, and
    grows as many at random. ``shares``: Erdős-Rényi, equation 1. ``every``: the paper's is once per epoch.

    A new weight starts from its value in the dense network: from zero, one that no gradient reaches would stay zero.
    """

    def __init__(self, model: nn.Module, **options: Any):
        dense = copy.deepcopy(model)
        super().__init__(model, **options)
        self.initial = {name: dense.get_submodule(name).weight.detach() for name in self.layers}

    def rate(self) -> float:
        return self.fraction

    def survivors(self, name: str) -> Tensor:
        mask, negative = self.masks[name], self.layers[name].weight < 0
        return self.largest_of(name, mask & negative) | self.largest_of(name, mask & ~negative)

    def growth(self, name: str) -> Tensor:
        return random_like(self.layers[name].weight)

    def rewire(self) -> None:
        before = dict(self.masks)
        super().rewire()
        for name, layer in self.layers.items():
            new = self.masks[name] & ~before[name]
            layer.weight.copy_(torch.where(new, self.initial[name], layer.weight))
