"""What a machine offers, or the reason why it does not."""

import importlib.util
import subprocess
import sys

import pytest
import torch

import aswl_kernels
from aswl_kernels import Backend, backends


@pytest.fixture
def machine(monkeypatch):
    """Pretend: torch's CUDA version, a visible GPU, an installed triton, the interpreter's switch."""

    def pretend(cuda=None, gpu=False, triton=False, interpret=None, reason=None):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
        module = sys.modules["aswl_kernels.backends"]  # the package's attribute of this name is the function
        monkeypatch.setattr(module, "version", lambda package: {"triton": "3.7.0"}[package])
        monkeypatch.setattr(module, "unusable", lambda: reason)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        if interpret is not None:
            monkeypatch.setenv("TRITON_INTERPRET", interpret)
        return backends()

    return pretend


def test_names_and_the_reference_on_this_machine():
    here = backends()
    assert list(here) == ["reference", "cuda", "triton", "interpreter", "native"]
    assert here["reference"] == Backend(True, f"torch {torch.__version__}")
    assert here["cuda"].available == torch.cuda.is_available()
    assert all(isinstance(backend.available, bool) and backend.detail for backend in here.values())


def test_bare_machine(machine):
    here = machine()
    assert here["cuda"] == (False, f"torch {torch.__version__} was built without CUDA")
    assert here["triton"] == here["interpreter"] == (False, "the package triton is not installed")


def test_gpu_machine(machine):
    here = machine(cuda="13.0", gpu=True, triton=True)
    assert here["cuda"] == (True, "NVIDIA H200, CUDA 13.0")
    assert here["triton"] == (True, "triton 3.7.0")
    assert here["interpreter"] == (False, "TRITON_INTERPRET=1 is not set")


def test_a_triton_that_does_not_run_here(machine):
    here = machine(cuda="13.0", gpu=True, triton=True, reason="triton 3.5.0 is older than 3.6")
    assert here["triton"] == (False, "triton 3.5.0 is older than 3.6")


def test_cuda_build_without_a_device(machine):
    here = machine(cuda="13.0", triton=True, interpret="1")
    assert here["cuda"] == (False, "torch was built for CUDA 13.0, but no device is visible")
    assert here["triton"] == (False, "triton 3.7.0 is installed, but there is no GPU to run it on")
    assert here["interpreter"] == (True, "TRITON_INTERPRET=1")


def test_the_interpreter_must_be_asked_for_by_1(machine):
    assert not machine(triton=True, interpret="0")["interpreter"].available


def test_the_package_exports_what_it_documents():
    assert sorted(aswl_kernels.__all__) == aswl_kernels.__all__
    assert all(getattr(aswl_kernels, name).__doc__ for name in aswl_kernels.__all__)


def test_importing_the_operators_loads_no_method_and_no_triton():
    code = "import sys, aswl_kernels; print(sorted({'aswl', 'triton', 'numpy.testing'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
