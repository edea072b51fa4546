"""The grids: which networks, methods, densities and seeds, by which recipe. docs/accuracy.md tells how options were chosen."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from bench.accuracy.train import Recipe, Run
from bench.baselines import METHODS


class Published(NamedTuple):
    """A number from elsewhere: test accuracy in % at a density."""

    method: str
    density: float
    accuracy: float
    source: str


@dataclass(frozen=True)
class Grid:
    """One network on one data set: every method at every density with every seed, and the dense twin with every seed.

    ``methods``: options by name of :data:`bench.baselines.METHODS`, the same for all densities.
    """

    model: str
    data: str
    recipe: Recipe
    densities: tuple[float, ...]
    methods: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...] = (0, 1, 2)
    published: tuple[Published, ...] = field(default=())

    def runs(self, split: str = "test") -> Iterator[Run]:
        """All cells; seeds vary slowest, so that a grid that was stopped has whole rows to compare."""
        for seed in self.seeds:
            shared = {"model": self.model, "data": self.data, "seed": seed, "recipe": self.recipe, "split": split}
            yield Run(method="dense", density=1.0, **shared)
            for density in self.densities:
                for method, options in self.methods.items():
                    yield Run(method=method, density=density, options=options, **shared)


PEERS: dict[str, dict[str, Any]] = {name: {} for name in METHODS if name not in ("dense", "aswl")}
ALL = {"aswl": {}} | PEERS

SPARSE_MOMENTUM = "TimDettmers/sparse_learning, results/MNIST_compression_comparison_*.csv (100 epochs)"
DST, SNIP = "arXiv 2005.06870, table 1 and 2", "arXiv 1810.02340, table 1"
SPARSE_VD = "ars-ashuha/variational-dropout-sparsifies-dnn, README"
LENET300 = (
    Published("Sparse Momentum", 0.05, 98.47, SPARSE_MOMENTUM),
    Published("Sparse Momentum", 0.02, 98.01, SPARSE_MOMENTUM),
    Published("Sparse Momentum", 0.01, 97.64, SPARSE_MOMENTUM),
    Published("DST", 0.0248, 97.69, DST),
    Published("SNIP", 0.05, 98.4, SNIP),
    Published("SNIP", 0.02, 97.6, SNIP),
    Published("DNS", 0.018, 98.0, SNIP),
    Published("LC", 0.01, 96.8, SNIP),
    Published("Sparse VD", 0.015, 98.08, SPARSE_VD),
)
LENET5 = (
    Published("Sparse Momentum", 0.05, 99.31, SPARSE_MOMENTUM),
    Published("Sparse Momentum", 0.02, 99.24, SPARSE_MOMENTUM),
    Published("Sparse Momentum", 0.01, 99.17, SPARSE_MOMENTUM),
    Published("DST", 0.0164, 99.11, DST),
    Published("SNIP", 0.02, 99.2, SNIP),
    Published("SNIP", 0.01, 98.9, SNIP),
    Published("DNS", 0.009, 99.1, SNIP),
    Published("LC", 0.01, 98.9, SNIP),
    Published("Sparse VD", 0.0036, 99.25, SPARSE_VD),
)
RIGL = "google-research/rigl issue 8 (original CIFAR-10, 250 epochs)"
WRN = (
    Published("GMP ERK", 0.1, 93.3, RIGL),
    Published("GMP ERK", 0.05, 92.3, RIGL),
    Published("RigL ERK", 0.1, 92.9, RIGL),
    Published("RigL ERK", 0.05, 91.8, RIGL),
    Published("static ERK", 0.1, 91.5, RIGL),
    Published("static ERK", 0.05, 89.0, RIGL),
)
VGG = (
    Published("DST", 0.088, 93.93, f"{DST} (original CIFAR-10)"),
    Published("DST", 0.038, 93.02, f"{DST} (original CIFAR-10)"),
    Published("Sparse Momentum", 0.1, 93.36, f"{DST} (original CIFAR-10)"),
    Published("Sparse Momentum", 0.05, 93.00, f"{DST} (original CIFAR-10)"),
)

# what gave more on validation, of the options tried for each (docs/LOG.md); the others stay as their papers have them
SHORT: dict[str, dict[str, Any]] = {
    **{f"gmp-{shares}": {"begin": 0.2} for shares in ("uniform", "erk", "global")},
    "ac-dc": {"switches": [0.2, 0.35, 0.5, 0.6, 0.7]},
    "asl": {"freeze": 0.95},
}
BEST: dict[str, dict[str, Any]] = {"aswl": {}} | {name: SHORT[name] for name in ("gmp-erk", "gmp-global")}
FEW: dict[str, dict[str, Any]] = {"aswl": {}, "gmp-erk": {}, "dst": {}}  # where little is left
CIFAR = Recipe(epochs=3, batch_size=64, warmup_epochs=0.3, augment="crop_flip", amp="bf16")  # 5 minutes on a core

SUITES: dict[str, tuple[Grid, ...]] = {
    "mnist": (
        Grid("lenet300", "mnist", Recipe(epochs=20), (0.02, 0.01), ALL, published=LENET300),
        Grid("lenet5", "mnist", Recipe(epochs=5, lr=0.05, amp="bf16"), (0.02, 0.01), ALL, published=LENET5),
    ),
    "cifar": (Grid("resnet20", "cifar10_jpeg", CIFAR, (0.1, 0.05, 0.02), ALL | SHORT),),
    "cifar-longer": (  # does the order at the top stay? 21 minutes a run on a core, so the best alone, and two seeds
        Grid("resnet20", "cifar10_jpeg", replace(CIFAR, epochs=12), (0.05,), BEST, seeds=(0, 1)),
    ),
    "cifar-full": (
        Grid(
            "wrn22-2",
            "cifar10_jpeg",
            Recipe(epochs=250, warmup_epochs=1, augment="crop_flip", amp="bf16"),
            (0.1, 0.05),
            ALL,
            published=WRN,
        ),
        Grid(
            "vgg16",
            "cifar10_jpeg",
            Recipe(epochs=160, warmup_epochs=1, augment="crop_flip", amp="bf16"),
            (0.1, 0.05),
            ALL,
            published=VGG,
        ),
    ),
    "collapse": (
        Grid("lenet300", "mnist", Recipe(epochs=5), (0.005,), FEW),
        Grid("lenet5", "mnist", Recipe(epochs=2, lr=0.05, amp="bf16"), (0.005,), FEW),
        Grid("resnet20", "cifar10_jpeg", replace(CIFAR, epochs=1), (0.005,), FEW | {"gmp-erk": SHORT["gmp-erk"]}),
    ),
}
