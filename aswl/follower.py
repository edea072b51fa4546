"""The method's part in an optimizer's step."""

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aswl.optim import FusedStep

if TYPE_CHECKING:
    from aswl.sparsifier import ASWL


class StepFollower:
    """The sparsifier's part in an optimizer's step, see :class:`aswl.attachment.Follower`."""

    def __init__(self, sparsifier: "ASWL"):
        self.sparsifier = sparsifier

    def check(self) -> None:
        """The guard; and a word where the paper's mode lacks its penalty."""
        own = self.sparsifier
        if own._guard:
            own._guard.check(own.model, own.step)
        if own.settings.gamma and not own._penalized:
            own._penalized = True
            warnings.warn("ASWL: gamma= prunes through sparsifier.penalty(), which is not in the loss", stacklevel=5)

    @torch.no_grad()
    def prepare(self, optimizer: Optimizer, scale: Tensor | float) -> None:
        """Take the attention's signal from the dense gradients; then scale those of the pruned weights, and decay these."""
        own = self.sparsifier
        own._steering.apply(scale)
        factor, more = own._clock.pruned_gradient, own.settings.pruned_decay - 1
        scaled = isinstance(factor, Tensor) or factor != 1
        decaying = [group for group in optimizer.param_groups if more and _decays(group)]
        group_of = {id(p): group for group in decaying for p in group["params"]}
        for entry in own._structure.entries if scaled or decaying else ():
            if entry.weight.grad is None:
                continue
            pruned = entry.weight.abs().float() < entry.threshold
            if scaled:
                entry.weight.grad.mul_(torch.where(pruned, factor, 1.0))
            if id(entry.weight) in group_of:
                _decay_(entry.weight, pruned, group_of[id(entry.weight)], more, scale)

    @torch.no_grad()
    def update(self, optimizer: FusedStep, scale: Tensor | float) -> list[Tensor]:
        """Step the pruned weights and take the attention's signal in one pass, or prepare for torch's step."""
        own = self.sparsifier
        entries = [entry for entry in own._structure.entries if entry.weight.grad is not None]
        weights = [entry.weight for entry in entries]
        options = {"pruned_gradient": own._clock.pruned_gradient}
        options |= {"pruned_decay": own.settings.pruned_decay, "band": own.settings.band}
        grad_scale = scale if isinstance(scale, Tensor) else None
        thresholds = [entry.threshold for entry in entries]
        sums = optimizer.update_pruned(weights, thresholds, grad_scale, **options) if entries else None
        if sums is None:
            self.prepare(optimizer, scale)
            return []
        own._steering.apply(scale, sums)
        return weights

    @torch.no_grad()
    def finish(self) -> None:
        own = self.sparsifier
        own._clock.advance()
        every = own.settings.refresh_every
        if every == 1 or own.step % every == 0:
            own._follow(own._steering.bounded(own._structure.attentions()))


def _decay_(weight: Tensor, pruned: Tensor, group: dict[str, Any], more: float, scale: Tensor | float) -> None:
    """Decay pruned weights by ``more`` times the weight decay that the optimizer's step will add: through the gradient,
    which comes multiplied by ``scale``, or, where the optimizer's own is decoupled from it, themselves.
    """
    decay, shrinking = group["weight_decay"], weight.masked_fill(~pruned, 0)
    if group.get("decoupled_weight_decay"):  # which leaves 1 - lr decay
        rate = group["lr"] * decay
        weight.sub_(shrinking * (more * rate / (1 - rate)))
    else:
        weight.grad.add_(shrinking * ((-more if group.get("maximize") else more) * decay * scale))


def _decays(group: dict[str, Any]) -> bool:
    decay = group.get("weight_decay", 0)
    return isinstance(decay, Tensor) or decay != 0  # a tensor is not read
