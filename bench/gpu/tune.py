"""``aswl bench --tune`` for ResNet-50 as ``step`` trains it: OUTDIR gets tuned.json."""

import os
from collections.abc import Iterator
from unittest import mock

import torch

from aswl.training import bench
from aswl_kernels import tuned
from bench.gpu.run import Run


def measure(run: Run) -> None:
    torch.backends.cudnn.benchmark = True  # as in training
    with mock.patch.dict(os.environ, ASWL_CACHE=str(run.out)), run.case("resnet50"):
        if run.smoke:
            with mock.patch.multiple(tuned, decides=lambda x: True, _others=lambda *_: ("fused",), ROUNDS=1):
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
