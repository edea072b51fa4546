"""STR: Soft Threshold Weight Reparameterization (Kusupati et al., arXiv 2002.03231)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bench.baselines.learned import LearnedThresholds, Thresholded


class SoftThreshold(Thresholded):
    """sign(w) relu(|w| - g(s)) with one s per layer and g the sigmoid."""

    def sparse(self, weight: Tensor) -> Tensor:
        return weight.sign() * F.relu(weight.abs() - self.threshold.sigmoid())

    def push(self) -> Tensor:
        return (-self.threshold).clamp(min=0.1)  # weight decay moves a negative s towards 0

    def margin(self, weight: Tensor) -> Tensor:
        return (weight.abs().clamp(1e-30, 1 - 1e-6).logit() - self.threshold) / self.push()


class STR(LearnedThresholds):
    """One threshold per layer; weights below it are zero, the others come nearer to zero by it.

    Weight decay on s raises the thresholds, the loss lowers them. ``strength``: that decay; in the paper it is the
    weights' decay, tuned for each density together with ``s_init``, s at first: -3200 for ResNet-50 at 90% (the paper's
    repository). Here s starts so low that nothing of a network's first weights is cut, and high enough to be moved.
    """

    def __init__(self, model: nn.Module, *, s_init: float = -10.0, **options: Any):
        self.s_init = s_init
        super().__init__(model, **options)

    def parametrization(self, weight: Tensor) -> Thresholded:
        return SoftThreshold(weight.new_full((1,), self.s_init))

    def threshold_options(self, **options: Any) -> dict[str, Any]:
        return {"weight_decay": self.strength or 0.0}
