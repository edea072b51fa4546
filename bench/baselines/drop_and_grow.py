"""What methods share that drop the smallest weights now and then and grow as many elsewhere."""

import math

from torch import Tensor, nn

from bench.baselines.shares import Shares, largest
from bench.baselines.static import Static


class DropAndGrow(Static):
    """Starts from a random mask; ``every`` so many updates, a part of the weights makes room for others.

    A subclass says where weights grow, :meth:`growth`, and may say how many go, :meth:`rate`, which stay,
    :meth:`survivors`, what each layer then has, :meth:`counts`, and with what new weights start, :meth:`start`: from zero
    and without momentum. They count as kept even if no gradient ever moves them; one that is dropped and grown at once
    stays as it was.
    ``fraction`` of a layer's weights that goes, at first; ``end``: the fraction of training after which masks stay;
    ``every=None``: a hundredth of training, which is once per epoch of a training of 100, but 100 updates at least,
    RigL's interval: new weights need some to become large enough to stay.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        density: float,
        steps: int,
        shares: Shares = "erk",
        fraction: float = 0.3,
        every: int | None = None,
        end: float = 1.0,
    ):
        super().__init__(model, density=density, steps=steps, shares=shares)
        self.fraction, self.end = fraction, end * steps
        self.every = max(round(steps / 100), 100) if every is None else every

    def growth(self, name: str) -> Tensor:
        """A score, not negative, of each weight of a layer; the largest ones grow."""
        raise NotImplementedError

    def start(self, name: str, new: Tensor) -> None:
        """Change what the ``new`` weights of a layer, a mask, start with, after all layers have their masks."""

    def rate(self) -> float:
        """The fraction of a layer's weights that goes now: along a cosine from ``fraction`` to 0."""
        return self.fraction / 2 * (1 + math.cos(math.pi * self.step / self.end))

    def survivors(self, name: str) -> Tensor:
        """Which weights of a layer stay, a mask: the largest ones."""
        return self.largest_of(name, self.masks[name])

    def largest_of(self, name: str, mask: Tensor) -> Tensor:
        """The weights of ``mask`` without the smallest of them, of which :meth:`rate` goes, rounded down."""
        count = int(mask.sum())
        return largest(self.layers[name].weight.abs().masked_fill(~mask, -1), count - int(self.rate() * count))

    def counts(self, stay: dict[str, int]) -> dict[str, int]:
        """How many weights each layer has in the end, given how many stay: as many as before."""
        return self.kept()

    def before_step(self) -> None:
        if 0 < self.step < self.end and self.step % self.every == 0:
            self.rewire()
        self.mask_gradients()

    def rewire(self) -> None:
        """Drop and grow."""
        before = dict(self.masks)
        stay = {name: self.survivors(name) for name in self.layers}
        staying = {name: int(mask.sum()) for name, mask in stay.items()}
        counts = self.counts(staying)
        for name, mask in stay.items():
            score = self.growth(name).masked_fill(mask, -1)
            self.set_mask(name, mask | largest(score, counts[name] - staying[name]))
        for name, mask in self.masks.items():
            self.start(name, mask & ~before[name])
