"""The gradient that the attentions follow."""

import torch
from torch import Tensor

from aswl import attention as rules
from aswl.settings import Settings
from aswl.structure import Structure

SMOOTHING = 0.99  # of the signal, from step to step


class Steering:
    """Turns the weights' gradients into the attentions'.

    ``signal``: what one more kept weight is worth, fp32 [L], smoothed over steps; ``observed``: how many it has seen,
    0-d. Both follow the model to its device.
    """

    def __init__(self, structure: Structure, settings: Settings):
        self.structure, self.settings = structure, settings
        self.signal = torch.zeros(len(structure.entries))
        self.observed = torch.zeros(())

    def apply(self, scale: Tensor | float, sums: Tensor | None = None) -> None:
        """Replace the attentions' gradients; all gradients come multiplied by ``scale``, and stay so.

        ``sums``: those of a fused optimizer pass over all weights, not multiplied by ``scale``; without them, the weights
        and their gradients are read here. A layer that took no part in this step leaves everything as it is: the shares would compare unlike things.
        """
        entries, options = self.structure.entries, self.settings
        paper = options.target is None
        if paper and options.attention_gradient == "scale":
            return
        attentions = [entry.attention for entry in entries]
        absent = any(entry.weight.grad is None or not entry.attention.requires_grad for entry in entries)
        if absent or (options.reads_attentions and any(attention.grad is None for attention in attentions)):
            return
        attention, sizes = self.structure.attentions(), self.structure.sizes
        slope = rules.density_slope(attention, options.alpha)
        worth = 0 if options.attention_gradient == "scale" else self._band(scale, sums)
        if options.reads_attentions:
            own = torch.cat([attention.grad for attention in attentions])
        if not paper and options.reads_attentions:
            worth = worth - own / (sizes * slope) / scale
        self._observe(worth)
        if paper:
            steered = own - scale * sizes * self.signal * slope
        else:
            steered = scale * rules.share_gradient(attention, self.signal, sizes, options.alpha)
        for attention in attentions:
            if attention.grad is None:
                attention.grad = torch.empty_like(attention)
        torch._foreach_copy_([attention.grad for attention in attentions], steered.split(1))

    def _band(self, scale: Tensor | float, sums: Tensor | None) -> Tensor:
        """Loss that one more kept weight saves, by the weights near the threshold, [L]."""
        if sums is not None:
            return -sums[:, 1] / sums[:, 2].clamp(min=1)
        band, entries = self.settings.band, self.structure.entries
        values = [rules.marginal_value(e.weight, e.weight.grad, e.threshold, band) for e in entries]
        return torch.stack(values) / scale

    def _observe(self, worth: Tensor) -> None:
        self.signal, self.observed = self.signal.to(worth.device), self.observed.to(worth.device)
        self.observed += 1
        self.signal.lerp_(worth.to(self.signal.dtype), self.observed.reciprocal().clamp(min=1 - SMOOTHING))
