"""The pruned weights of a model, as a list and as vectors with one entry per weight."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aswl.nn import SparseLayer


@dataclass
class PrunedWeight:
    """One pruned weight and the layers that use it (more than one where it is tied)."""

    name: str
    layers: list[SparseLayer]

    @property
    def weight(self) -> nn.Parameter:
        return self.layers[0].weight

    @property
    def attention(self) -> nn.Parameter:
        return self.layers[0].attention

    @property
    def threshold(self) -> Tensor:
        return self.layers[0].threshold


class Structure:
    """All pruned weights; the vectors are [L] and follow the model to its device."""

    def __init__(self, entries: list[PrunedWeight]):
        self.entries = entries
        self.counts = {entry.name: entry.weight.numel() for entry in entries}
        self.total = sum(self.counts.values())
        self._sizes = torch.tensor(list(self.counts.values()))

    @property
    def device(self) -> torch.device:
        return self.entries[0].weight.device

    @property
    def sizes(self) -> Tensor:
        """Weights per entry, int64."""
        self._sizes = self._sizes.to(self.device)
        return self._sizes

    def attentions(self) -> Tensor:
        """The attentions, differentiable."""
        return torch.cat([entry.attention for entry in self.entries])

    def kept(self) -> int:
        """How many weights are kept, counted."""
        return sum(entry.layers[0].kept for entry in self.entries)

    def stored(self) -> tuple[Tensor, Tensor]:
        """The layers' attentions and thresholds, copied."""
        return self.attentions().detach(), torch.stack([entry.threshold for entry in self.entries])

    @torch.no_grad()
    def store(self, attention: Tensor, threshold: Tensor) -> None:
        """Write attentions and thresholds into the layers."""
        values = [t for entry, t in zip(self.entries, threshold.to(attention.dtype).unbind()) for _ in entry.layers]
        places = [layer.threshold for entry in self.entries for layer in entry.layers]
        attentions = [entry.attention for entry in self.entries]
        torch._foreach_copy_(attentions + places, [*attention.split(1), *values])  # at once

    def note(self, keep: Tensor) -> None:
        """Tell the layers how many weights they keep, [L] on a CPU, so that they need not count."""
        for entry, kept in zip(self.entries, keep.tolist()):
            for layer in entry.layers:
                layer.note_density(kept / self.counts[entry.name])

    def restrict(self, limits: Tensor) -> None:
        """Let only weights of these magnitudes, [L], and above have a gradient."""
        for entry, limit in zip(self.entries, limits.unbind()):
            for layer in entry.layers:
                if layer.learnable is None:
                    layer.learnable = torch.empty_like(layer.threshold)
                layer.learnable.copy_(limit)

    def learnable(self) -> Tensor | None:
        """The magnitudes below which weights have no gradient, [L]; None where all have one."""
        limits = [entry.layers[0].learnable for entry in self.entries]
        return None if any(limit is None for limit in limits) else torch.stack(limits)
