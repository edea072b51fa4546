"""The gradient that the attentions follow."""

import warnings

import torch
from torch import Tensor

from aswl import attention as rules
from aswl.settings import Settings
from aswl.structure import PrunedWeight, Structure
from aswl_kernels import share_gradient_
from aswl_kernels.reference_sharing import density_slope, observe_

SMOOTHING = 0.99  # of the signal, from step to step
LEAST, MOST = 0.95, 1.05  # factors of a layer's density in a step
PATIENCE = 100  # steps in a row without a signal before a word is due


class Steering:
    """Turns the weights' gradients into the attentions'.

    ``signal``: what one more kept weight is worth, fp32 [L], smoothed over steps; ``observed``: how many it has seen,
    0-d. Both follow the model to its device.
    """

    def __init__(self, structure: Structure, settings: Settings):
        self.structure, self.settings = structure, settings
        self.signal = torch.zeros(len(structure.entries), dtype=torch.float32)
        self.observed = torch.zeros((), dtype=torch.float32)
        self._range = torch.tensor([[LEAST], [MOST]])
        self._missed = 0  # steps in a row in which a layer took no part
        self._before: Tensor | None = None  # the attentions that the optimizer is about to move under a budget

    def apply(self, scale: Tensor | float, sums: Tensor | None = None) -> None:
        """Replace the attentions' gradients; all gradients come multiplied by ``scale``, and stay so.

        ``sums``: those of a fused optimizer pass over all weights, not multiplied by ``scale``; without them, the
        weights and their gradients are read here. A layer that took no part in this step leaves everything as it is:
        the shares would compare unlike things. Warns once where that goes on.
        """
        entries, options = self.structure.entries, self.settings
        paper, self._before = options.target is None, None
        if paper and options.attention_gradient == "scale":
            return
        attentions = [entry.attention for entry in entries]
        if any(_is_absent(entry, options.reads_attentions) for entry in entries):
            self._missed += 1
            if self._missed == PATIENCE:
                self._warn()
            return
        self._missed = 0
        attention, sizes = self.structure.attentions(), self.structure.sizes
        counts = None
        if options.attention_gradient == "scale":
            worth = 0
        elif sums is None or options.reads_attentions:
            worth = self._band(scale, sums)
        else:  # their quotient is taken where they are averaged
            worth, counts = sums[:, 1], sums[:, 2]
        if options.reads_attentions:
            own, slope = torch.cat([each.grad for each in attentions]), density_slope(attention, options.alpha)
            worth = worth if paper else worth - own / (sizes * slope) / scale
        self.signal, self.observed = self.signal.to(worth.device), self.observed.to(worth.device)
        if paper:
            observe_(self.signal, self.observed, worth, SMOOTHING)
            steered = own - scale * sizes * self.signal * slope
        else:
            seen = self.signal, self.observed, worth
            steered = share_gradient_(*seen, attention, sizes, options.alpha, SMOOTHING, counts)
            steered = scale * steered if isinstance(scale, Tensor) or scale != 1 else steered
            self._before, self._range = attention, self._range.to(attention.device)
        for each in attentions:
            if each.grad is None:
                each.grad = torch.empty_like(each)
        torch._foreach_copy_([each.grad for each in attentions], steered.split(1))

    def bounded(self, attention: Tensor) -> Tensor:
        """The attentions after an optimizer's step, [L], held between 0.95 and 1.05 times what they were.

        Their gradients make relative steps of 1% at most by default. An optimizer that divides by the size of past
        gradients, as Adam does, takes others, and a small layer would lose all its weights in a few of them.
        """
        before, self._before = self._before, None
        return attention if before is None else attention.clamp(*(self._range * before))

    def _warn(self) -> None:
        """Unless all attentions are frozen, which asks for shares that stay as they are."""
        absent = [entry.name for entry in self.structure.entries if _is_absent(entry, self.settings.reads_attentions)]
        if any(entry.attention.requires_grad for entry in self.structure.entries):
            warnings.warn(
                f"ASWL: no attention has moved for {PATIENCE} steps, since these layers had no gradient, or a frozen "
                f"attention: {', '.join(absent)}; leave out with exclude= what takes no part in training",
                stacklevel=6,
            )

    def _band(self, scale: Tensor | float, sums: Tensor | None) -> Tensor:
        """Loss that one more kept weight saves, by the weights near the threshold, [L]."""
        if sums is not None:
            return -sums[:, 1] / sums[:, 2].clamp(min=1)
        band, entries = self.settings.band, self.structure.entries
        values = [rules.marginal_value(e.weight, e.weight.grad, e.threshold, band) for e in entries]
        return torch.stack(values) / scale


def _is_absent(entry: PrunedWeight, reads_attentions: bool) -> bool:
    """Whether a gradient that the attentions follow is missing."""
    learns = entry.attention.requires_grad and not (reads_attentions and entry.attention.grad is None)
    return entry.weight.grad is None or not learns
