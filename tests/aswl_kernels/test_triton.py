"""Which kernel serves: Triton's, or the reference with one warning that says why."""

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from aswl_kernels import _triton, gate, reference


@pytest.fixture
def afresh():
    _triton._usable.cache_clear()
    yield
    _triton._usable.cache_clear()


def pretend(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "triton", version and SimpleNamespace(__version__=version))


def test_a_version_is_enough_or_not(monkeypatch):
    cpu = torch.device("cpu")
    for version in ("3.6.0", "3.10.1+git1234", "4.0"):
        pretend(monkeypatch, version)
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert _triton.unusable(cpu) is None
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        assert _triton.unusable(cpu) == "Triton's kernels run on a GPU, or with TRITON_INTERPRET=1"
    for version in ("3.5.1", "2.3.0"):
        pretend(monkeypatch, version)
        assert _triton.unusable(cpu) == f"triton {version} is older than 3.6"
    pretend(monkeypatch, None)
    assert _triton.unusable(cpu).startswith("triton cannot be imported: ")


def test_a_gpu_is_asked_by_trying(monkeypatch):
    gpu = torch.device("cuda", 0)
    pretend(monkeypatch, "3.7.1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert _triton.unusable(gpu) == "Tesla V100 is older than compute capability 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch, "ones", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("driver too old")))
    assert _triton.unusable(gpu) == "triton 3.7.1 cannot run a kernel here: RuntimeError: driver too old"


def test_the_reference_serves_with_one_warning(triton_device, monkeypatch, afresh):
    weight, one = torch.randn(9, device=triton_device), torch.ones(1, device=triton_device)
    monkeypatch.setattr(_triton, "unusable", lambda device: "no reason")
    with pytest.warns(UserWarning, match=r"operators on \w+(:\d)? run on their PyTorch references: no reason"):
        first = gate(weight, one, one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = gate(weight, one, one)
    assert torch.equal(first, second) and torch.equal(first, reference.gate(weight, one, one))


def test_the_kernel_serves_without_one(triton_device, monkeypatch, afresh):
    asked = []
    unusable = _triton.unusable
    monkeypatch.setattr(_triton, "unusable", lambda device: asked.append(device) or unusable(device))
    weight, one = torch.randn(9, device=triton_device), torch.ones(1, device=triton_device)
    for _ in range(3):
        gate(weight, one, one)
    assert asked == [weight.device]
