"""The C++ operators against PyTorch's on the CPU, values checked first, the variants interleaved in one process.

python -m bench.cpu [--only sparse_linear] [--threads 2] [--rounds 9] [--save]
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn import functional as F

from aswl_kernels import backends, gate, magnitude_threshold, pack, reference, sparse_conv2d, sparse_linear
from bench import rows
from bench.timing import interleaved

LINEAR = ((4096, 4096, 256), (2048, 512, 512), (4096, 4096, 1))  # out, in, batch
CONV = ((64, 64, 3, 32), (128, 128, 3, 16), (256, 256, 3, 8), (512, 512, 3, 4), (64, 256, 1, 14), (256, 64, 1, 14))
SPARSITIES = (0.8, 0.9, 0.95, 0.98)
Case = tuple[dict, dict[str, Callable]]  # what it is, and the variants; their values are checked before


def resnet50() -> list[torch.Tensor]:
    """Weights of ResNet-50's shapes."""
    shapes, inputs = [(64, 3, 7, 7)], 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            shapes += [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            shapes += [(4 * width, inputs, 1, 1)] if block == 0 else []
            inputs = 4 * width
    return [torch.randn(shape) * 0.05 for shape in (*shapes, (1000, 2048))]


def sparse(outputs: int, inputs: int, sparsity: float) -> torch.Tensor:
    return torch.randn(outputs, inputs).where(torch.rand(outputs, inputs) >= sparsity, 0)


def exact(got, want) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def thresholds(weights: list[torch.Tensor], keep: torch.Tensor) -> dict[str, Callable]:
    flat = torch.cat([w.flatten() for w in weights])
    ranks = [w.numel() - int(k) + 1 for w, k in zip(weights, keep)]
    return {
        "ours": lambda: magnitude_threshold(weights, keep),
        "kthvalue": lambda: torch.stack([w.abs().flatten().kthvalue(r).values for w, r in zip(weights, ranks)]),
        "one read (amax)": flat.amax,
    }


def magnitude_threshold_cases() -> Iterator[Case]:
    weights = resnet50()
    for density in (0.02, 0.1, 0.5):
        variants = thresholds(weights, torch.tensor([max(1, int(density * w.numel())) for w in weights]))
        exact(variants["ours"](), variants["kthvalue"]())
        yield {"case": "ResNet-50, 25.5M weights", "density": density}, variants


def gate_cases() -> Iterator[Case]:
    weight, attention = torch.randn(1 << 22), torch.tensor([0.7])
    args = weight, attention, weight.abs().median()
    variants = {"ours": lambda: gate(*args), "reference": lambda: reference.gate(*args), "one copy": weight.clone}
    exact(variants["ours"](), variants["reference"]())
    yield {"case": "4,194,304 weights"}, variants


def pack_cases() -> Iterator[Case]:
    for sparsity in SPARSITIES:
        weight = sparse(4096, 4096, sparsity)
        for got, want in zip(torch.ops.aswl.pack(weight), reference.pack(weight)):
            exact(got, want)
        variants = {"ours": lambda w=weight: pack(w), "to_sparse_csr": weight.to_sparse_csr}
        yield {"case": "4096x4096", "sparsity": sparsity}, variants


def products(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> dict[str, Callable]:
    packed, csr = pack(weight), weight.to_sparse_csr()
    return {
        "ours": lambda: sparse_linear(x, packed, bias),
        "dense": lambda: F.linear(x, weight, bias),
        "torch CSR": lambda: F.linear(x, csr, bias),
    }


def sparse_linear_cases() -> Iterator[Case]:
    for outputs, inputs, batch in LINEAR:
        x, bias = torch.randn(batch, inputs), torch.randn(outputs)
        for sparsity in SPARSITIES:
            weight = sparse(outputs, inputs, sparsity)
            variants = products(x, weight, bias)
            exact64 = F.linear(x.double(), weight.double(), bias.double())
            error, dense_error = ((variants[name]() - exact64).abs().max() for name in ("ours", "dense"))
            assert error <= 2 * dense_error + 1e-6 * exact64.abs().max(), "never time a wrong answer"
            yield {"case": f"{outputs}x{inputs}, batch {batch}", "sparsity": sparsity}, variants


def sparse_conv2d_cases() -> Iterator[Case]:
    for outputs, inputs, kernel, size in CONV:
        x, padding = torch.randn(32, inputs, size, size), kernel // 2
        x_last = x.contiguous(memory_format=torch.channels_last)
        for sparsity in SPARSITIES:
            weight = sparse(outputs, inputs * kernel**2, sparsity).view(outputs, inputs, kernel, kernel)
            packed, weight_last = pack(weight), weight.contiguous(memory_format=torch.channels_last)
            variants = {
                "ours": partial(sparse_conv2d, x, packed, padding=padding),
                "ours, channels_last": partial(sparse_conv2d, x_last, packed, padding=padding),
                "dense": partial(F.conv2d, x, weight, padding=padding),
                "dense, channels_last": partial(F.conv2d, x_last, weight_last, padding=padding),
            }
            exact64 = F.conv2d(x.double(), weight.double(), padding=padding)
            errors = [(f() - exact64).abs().max() for f in variants.values()]
            assert max(errors[:2]) <= 2 * max(errors[2:]) + 1e-6 * exact64.abs().max(), "never time a wrong answer"
            case = f"{inputs} to {outputs}, {kernel}x{kernel}, {size}x{size}, batch 32"
            yield {"case": case, "sparsity": sparsity}, variants


CASES = {
    "magnitude_threshold": magnitude_threshold_cases,
    "gate": gate_cases,
    "pack": pack_cases,
    "sparse_linear": sparse_linear_cases,
    "sparse_conv2d": sparse_conv2d_cases,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="append rows to bench/results/cpu.jsonl")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
    torch.set_num_threads(args.threads)
    native = backends()["native"]
    print(f"C++ library: {native.detail}; {args.threads} threads; ms, and how many times faster ours is")
    results = []
    for op in [args.only] if args.only else CASES:
        for what, variants in CASES[op]():
            with torch.no_grad():
                times = interleaved(variants, args.rounds)
            ms = {name: round(statistics.median(series), 4) for name, series in times.items()}
            best = {
                name: round(min(series), 4) for name, series in times.items()
            }  # what a busy machine leaves readable
            ratios = {name: sorted(t / o for t, o in zip(times[name], times["ours"])) for name in ms if name != "ours"}
            ratio = {name: round(statistics.median(series), 2) for name, series in ratios.items()}
            label = ", ".join(f"{k} {v}" if k != "case" else str(v) for k, v in what.items())
            against = ", ".join(f"{name} {ms[name]} ({ratio[name]}x)" for name in ratio)
            print(f"{op:20} {label:38} ours {ms['ours']} (best {best['ours']}), {against}", flush=True)
            machine = {"threads": args.threads, "isa": native.detail, "rounds": args.rounds}
            results.append({"op": op, **what, "ms": ms, "best_ms": best, "ratio": ratio} | machine)
    if args.save:
        print(rows.append("cpu", results))


if __name__ == "__main__":
    main()
