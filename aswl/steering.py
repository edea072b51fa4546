"""The gradient that the attentions follow."""

import torch
from torch import Tensor

from aswl import attention as rules
from aswl.settings import Settings
from aswl.structure import Structure

SMOOTHING = 0.99  # of the signal, from step to step


class Steering:
    """Turns the weights' gradients into the attentions'.

    ``signal``: what one more kept weight is worth, fp32 [L], smoothed over steps; ``observed``: how many it has seen.
    """

    def __init__(self, structure: Structure, settings: Settings):
        self.structure, self.settings = structure, settings
        self.signal = torch.zeros(len(structure.entries))
        self.observed = 0

    def apply(self, scale: Tensor | float, sums: Tensor | None = None) -> None:
        """Replace the attentions' gradients; all gradients come multiplied by ``scale``, and stay so.

        ``sums``: those of a fused optimizer pass over all weights, not multiplied by ``scale``; without them, the weights
        and their gradients are read here. A layer that took no part in this step leaves everything as it is: the shares would compare unlike things.
        """
        entries, options = self.structure.entries, self.settings
        paper = options.target is None
        absent = any(entry.weight.grad is None or entry.attention.grad is None for entry in entries)
        if absent or (paper and options.attention_gradient == "scale"):
            return
        attention, sizes = self.structure.attentions(), self.structure.sizes
        own = torch.cat([entry.attention.grad for entry in entries])
        slope = rules.density_slope(attention, options.alpha)
        self._observe(self._worth(own / (sizes * slope) / scale, scale, sums, paper))
        if paper:
            steered = own - scale * sizes * self.signal * slope
        else:
            steered = scale * rules.share_gradient(attention, self.signal, sizes, options.alpha)
        torch._foreach_copy_([entry.attention.grad for entry in entries], steered.split(1))

    def _worth(self, own: Tensor, scale: Tensor | float, sums: Tensor | None, paper: bool) -> Tensor:
        """Loss that one more kept weight saves: by the band at the threshold, by the attention's ``own`` gradient (which
        in the paper's mode the caller adds itself), or both.
        """
        worth = torch.zeros_like(own)
        if self.settings.attention_gradient in ("band", "both"):
            if sums is not None:
                worth = (-sums[:, 1] / sums[:, 2].clamp(min=1)).to(own.dtype)
            else:
                band, entries = self.settings.band, self.structure.entries
                values = [rules.marginal_value(e.weight, e.weight.grad, e.threshold, band) for e in entries]
                worth = torch.stack(values) / scale
        if self.settings.attention_gradient in ("scale", "both") and not paper:
            worth = worth - own
        return worth

    def _observe(self, worth: Tensor) -> None:
        self.observed += 1
        self.signal = self.signal.to(worth.device)
        self.signal.lerp_(worth.to(self.signal.dtype), max(1 - SMOOTHING, 1 / self.observed))
