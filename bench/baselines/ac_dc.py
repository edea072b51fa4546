"""AC/DC, alternating compressed and decompressed training (Peste et al., arXiv 2106.12379, algorithm 1)."""

from collections.abc import Sequence

from torch import nn

from bench.baselines.method import Masked
from bench.baselines.shares import SHARES, Shares, largest

CIFAR = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85)  # of 200 epochs: 10, 30, ..., 150, 170
IMAGENET = (*(0.1 + 0.05 * i for i in range(14)), 0.85)  # of 100 epochs: 10, 15, ..., 75, 85


class ACDC(Masked):
    """Trains the dense network and one of its sparse ones in turn, the last part of training sparse.

    ``switches``: fractions of training at which it turns sparse, then dense, and so on, sparse last; the paper's for
    CIFAR, or :data:`IMAGENET`. When it turns sparse, the largest weights stay (``shares``: of all layers together);
    when it turns dense, the others start from zero, and the momentum of all weights is forgotten.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        density: float,
        steps: int,
        shares: Shares = "global",
        switches: Sequence[float] = CIFAR,
    ):
        super().__init__(model, density=density, steps=steps)
        if len(switches) % 2 == 0:
            raise ValueError(f"ac-dc: want switches that end sparse, an odd number; got {len(switches)}")
        self.shares, self.switches, self.sparse = shares, switches, False

    def update(self) -> None:
        sparse = sum(self.step >= switch * self.steps for switch in self.switches) % 2 == 1
        if sparse == self.sparse:
            return
        self.sparse = sparse
        counts = SHARES[self.shares](self.layers, self.target) if sparse else self.sizes
        for name, layer in self.layers.items():
            self.set_mask(name, largest(layer.weight.abs(), counts[name]))
        if not sparse:
            for state in self.optimizer.state.values():
                if state.get("momentum_buffer") is not None:
                    state["momentum_buffer"].zero_()
