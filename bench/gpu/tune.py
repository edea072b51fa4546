"""``aswl bench --tune`` for ResNet-50 as ``step`` trains it: OUTDIR gets tuned.json."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from unittest import mock

import torch

from aswl.training import bench
from aswl_kernels import tuned
from bench.gpu.run import Run


def measure(run: Run) -> None:
    torch.backends.cudnn.benchmark = True  # as in training
    with ExitStack() as stack, run.case("resnet50"):
        cache = stack.enter_context(TemporaryDirectory()) if run.warm else str(run.out)
        stack.enter_context(mock.patch.dict(os.environ, ASWL_CACHE=cache))
        if run.warm:
            stack.enter_context(mock.patch.object(tuned, "interleaved", lambda variants, *_: run.times(variants)))
        if run.smoke:
            on_cpu = {"decides": lambda x: True, "_others": lambda *_: ("fused",), "ROUNDS": 1}
            stack.enter_context(mock.patch.multiple(tuned, **on_cpu))
            show(run, bench.bench("lenet300", batch=4, size=8, tune=True))
        else:
            show(run, bench.bench("resnet50", batch=256, dtype="amp", channels_last=True, tune=True))


def show(run: Run, measured: Iterator[bench.Product]) -> None:
    products = []
    for product in measured:
        products.append(product)
        times = {kind: [ms] for kind, ms in product.ms.items()}
        run.row(f"{product.names[0]} + {len(product.names) - 1}", times, product.fastest, "dense")
    print(bench.table(products))
    fastest = [product.fastest for product in products]
    run.note("resnet50", ", ".join(f"{fastest.count(kind)} {kind}" for kind in tuned.PRODUCTS))
