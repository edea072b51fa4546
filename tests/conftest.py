"""Every test: one seed, one thread, the same hypothesis examples, and each device of this machine."""

import os
import signal
import tempfile

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("aswl", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("aswl")

CACHE = tempfile.TemporaryDirectory()
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
os.environ["ASWL_CACHE"] = CACHE.name  # what is measured here stays here


@pytest.fixture(autouse=True)
def reproducible():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])])
def device(request) -> str:
    return request.param
