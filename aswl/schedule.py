"""Numbers that follow the training step: the density asked for, and the share of the pruned weights' gradient."""

from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]  # optimizer updates done -> value
FULL = 0.02  # the density from which on pruned weights under a firm threshold keep their whole gradient


@dataclass(frozen=True)
class Polynomial:
    """``start`` until ``begin`` steps, then end + (start - end) (1 - progress)^power, then ``end`` from ``finish`` on.

    Power 3 is gradual magnitude pruning's cubic schedule (Zhu and Gupta, arXiv 1710.01878, equation 1), 1 is linear.
    """

    start: float
    end: float
    begin: float
    finish: float
    power: float = 1.0

    def __call__(self, step: int) -> float:
        if step >= self.finish:
            return self.end
        if step <= self.begin:
            return self.start
        progress = (step - self.begin) / (self.finish - self.begin)
        return self.end + (self.start - self.end) * (1 - progress) ** self.power


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Following:
    """A function of what another schedule says."""

    of: Schedule
    function: Callable[[float], float]

    def __call__(self, step: int) -> float:
        return self.function(self.of(step))


def density_schedule(kind: str | Schedule, density: float, steps: int | None, begin: float, end: float) -> Schedule:
    """The schedule of that name from density 1 to ``density``: "cubic" or "linear", between the fractions ``begin`` and
    ``end`` of ``steps``, or "constant"; a callable is returned as it is. Raises ``ValueError`` for another name, missing
    steps, and fractions that are none.
    """
    if not 0 <= begin <= end <= 1:
        raise ValueError(f"ASWL: want 0 <= begin <= end <= 1, fractions of steps; got begin={begin}, end={end}")
    if callable(kind):
        return kind
    if kind == "constant":
        return Constant(density)
    powers = {"cubic": 3.0, "linear": 1.0}
    if kind not in powers:
        raise ValueError(f"ASWL: want schedule 'cubic', 'linear', 'constant' or a callable; got {kind!r}")
    if steps is None:
        raise ValueError(f"ASWL: schedule {kind!r} wants steps=, the number of optimizer updates; got None")
    return Polynomial(1.0, density, begin * steps, end * steps, powers[kind])


def hard_factor(density: float) -> float:
    """The square root: with gradients alike in size, the squared steps of all pruned weights, (1 - density) density, are
    then at most those of all kept ones, density.
    """
    return density**0.5


def firm_factor(density: float) -> float:
    """1 where 2% of the weights or more are kept, (density / 2%)^2 below; chosen by experiment (docs/LOG.md)."""
    return min(1.0, density / FULL) ** 2


def gradient_schedule(dense_gradient: float | Schedule | None, target: Schedule | None, firm: bool) -> Schedule:
    """The factor of the pruned weights' gradient: a number, a callable, or None for what suits the threshold, firm or
    not, at the density that ``target`` asks for (1 where that is None). Raises ``ValueError`` for a number outside [0, 1].
    """
    if callable(dense_gradient):
        return dense_gradient
    if dense_gradient is None:
        factor = firm_factor if firm else hard_factor
        if target is None:
            return Constant(1.0)
        return Constant(factor(target.value)) if isinstance(target, Constant) else Following(target, factor)
    if not 0 <= dense_gradient <= 1:
        raise ValueError(f"ASWL: want dense_gradient in [0, 1], a callable or None; got {dense_gradient}")
    return Constant(float(dense_gradient))
