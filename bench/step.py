"""A whole training step of a sparse model against its dense twin's: forward, gradients, optimizer, and the method.

python -m bench.step [--model resnet20] [--densities 0.1 0.05 0.02] [--products auto] [--rounds 11] [--parts] [--save]

Eager, in every form that a user would choose from: fp32, with channels_last for convolutions, and bf16 autocast.
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
from aswl.training.evaluate import precision
from aswl_kernels.timing import interleaved
from bench import rows

SHAPES = {"mlp": (784,), "lenet300": (1, 28, 28), "lenet5": (1, 28, 28)}  # of an image; others (3, 32, 32)
BATCHES = {"mlp": 256}  # others 128
SETTLE = 12  # steps until the density is the one asked for
FORMS = {"fp32": ("none", False), "fp32, channels_last": ("none", True), "bf16, channels_last": ("bf16", True)}
FLAT_FORMS = {"fp32": ("none", False), "bf16": ("bf16", False)}  # of networks without images
Step = Callable[[], None]


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers = [module for i, o in pairwise(widths) for module in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def forms(name: str) -> dict[str, tuple[str, bool]]:
    """Precisions (``amp``) and layouts (``channels_last``) to time a model in."""
    return FLAT_FORMS if name in ("mlp", "lenet300") else FORMS


def stepper(
    name: str, batch: int, form: tuple[str, bool], density: float | None = None, **options: object
) -> tuple[Step, nn.Module]:
    """A function that does one whole training step, and its model; a sparse one has settled at its density by then.

    ``form``: one of :func:`forms`; ``density``: None for the dense twin, on torch's optimizer; ``options``: of
    :class:`aswl.ASWL`.
    """
    amp, channels_last = form
    layout = {"memory_format": torch.channels_last} if channels_last else {}
    torch.manual_seed(0)
    shape = SHAPES.get(name, (3, 32, 32))
    model, sparsifier = mlp(784, 2048, 2048, 10) if name == "mlp" else models.build(name, shape, 10), None
    model = model.to(**layout)
    groups = [{"params": list(model.parameters()), "lr": 0.01}]
    if density is not None:
        sparsifier = aswl.ASWL(model, density=density, steps=SETTLE, **options)
        groups = sparsifier.param_groups(lr=0.01)
    kind = torch.optim.SGD if sparsifier is None else aswl.optim.SGD
    optimizer = kind(groups, momentum=0.9, weight_decay=1e-4)
    if sparsifier:
        sparsifier.attach(optimizer)
    x, y = torch.randn(batch, *shape).to(**layout), torch.randint(10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        with precision(amp, x.device):
            logits = model(x)
        F.cross_entropy(logits.float(), y).backward()
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


def measure(dense: dict[str, Step], sparse: dict[str, tuple[Step, nn.Module]], rounds: int) -> list[dict]:
    """Times of all steps in turns, a row per form, with the sparse step's as a share of the dense one's."""
    steps = {("dense", form): step for form, step in dense.items()}
    steps |= {("sparse", form): step for form, (step, _) in sparse.items()}
    times = interleaved(steps, rounds)
    measured = []
    for form, (_, model) in sparse.items():
        dense_ms, sparse_ms = times["dense", form], times["sparse", form]
        ratios = sorted(s / d for d, s in zip(dense_ms, sparse_ms))
        layers = [layer.last_products for layer in model.modules() if isinstance(layer, SparseLayer)]
        measured.append(
            {
                "form": form,
                "dense_ms": round(statistics.median(dense_ms), 2),
                "sparse_ms": round(statistics.median(sparse_ms), 2),
                "ratio": round(statistics.median(ratios), 3),
                "ratio_quartiles": [round(ratios[rounds // 4], 3), round(ratios[3 * rounds // 4], 3)],
                "on_sparse_products": layers.count("sparse"),
                "layers": len(layers),
                "threads": torch.get_num_threads(),
                "rounds": rounds,
            }
        )
    return measured


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
    results, kinds = [], forms(args.model)
    dense = {form: stepper(args.model, batch, kind)[0] for form, kind in kinds.items()}
    for form in kinds if args.parts else ():
        print(f"dense, {form}", parts(dense[form]))
    for density in args.densities:
        sparse = {form: stepper(args.model, batch, kind, density, **options) for form, kind in kinds.items()}
        for row in measure(dense, sparse, args.rounds):
            results.append({"model": args.model, "batch": batch, "density": density, **options} | row)
            print(
                f"{args.model}, batch {batch}, {row['form']}, density {density}: dense {row['dense_ms']} ms, sparse "
                f"{row['sparse_ms']} ms, {row['ratio']} of it (quartiles {row['ratio_quartiles']}), "
                f"{row['on_sparse_products']} of {row['layers']} layers on sparse products",
                flush=True,
            )
        for form in kinds if args.parts else ():
            print(f"density {density}, {form}", parts(sparse[form][0]), flush=True)
    if args.save:
        print(rows.append("step", results))


if __name__ == "__main__":
    main()
