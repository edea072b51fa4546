"""Top-KAST, top-K always sparse training (Jayakumar et al., arXiv 2106.03517)."""

from typing import Any

import torch
from torch import nn

from bench.baselines.method import Method
from bench.baselines.shares import SHARES, Shares, mask_at


class TopKAST(Method):
    """Uses the largest weights of each layer only, and lets the next largest learn, too, so that masks can change.

    The optimizer's parameters are dense weights of its own, ``dense``; the model's weights hold those that are used
    (the paper's A), and their gradient goes straight through to those that learn (B, which has A; section 2.2).
    ``backward``: how many times as many weights learn as are used. ``every``: updates between two choices of masks.
    ``shares``: "erk", as first and last layers are not left dense here, or the paper's "uniform". The weight decay
    given to :meth:`param_groups` is that of used weights; the others that learn decay by it over the layer's density,
    the rest does not (section 2.3, exploration).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        density: float,
        steps: int,
        shares: Shares = "erk",
        backward: float = 2.0,
        every: int = 1,
    ):
        super().__init__(model, density=density, steps=steps)
        if backward < 1:
            raise ValueError(f"top-kast: want backward >= 1, as what is used learns; got {backward}")
        self.every, self.decay = every, 0.0
        self.used = SHARES[shares](self.layers, density)
        self.learning = {name: min(round(backward * used), self.sizes[name]) for name, used in self.used.items()}
        self.dense = {name: nn.Parameter(layer.weight.detach().clone()) for name, layer in self.layers.items()}
        self.choose()
        self.apply()

    def param_groups(self, **options: Any) -> list[dict[str, Any]]:
        self.decay = options.get("weight_decay", 0.0)
        ours = {layer.weight for layer in self.layers.values()}
        rest = [parameter for parameter in self.model.parameters() if parameter not in ours]
        return [{"params": rest, **options}, {"params": list(self.dense.values()), **options, "weight_decay": 0.0}]

    def before_step(self) -> None:
        for name, layer in self.layers.items():
            dense, more = self.dense[name], self.decay * self.sizes[name] / self.used[name]
            dense.grad = layer.weight.grad * self.b[name]
            dense.grad.addcmul_(dense, torch.where(self.a[name], self.decay, more * self.b[name]))
            layer.weight.grad = None  # no optimizer clears it

    def after_step(self) -> None:
        if self.step % self.every == 0:
            self.choose()
        self.apply()

    def choose(self) -> None:
        """Choose A and B, the largest weights."""
        self.a, self.b = {}, {}
        for name, dense in self.dense.items():
            order = dense.detach().abs().flatten().topk(self.learning[name]).indices
            self.a[name], self.b[name] = mask_at(order[: self.used[name]], dense), mask_at(order, dense)

    def apply(self) -> None:
        """Give the model the weights of A, and zeros."""
        for name, layer in self.layers.items():
            layer.weight.data.copy_(self.dense[name].detach() * self.a[name])
