"""RigL, the rigged lottery (Evci et al., arXiv 1911.11134, algorithm 1)."""

from typing import Any

from torch import Tensor, nn

from bench.baselines.drop_and_grow import DropAndGrow


class RigL(DropAndGrow):
    """Drops the smallest weights and grows where the gradient is largest, ``every`` 100 updates (the paper's Delta T)
    until ``end``; ``fraction``: the paper's alpha. Where the paper skips the update, one with the new mask is done.
    """

    def __init__(self, model: nn.Module, *, every: int | None = 100, end: float = 0.75, **options: Any):
        super().__init__(model, every=every, end=end, **options)

    def growth(self, name: str) -> Tensor:
        return self.layers[name].weight.grad.abs()
