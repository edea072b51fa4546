"""The methods that a user would take instead of ASWL, each written from its paper, on ASWL's own interface."""

from collections.abc import Callable
from functools import partial
from typing import Any

from aswl import ASWL
from bench.baselines.ac_dc import ACDC
from bench.baselines.asl import ASL
from bench.baselines.dst import DST
from bench.baselines.gradual import GradualPruning
from bench.baselines.method import Method
from bench.baselines.rigl import RigL
from bench.baselines.soft_threshold import STR
from bench.baselines.sparse_evolution import SET
from bench.baselines.sparse_momentum import SparseMomentum
from bench.baselines.static import Static
from bench.baselines.top_kast import TopKAST

METHODS: dict[str, Callable[..., Any]] = {
    "dense": Method,
    "aswl": ASWL,
    **{f"gmp-{shares}": partial(GradualPruning, shares=shares) for shares in ("uniform", "erk", "global")},
    "static-erk": Static,
    "set": SET,
    "sparse-momentum": SparseMomentum,
    "rigl": RigL,
    "top-kast": TopKAST,
    "ac-dc": ACDC,
    "str": STR,
    "dst": DST,
    "asl": ASL,
}
