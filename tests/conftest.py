"""Every test: one seed, one thread, the same hypothesis examples, and each device of this machine."""

import functools
import os
import signal
import tempfile
import warnings

import hypothesis
import numpy as np
import pytest
import torch

from aswl_kernels._triton import SERVED, interpreting

hypothesis.settings.register_profile("aswl", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("aswl")

CACHE = tempfile.TemporaryDirectory()
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
os.environ["ASWL_CACHE"] = CACHE.name  # what is measured here stays here


@pytest.fixture(autouse=True)
def reproducible():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", *([GPU] if torch.cuda.is_available() else [])])
def device(request) -> str:
    return request.param


@pytest.fixture(params=[GPU if torch.cuda.is_available() else "cpu"])
def triton_device(request) -> str:
    """Where operators run their Triton kernels: on the GPU, or on a CPU, in Triton's interpreter and for one test."""
    if request.param == "cpu":
        request.getfixturevalue("interpreter")
        library = torch.library.Library("aswl", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")  # of the kernels that step back
            for name, kernel in SERVED.items():
                library.impl(name, kernel, "CPU", allow_override=True)
        yield request.param
        library._destroy()
    else:
        yield request.param


@pytest.fixture(scope="session")
def interpreter():
    """Triton's interpreter, made to round to bf16 as GPUs do: of itself it cuts off."""
    if not interpreting():
        pytest.skip("no GPU, and TRITON_INTERPRET is not 1")
    own = pytest.importorskip("triton.runtime.interpreter")
    convert = own._convert_float

    def rounding(data, source, target, mode):
        if target.primitive_bitwidth == 16:
            return torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return convert(data, source, target, mode)

    own._convert_float = rounding


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nobody has written yet is NaN."""

    def poison(make, *args, **options):
        tensor = make(*args, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, functools.partial(poison, getattr(torch, name)))
