"""The method's part in an optimizer's step."""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
    def prepare(self, scale: Tensor | float) -> None:
        """Take the attention's signal from the dense gradients; then scale those of the pruned weights."""
        own = self.sparsifier
        own._steering.apply(scale)
        factor = own._clock.pruned_gradient
        if isinstance(factor, Tensor) or factor != 1:
            for entry in own._structure.entries:
                if entry.weight.grad is not None:
                    pruned = entry.weight.abs().float() < entry.threshold
                    entry.weight.grad.mul_(torch.where(pruned, factor, 1.0))

    @torch.no_grad()
    def update(self, optimizer: FusedStep, scale: Tensor | float) -> list[Tensor]:
        """Step the pruned weights and take the attention's signal in one pass, or prepare for torch's step."""
        own = self.sparsifier
        entries = [entry for entry in own._structure.entries if entry.weight.grad is not None]
        weights = [entry.weight for entry in entries]
        options = {"pruned_gradient": own._clock.pruned_gradient, "band": own.settings.band}
        grad_scale = scale if isinstance(scale, Tensor) else None
        thresholds = [entry.threshold for entry in entries]
        sums = optimizer.update_pruned(weights, thresholds, grad_scale, **options) if entries else None
        if sums is None:
            self.prepare(scale)
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
