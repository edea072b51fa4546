"""What the fused pass costs: a step over pruned weights with the method's sums, against torch's fused optimizer alone.

python -m bench.optim [--weights 1000000 25000000] [--threads 1 2] [--rounds 15] [--save]
"""

import argparse
import statistics
from collections.abc import Callable

import torch

from aswl_kernels import fused_adamw_, fused_sgd_, magnitude_threshold
from aswl_kernels.timing import interleaved
from bench import rows

LAYERS = 8
DENSITY = 0.1
STREAMS = {"sgd": 5, "adamw": 7}  # of the weights' size, read or written


def variants(name: str, count: int, device: torch.device | str = "cpu") -> dict[str, Callable[[], object]]:
    """torch's fused optimizer and ours, without and with a bf16 copy of the masked weight, on weights of their own."""

    def tensors() -> list[torch.Tensor]:
        torch.manual_seed(0)
        return [torch.randn(count // LAYERS, device=device) for _ in range(LAYERS)]

    grads = [1e-4 * grad for grad in tensors()]
    theirs = [torch.nn.Parameter(weight) for weight in tensors()]
    for parameter, grad in zip(theirs, grads):
        parameter.grad = grad
    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(theirs, lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)
    else:
        optimizer = torch.optim.AdamW(theirs, lr=1e-5, weight_decay=1e-4, fused=True)

    def ours(copies: list[torch.Tensor] | None) -> tuple[Callable[[], object], list[torch.Tensor]]:
        weights = tensors()
        first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
        keep = torch.tensor([int(DENSITY * count / LAYERS)] * LAYERS, device=device)
        thresholds = list(magnitude_threshold(weights, keep))
        step = 0

        def sgd() -> object:
            options = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4, "copies": copies}
            return fused_sgd_(weights, grads, first, thresholds, **options)

        def adamw() -> object:
            nonlocal step
            step += 1
            options = {"lr": 1e-5, "weight_decay": 1e-4, "copies": copies}
            return fused_adamw_(weights, grads, first, second, [step] * LAYERS, thresholds, **options)

        return {"sgd": sgd, "adamw": adamw}[name], weights

    plain, weights = ours(None)
    with_copy, _ = ours([weight.bfloat16() for weight in weights])
    for _ in range(3):
        optimizer.step()
        plain()
    for got, want in zip(weights, theirs):
        torch.testing.assert_close(got, want.detach(), rtol=1e-4, atol=1e-6)  # never time a wrong answer
    return {"torch": optimizer.step, "ours": plain, "ours, with copy": with_copy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, nargs="+", default=[1_000_000, 25_000_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="append rows to bench/results/optim.jsonl")
    args = parser.parse_args()
    results = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for name, streams in STREAMS.items():
            for count in args.weights:
                times = interleaved(variants(name, count), args.rounds)
                ms = {kind: round(statistics.median(each), 3) for kind, each in times.items()}
                ratio = {
                    kind: round(statistics.median(a / b for a, b in zip(times[kind], times["torch"])), 3)
                    for kind in ("ours", "ours, with copy")
                }
                row = {"op": f"fused_{name}_", "weights": count, "threads": threads, "rounds": args.rounds}
                row |= {"ms": ms, "ratio": ratio}
                results.append(row)
                rate = 4e-6 * streams * count / ms["ours"]
                print(
                    f"{row['op']:12} {count:>9} weights, {threads} threads: torch {ms['torch']} ms, ours {ms['ours']} ms "
                    f"({ratio['ours']}, {rate:.0f} GB/s), with copy {ms['ours, with copy']} ms ({ratio['ours, with copy']})"
                )
    if args.save:
        print(rows.append("optim", results))


if __name__ == "__main__":
    main()
