"""A whole training step on sparse products against the dense twin's: forward, both gradients, optimizer, the method.

python -m bench.train [--only mlp] [--densities 0.1 0.05 0.02] [--threads 2] [--rounds 9] [--parts] [--save]
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
from bench import rows
from bench.timing import interleaved

MODELS = {  # how it is made, its input, its batch
    "mlp": (lambda: mlp(784, 2048, 2048, 10), (784,), 256),
    "resnet20": (lambda: models.build("resnet20", (3, 32, 32), 10), (3, 32, 32), 128),
}
Step = Callable[[], None]


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [module for i, o in pairwise(widths) for module in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def stepper(name: str, density: float | None, settle: int = 6, **options: object) -> tuple[Step, nn.Module]:
    """A function that does one whole training step, and its model; a sparse one has settled at its density by then."""
    torch.manual_seed(0)
    build, shape, batch = MODELS[name]
    model, sparsifier = build(), None
    groups = [{"params": list(model.parameters()), "lr": 0.01}]
    if density is not None:
        sparsifier = aswl.ASWL(model, density=density, steps=settle, **options)
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

    for _ in range(settle + 2):
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


def measure(name: str, densities: list[float], rounds: int, backward_density: float | None) -> list[dict]:
    """One row per density: times of dense and sparse steps in turn, and how many times faster the sparse one is."""
    results, dense = [], stepper(name, None)[0]
    for density in densities:
        sparse, model = stepper(name, density, backward_density=backward_density)
        times = interleaved({"dense": dense, "sparse": sparse}, rounds)
        ratios = sorted(d / s for d, s in zip(times["dense"], times["sparse"]))
        layers = [layer.last_products for layer in model.modules() if isinstance(layer, SparseLayer)]
        results.append(
            {
                "model": name,
                "batch": MODELS[name][2],
                "density": density,
                "backward_density": backward_density,
                "dense_ms": round(statistics.median(times["dense"]), 2),
                "sparse_ms": round(statistics.median(times["sparse"]), 2),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_quartiles": [round(ratios[rounds // 4], 3), round(ratios[3 * rounds // 4], 3)],
                "on_sparse_products": layers.count("sparse"),
                "layers": len(layers),
                "threads": torch.get_num_threads(),
                "rounds": rounds,
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.1, 0.05, 0.02])
    parser.add_argument("--backward-density", type=float)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--parts", action="store_true", help="where the time of a step goes, by operator")
    parser.add_argument("--save", action="store_true", help="append rows to bench/results/train.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = []
    for name in [args.only] if args.only else MODELS:
        for row in measure(name, args.densities, args.rounds, args.backward_density):
            results.append(row)
            print(
                f"{name}, batch {row['batch']}, density {row['density']}: dense {row['dense_ms']} ms, sparse "
                f"{row['sparse_ms']} ms, {row['ratio']}x (quartiles {row['ratio_quartiles']}), "
                f"{row['on_sparse_products']} of {row['layers']} layers on sparse products",
                flush=True,
            )
        for density in [None, *args.densities] if args.parts else []:
            options = {} if density is None else {"backward_density": args.backward_density}
            step, _ = stepper(name, density, **options)
            print("dense" if density is None else f"density {density}", parts(step), flush=True)
    if args.save:
        print(rows.append("train", results))


if __name__ == "__main__":
    main()
