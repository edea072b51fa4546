"""A whole training step of a sparse model against its dense twin's: forward, gradients, optimizer, and the method.

python -m bench.step [--model resnet20] [--densities 0.1 0.05 0.02] [--products auto] [--rounds 11] [--parts] [--save]
"""

import argparse
import statistics
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

import aswl
from aswl.nn import SparseLayer
from aswl.training import models
from aswl_kernels.timing import interleaved
from bench import rows

SHAPES = {"mlp": (784,), "lenet300": (1, 28, 28), "lenet5": (1, 28, 28)}  # of an image; others (3, 32, 32)
BATCHES = {"mlp": 256}  # others 128
SETTLE = 12  # steps until the density is the one asked for
Step = Callable[[], None]


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [module for i, o in pairwise(widths) for module in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def stepper(name: str, batch: int, density: float | None = None, **options: object) -> tuple[Step, nn.Module]:
    """A function that does one whole training step, and its model; a sparse one has settled at its density by then.

    ``density``: None for the dense twin, on torch's optimizer; ``options``: of :class:`aswl.ASWL`.
    """
    torch.manual_seed(0)
    shape = SHAPES.get(name, (3, 32, 32))
    model, sparsifier = mlp(784, 2048, 2048, 10) if name == "mlp" else models.build(name, shape, 10), None
    groups = [{"params": list(model.parameters()), "lr": 0.01}]
    if density is not None:
        sparsifier = aswl.ASWL(model, density=density, steps=SETTLE, **options)
        groups = sparsifier.param_groups(lr=0.01)
    kind = torch.optim.SGD if sparsifier is None else aswl.optim.SGD
    optimizer = kind(groups, momentum=0.9, weight_decay=1e-4)
    if sparsifier:
        sparsifier.attach(optimizer)
    x, y = torch.randn(batch, *shape), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    for _ in range(SETTLE):
        step()
    if sparsifier:
        kept, asked = sparsifier.summary().kept, round(density * sparsifier.summary().size)  # ties come on top
        assert 0 <= kept - asked <= 10, f"never time a wrong mask: {kept} kept, {asked} asked"
    return step, model


def parts(step: Step, repeats: int = 5) -> dict[str, float]:
    """Milliseconds of one step by operator, those above 1% of it: time in the operator itself, under the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        for _ in range(repeats):
            step()
    own = {event.key: event.self_cpu_time_total / repeats / 1e3 for event in profile.key_averages()}
    ranked = sorted(own.items(), key=lambda item: -item[1])
    return {name: round(ms, 2) for name, ms in ranked if ms > 0.01 * sum(own.values())}


def measure(dense: Step, sparse: Step, model: nn.Module, rounds: int) -> dict:
    """Times of both steps in turns, and the sparse one's as a share of the dense one's."""
    times = interleaved({"dense": dense, "sparse": sparse}, rounds)
    ratios = sorted(s / d for d, s in zip(times["dense"], times["sparse"]))
    layers = [layer.last_products for layer in model.modules() if isinstance(layer, SparseLayer)]
    return {
        "dense_ms": round(statistics.median(times["dense"]), 2),
        "sparse_ms": round(statistics.median(times["sparse"]), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(ratios[rounds // 4], 3), round(ratios[3 * rounds // 4], 3)],
        "on_sparse_products": layers.count("sparse"),
        "layers": len(layers),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20", choices=["mlp", *models.names()])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05, 0.02])
    parser.add_argument("--products", default="auto", choices=("auto", "dense", "sparse"))
    parser.add_argument("--backward-density", type=float)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--parts", action="store_true", help="where the time of a step goes, by operator")
    parser.add_argument("--save", action="store_true", help="append rows to bench/results/step.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    batch = args.batch or BATCHES.get(args.model, 128)
    options = {"products": args.products, "backward_density": args.backward_density}
    results, dense = [], stepper(args.model, batch)[0]
    if args.parts:
        print("dense", parts(dense))
    for density in args.densities:
        sparse, model = stepper(args.model, batch, density, **options)
        row = {"model": args.model, "batch": batch, "density": density, **options}
        row |= measure(dense, sparse, model, args.rounds)
        results.append(row)
        print(
            f"{args.model}, batch {batch}, density {density}: dense {row['dense_ms']} ms, sparse {row['sparse_ms']} ms, "
            f"{row['ratio']} of it (quartiles {row['ratio_quartiles']}), {row['on_sparse_products']} of "
            f"{row['layers']} layers on sparse products",
            flush=True,
        )
        if args.parts:
            print(f"density {density}", parts(sparse), flush=True)
    if args.save:
        print(rows.append("step", results))


if __name__ == "__main__":
    main()
