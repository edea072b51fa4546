"""ASL: Weight Pruning via Adaptive Sparsity Loss (Retsinas et al., arXiv 2006.02768)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from bench.baselines.learned import LearnedThresholds, Thresholded

LIMIT = 5.0  # of a threshold, in standard deviations: a Gaussian has no weights to speak of beyond it


class Scaled(Thresholded):
    """w where |w| >= b std(w), else 0, with one b per layer; straight-through for w, so b learns from what is cut."""

    def __init__(self, threshold: Tensor, share: float, limit: float):
        super().__init__(threshold)
        self.share, self.limit = share, limit  # of all weights, the layer's; of the threshold

    def sparse(self, weight: Tensor) -> Tensor:
        cut = self.threshold.clamp(0, self.limit) * weight.std().detach() + 1e-6
        scaled = weight / cut
        return cut * (scaled - scaled.masked_fill(scaled.abs() >= 1, 0.0).detach())

    def density(self) -> Tensor:
        """The layer's part of the density that Gaussian weights would have."""
        return self.share * torch.erfc(self.threshold / math.sqrt(2))

    def push(self) -> Tensor:
        # how fast density() falls with the threshold
        return self.share * (-self.threshold.clamp(0, LIMIT).square() / 2).exp()

    def margin(self, weight: Tensor) -> Tensor:
        return (weight.abs() / weight.std() - self.threshold) / self.push()


class ASL(LearnedThresholds):
    """One threshold per layer, in standard deviations of its weights, which are kept at mean 0; the loss has ``strength``
    (10 in the paper's repository, from where these details are) times the squared distance of the density that
    Gaussian weights would have to the one asked for.

    Thresholds learn at ``rate`` times the weights' rate and have no decay. With a strength they start where 0.6 of the
    sparsity asked for would be, and stop at 5; under the controller, at 0 and without that stop.
    """

    def __init__(self, model: nn.Module, *, rate: float = 0.01, **options: Any):
        self.rate = rate
        super().__init__(model, **options)

    def parametrization(self, weight: Tensor) -> Thresholded:
        share = weight.numel() / self.total
        if self.controller is not None:
            return Scaled(weight.new_zeros(1), share, math.inf)
        first = math.sqrt(2) * torch.erfinv(weight.new_full((1,), 0.6 * (1 - self.target)))
        return Scaled(first, share, LIMIT)

    def threshold_options(self, *, lr: float, **options: Any) -> dict[str, Any]:
        return {"lr": self.rate * lr, "weight_decay": 0.0}

    def penalty(self) -> Tensor | float:
        if self.controller is not None:
            return 0.0
        density = sum(learned.density() for learned in self.learned.values())
        return self.strength * (density - self.target).square().sum()

    def adjust(self) -> None:
        for name, weight in self.dense.items():
            weight.sub_(weight.mean())
            self.learned[name].threshold.clamp_(min=0)  # below, it cuts as much as at 0 and learns nothing
