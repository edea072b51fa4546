"""The paper's method as one writes it in plain PyTorch: a mask per forward, a selection per layer and step, all eager."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

GAMMA = 1.0


class Masked(nn.Module):
    """attention * weight where abs(weight) >= threshold, else 0; straight-through."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.attention = nn.Parameter(torch.ones(1, device=weight.device))
        self.register_buffer("threshold", torch.zeros((), device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        masked = weight * (weight.abs() >= self.threshold)
        return self.attention * (weight + (masked - weight).detach())

    @torch.no_grad()
    def prune(self, weight: Tensor) -> None:
        """The share 1 - attention of the weights, the smallest ones."""
        self.attention.clamp_(0.01, 1)
        pruned = int((1 - self.attention.item()) * weight.numel())
        if pruned:
            self.threshold.copy_(weight.abs().flatten().kthvalue(pruned + 1).values)


def masked(network: nn.Module, density: float) -> list[Masked]:
    """Put a mask on every linear and convolutional weight; the masks, all at that density."""
    masks = []
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            masks.append(Masked(layer.weight))
            masks[-1].attention.data.fill_(density)
            parametrize.register_parametrization(layer, "weight", masks[-1])
    return masks


def penalty(masks: list[Masked]) -> Tensor:
    """What pulls the attentions down."""
    return GAMMA * torch.cat([mask.attention for mask in masks]).mean() ** 2


def prune(network: nn.Module) -> None:
    """New thresholds, after the optimizer's step."""
    for layer in network.modules():
        if parametrize.is_parametrized(layer, "weight"):
            layer.parametrizations.weight[0].prune(layer.parametrizations.weight.original)
