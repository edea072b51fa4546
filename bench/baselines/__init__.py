"""The methods that a user would take instead of ASWL, each written from its paper, on ASWL's own interface."""

from collections.abc import Callable
from functools import partial
from typing import Any

from aswl import ASWL
from bench.baselines.gradual import GradualPruning
from bench.baselines.method import Method

METHODS: dict[str, Callable[..., Any]] = {
    "dense": Method,
    "aswl": ASWL,
    **{f"gmp-{shares}": partial(GradualPruning, shares=shares) for shares in ("uniform", "erk", "global")},
}
