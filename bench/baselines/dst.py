"""DST: Dynamic Sparse Training (Liu et al., arXiv 2005.06870)."""

from typing import Any

import torch
from torch import Tensor, nn

from bench.baselines.learned import LearnedThresholds, Thresholded

LIMITS = -10.0, 80.0  # of a threshold in push(), whose values are then neither 0 nor infinite in fp32


def long_tailed(x: Tensor) -> Tensor:
    """The estimator of the step function's derivative: 2 - 4|x| up to 0.4, then 0.4 up to 1, then 0."""
    x = x.abs()
    return torch.where(x <= 0.4, 2 - 4 * x, torch.where(x <= 1, 0.4, 0.0))


class StepMask(Thresholded):
    """w step(|w| - t) with one t per neuron or filter; both t and w learn through the mask, too."""

    def sparse(self, weight: Tensor) -> Tensor:
        over = weight.abs() - self._rows(self.threshold, weight)
        still = over.detach()
        return weight * ((still > 0) + long_tailed(still) * (over - still))

    def push(self) -> Tensor:
        return (-self.threshold.clamp(*LIMITS)).exp()  # the regulariser is a sum of exp(-t)

    def margin(self, weight: Tensor) -> Tensor:
        return (weight.abs() - self._rows(self.threshold, weight)) / self._rows(self.push(), weight)

    def _rows(self, values: Tensor, weight: Tensor) -> Tensor:
        return values.view(-1, *[1] * (weight.dim() - 1))


class DST(LearnedThresholds):
    """One threshold per neuron or filter, from 0 on; the loss has ``strength`` times the sum of exp(-t): in the paper's
    repository 5e-4 on MNIST and 5e-6 on CIFAR-10. Thresholds have the weights' rate and decay (there 0 and 1e-4).

    A layer's thresholds start from 0 again when it keeps a fraction of ``reset`` or less, in the paper 0.01. No density
    near it could be asked for then: under the controller it is at most a tenth of the density.
    """

    def __init__(self, model: nn.Module, *, density: float, reset: float = 0.01, **options: Any):
        super().__init__(model, density=density, **options)
        self.reset = reset if self.controller is None else min(reset, density / 10)

    def parametrization(self, weight: Tensor) -> Thresholded:
        return StepMask(weight.new_zeros(weight.shape[0]))

    def penalty(self) -> Tensor | float:
        if self.controller is not None:
            return 0.0
        return self.strength * sum(learned.push().sum() for learned in self.learned.values())

    def adjust(self) -> None:
        for name, learned in self.learned.items():
            over = learned.margin(self.dense[name]) > 0
            learned.threshold.mul_(over.sum() > self.reset * over.numel())
