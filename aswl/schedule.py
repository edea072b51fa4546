"""Numbers that follow the training step: the density asked for, and the share of the pruned weights' gradient."""

from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]  # optimizer updates done -> value


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
        progress = max(step - self.begin, 0) / (self.finish - self.begin)
        return self.end + (self.start - self.end) * (1 - progress) ** self.power


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Root:
    """The square root of another schedule."""

    of: Schedule

    def __call__(self, step: int) -> float:
        return self.of(step) ** 0.5


def density_schedule(kind: str | Schedule, density: float, steps: int | None) -> Schedule:
    """The schedule of that name from density 1 to ``density``: "cubic" or "linear", over the first 70% of ``steps``,
    or "constant"; a callable is returned as it is. Raises ``ValueError`` for another name or missing steps.
    """
    if callable(kind):
        return kind
    if kind == "constant":
        return Constant(density)
    powers = {"cubic": 3.0, "linear": 1.0}
    if kind not in powers:
        raise ValueError(f"ASWL: want schedule 'cubic', 'linear', 'constant' or a callable; got {kind!r}")
    if steps is None:
        raise ValueError(f"ASWL: schedule {kind!r} wants steps=, the number of optimizer updates; got None")
    return Polynomial(1.0, density, 0, 0.7 * steps, powers[kind])


def gradient_schedule(dense_gradient: float | Schedule | None, target: Schedule | None) -> Schedule:
    """The factor of the pruned weights' gradient: a number, a callable, or None for the square root of the density that
    ``target`` asks for (1 where that is None, too). Raises ``ValueError`` for a number outside [0, 1].

    With d of the weights kept and gradients alike, the squared steps of all pruned weights, (1 - d) d, are then at most
    those of all kept ones, d.
    """
    if callable(dense_gradient):
        return dense_gradient
    if dense_gradient is None and isinstance(target, Constant):
        return Constant(target.value**0.5)
    if dense_gradient is None:
        return Constant(1.0) if target is None else Root(target)
    if not 0 <= dense_gradient <= 1:
        raise ValueError(f"ASWL: want dense_gradient in [0, 1], a callable or None; got {dense_gradient}")
    return Constant(float(dense_gradient))
