"""Gradual magnitude pruning (Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878)."""

from typing import Literal

import torch
from torch import nn

from bench.baselines.method import Masked
from bench.baselines.shares import cubic, erdos_renyi_kernel, largest, round_counts, uniform

SHARES = {"uniform": uniform, "erk": erdos_renyi_kernel}


class GradualPruning(Masked):
    """Starts dense; every ``every`` updates the smallest weights go for good, along the cubic schedule between the
    fractions ``begin`` and ``end`` of training. ``shares``: "uniform", "erk", or "global", one magnitude for all layers.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        density: float,
        steps: int,
        shares: Literal["uniform", "erk", "global"] = "uniform",
        begin: float = 0.0,
        end: float = 0.75,
        every: int = 20,
    ):
        super().__init__(model, density=density, steps=steps)
        self.shares, self.every = shares, every
        self.begin, self.end = begin * steps, end * steps

    def update(self) -> None:
        last = self.step == self.steps  # a short training ends at the density asked for, too
        if self.step < self.begin or (self.step % self.every and not last):
            return
        density = self.target if last else cubic(self.step, self.begin, self.end, self.target)
        weights = {name: layer.weight for name, layer in self.layers.items()}
        if self.shares == "global":
            every = torch.cat([weight.abs().flatten() for weight in weights.values()])
            masks = largest(every, round(density * self.total)).split(list(self.sizes.values()))
            counts = {name: float(mask.sum()) for name, mask in zip(weights, masks)}
            counts = round_counts(counts, self.sizes, density)  # no layer without a weight
        else:
            counts = SHARES[self.shares](self.layers, density)
        for name, weight in weights.items():
            score = weight.abs().masked_fill(~self.masks[name], -1)  # those that went come last
            self.set_mask(name, largest(score, counts[name]))
