"""Gradual magnitude pruning (Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878)."""

from torch import nn

from aswl.schedule import Polynomial
from bench.baselines.method import Masked
from bench.baselines.shares import SHARES, Shares, largest


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
        shares: Shares = "uniform",
        begin: float = 0.0,
        end: float = 0.75,
        every: int = 20,
    ):
        super().__init__(model, density=density, steps=steps)
        self.shares, self.every = shares, every
        self.begin = begin * steps
        self.schedule = Polynomial(1.0, density, self.begin, end * steps, 3.0)

    def update(self) -> None:
        last = self.step == self.steps  # a short training ends at the density asked for, too
        if self.step < self.begin or (self.step % self.every and not last):
            return
        density = self.target if last else self.schedule(self.step)
        counts = SHARES[self.shares](self.layers, density)
        for name, layer in self.layers.items():
            score = layer.weight.abs().masked_fill(~self.masks[name], -1)  # those that went come last
            self.set_mask(name, largest(score, counts[name]))
