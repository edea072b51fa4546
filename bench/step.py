"""What the method costs: a training step of a sparse model against its dense twin's, interleaved in one process.

python -m bench.step [--model resnet20] [--batch 128] [--products dense] [--rounds 15] [--save]
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

import aswl
from aswl.training import models
from bench import rows
from bench.timing import interleaved

SHAPES = {"lenet300": (1, 28, 28), "lenet5": (1, 28, 28)}


def stepper(
    name: str, density: float | None, batch: int, products: str = "auto", settle: int = 12
) -> Callable[[], None]:
    """A function that does one whole training step; sparse models have settled at their density by then."""
    torch.manual_seed(0)
    shape = SHAPES.get(name, (3, 32, 32))
    model = models.build(name, shape, 10)
    groups, sparsifier = [{"params": list(model.parameters()), "lr": 0.01}], None
    if density is not None:
        sparsifier = aswl.ASWL(model, density=density, steps=settle, products=products)
        groups = sparsifier.param_groups(lr=0.01)
    kind = torch.optim.SGD if sparsifier is None else aswl.optim.SGD
    optimizer = kind(groups, momentum=0.9, weight_decay=1e-4)
    if sparsifier:
        sparsifier.attach(optimizer)
    x, y = torch.randn(batch, *shape), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # random labels for many steps: keep them from diverging
        optimizer.step()

    for _ in range(settle):
        step()
    if sparsifier:
        kept, asked = sparsifier.summary().kept, round(density * sparsifier.summary().size)
        assert kept == asked, f"never time a wrong mask: {kept} kept, {asked} asked"
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20", choices=models.names())
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--products", default="auto", choices=("auto", "dense", "sparse"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="append a row to bench/results/step.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(min(torch.get_num_threads(), 2))
    variants = {
        kind: stepper(args.model, density, args.batch, args.products)
        for kind, density in (("dense", None), ("sparse", args.density))
    }
    times = interleaved(variants, args.rounds)
    ratios = sorted(sparse / dense for sparse, dense in zip(times["sparse"], times["dense"]))
    row = {
        "model": args.model,
        "batch": args.batch,
        "density": args.density,
        "products": args.products,
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "dense_ms": round(statistics.median(times["dense"]), 2),
        "sparse_ms": round(statistics.median(times["sparse"]), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)],
    }
    print(
        f"{args.model}, batch {args.batch}, density {args.density}, {args.products} products: "
        f"dense {row['dense_ms']} ms, sparse {row['sparse_ms']} ms"
    )
    print(f"ratio {row['ratio']} (median of {args.rounds} pairs; quartiles {row['ratio_quartiles']})")
    if args.save:
        print(rows.append("step", [row]))


if __name__ == "__main__":
    main()
