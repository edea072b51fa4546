"""What a user may ask of :class:`aswl.ASWL`, checked before anything is touched."""

import warnings
from dataclasses import dataclass, field
from numbers import Integral

from aswl.schedule import Constant, Schedule, density_schedule, gradient_schedule

PRODUCTS = ("auto", "dense", "fused", "sparse")
THRESHOLDINGS = ("firm", "hard")


@dataclass(frozen=True)
class Settings:
    """The options of :class:`aswl.ASWL` (documented there) with the defaults of the mode filled in.

    Raises ``ValueError`` for a value outside its range, naming what was wanted and what came.
    """

    density: float | None
    gamma: float | None
    alpha: float
    steps: int | None
    schedule: str | Schedule
    begin: float
    end: float
    min_keep: int
    attention_scale: str | None
    attention_gradient: str | None
    dense_gradient: float | Schedule | None
    pruned_decay: float
    band: float
    refresh_every: int
    initial_attention: float | None
    penalty_target: float
    weight_penalty: float
    products: str
    backward_density: float | None
    capturable: bool
    thresholding: str | None
    target: Schedule | None = field(init=False, default=None)  # density by step; None in the paper's mode
    pruned_gradient: Schedule | None = field(init=False, default=None)  # factor of the pruned weights' gradient by step

    def __post_init__(self):
        if (self.density is None) == (self.gamma is None):
            _refuse("exactly one of density and gamma", f"density={self.density}, gamma={self.gamma}")
        paper = self.density is None
        _check(paper or 0 < self.density <= 1, "density in (0, 1]", self.density)
        _check(not paper or 0 <= self.gamma < float("inf"), "gamma >= 0", self.gamma)
        _check(self.alpha > 0, "alpha > 0", self.alpha)
        for name in ("steps", "min_keep", "refresh_every"):
            number = getattr(self, name)
            whole = isinstance(number, Integral) and number >= 1
            _check(whole or (number is None and name == "steps"), f"{name} a whole number >= 1", number)
        wanted = "refresh_every=1 with capturable=True, since a graph does the same work at every step"
        _check(self.refresh_every == 1 or not self.capturable, wanted, self.refresh_every)
        _check(0 < self.band < 1, "band in (0, 1)", self.band)
        _check(0 <= self.penalty_target <= 1, "penalty_target in [0, 1]", self.penalty_target)
        _check(self.weight_penalty >= 0, "weight_penalty >= 0", self.weight_penalty)
        if self.backward_density is not None:
            least = 1.0 if paper else self.density
            wanted = "backward_density with density= only, from that to 1"
            _check(not paper and least <= self.backward_density <= 1, wanted, self.backward_density)
        _check(self.products in PRODUCTS, f"products one of {PRODUCTS}", self.products)
        self._default("thresholding", "hard" if paper else "firm")
        _check(self.thresholding in THRESHOLDINGS, f"thresholding one of {THRESHOLDINGS}", self.thresholding)
        wanted = "thresholding='hard' with products='fused', whose kernels have no other"
        _check(self.products != "fused" or not self.firm, wanted, self.thresholding)
        _check(0 <= self.pruned_decay < float("inf"), "pruned_decay >= 0", self.pruned_decay)
        self._default("attention_scale", "paper" if paper else "detached")
        self._default("attention_gradient", "scale" if paper else "band")
        # at a = 1 the slope of (1 - a)^alpha is 0 or infinite unless alpha is 1
        self._default("initial_attention", 1.0 if self.alpha == 1 or not paper else 0.99)
        _check(
            self.attention_scale in ("paper", "detached"), "attention_scale 'paper' or 'detached'", self.attention_scale
        )
        known = ("scale", "both") if paper else ("band", "scale", "both")
        _check(self.attention_gradient in known, f"attention_gradient one of {known}", self.attention_gradient)
        _check(0 < self.initial_attention <= 1, "initial_attention in (0, 1]", self.initial_attention)
        if not paper:
            self._default("target", density_schedule(self.schedule, self.density, self.steps, self.begin, self.end))
        self._default("pruned_gradient", gradient_schedule(self.dense_gradient, self.target, self.firm))
        if self.target is not None:
            for step in range(self.steps + 1 if self.capturable and self.steps else 1):
                check_density(self.target(step), step)
        schedules = [schedule for schedule in (self.target, self.pruned_gradient) if schedule]
        tables = self.capturable and not all(isinstance(schedule, Constant) for schedule in schedules)
        wanted = "steps= with capturable=True, which makes tables of the schedules"
        _check(self.steps is not None or not tables, wanted, self.steps)
        if self.density == 1 or self.gamma == 0:
            warnings.warn(f"ASWL: density={self.density}, gamma={self.gamma} prunes nothing", stacklevel=4)

    @property
    def firm(self) -> bool:
        """Whether kept weights near the threshold are shrunk."""
        return self.thresholding == "firm"

    @property
    def reads_attentions(self) -> bool:
        """Whether the attentions' own gradients, sums over weights, have a part in moving them."""
        return self.target is None or self.attention_gradient != "band"

    def _default(self, name: str, value: object) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)


def check_density(density: float, step: int) -> None:
    """Raises ``ValueError`` for a density outside (0, 1], which a schedule gave for that step."""
    _check(0 < density <= 1, f"a density in (0, 1] from the schedule, at step {step}", density)


def _check(condition: bool, wanted: str, got: object) -> None:
    if not condition:
        _refuse(wanted, repr(got))


def _refuse(wanted: str, got: str) -> None:
    raise ValueError(f"ASWL: want {wanted}; got {got}")
