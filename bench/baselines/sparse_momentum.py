"""Sparse Momentum (Dettmers and Zettlemoyer, "Sparse Networks from Scratch", arXiv 1907.04840, algorithm 1)."""

from typing import Any

import torch
from torch import Tensor, nn

from bench.baselines.drop_and_grow import DropAndGrow
from bench.baselines.shares import Shares, round_counts


class SparseMomentum(DropAndGrow):
    """Drops the smallest weights of each layer, shares their number out among layers by the mean magnitude of the
    momentum of their weights, and grows where the momentum of pruned weights is largest.

    The momentum is a mean of dense gradients of its own, ``momentum`` of which is kept per update, so any optimizer will
    do; new weights start with it where the optimizer is SGD, as in the authors' code, whose optimizer sees dense
    gradients. ``fraction``: the paper's prune rate. ``every``: the paper's is once per epoch.
    What a full layer cannot take goes to the others in equal parts.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shares: Shares = "uniform",
        fraction: float = 0.5,
        momentum: float = 0.9,
        **options: Any,
    ):
        super().__init__(model, shares=shares, fraction=fraction, **options)
        self.smoothing = momentum
        self.momenta = {name: torch.zeros_like(layer.weight) for name, layer in self.layers.items()}

    def before_step(self) -> None:
        for name, layer in self.layers.items():
            self.momenta[name].lerp_(layer.weight.grad, 1 - self.smoothing)
        super().before_step()

    def start(self, name: str, new: Tensor) -> None:
        buffer = self.momentum(name)
        if buffer is not None:  # a sum, which this update will decay and add the gradient to
            dense = self.momenta[name] / (1 - self.smoothing) - self.layers[name].weight.grad
            buffer.copy_(torch.where(new, dense / self.smoothing, buffer))

    def growth(self, name: str) -> Tensor:
        return self.momenta[name].abs()

    def counts(self, stay: dict[str, int]) -> dict[str, int]:
        strengths = {name: float(self.growth(name)[mask].mean()) for name, mask in self.masks.items()}
        scale = (sum(self.kept().values()) - sum(stay.values())) / (sum(strengths.values()) or 1.0)
        return round_counts({name: stay[name] + scale * strengths[name] for name in stay}, self.sizes, self.target)
