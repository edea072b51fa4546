"""The C++ library: it is reported, refuses an impossible instruction set, and every set passes the operators' tests."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aswl_kernels import backends, native

HERE = Path(__file__).parent
TESTED = (
    "fused",
    "gate",
    "magnitude_threshold",
    "pack",
    "sparse_linear",
    "sparse_conv2d",
    "native_values",
    "native_conv",
)
needs_library = pytest.mark.skipif(not native.AVAILABLE, reason=native.DETAIL)


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, check=False
    )


def has(isa):
    """Whether this processor can run the kernels of an instruction set."""
    return native.AVAILABLE and python("-c", "import aswl_kernels", ASWL_ISA=isa).returncode == 0


def test_backends_reports_the_library():
    available, detail = backends()["native"]
    assert available == native.AVAILABLE and detail.startswith(native.DETAIL)
    assert not native.AVAILABLE or native.DETAIL in native.SETS


def test_a_missing_library_has_a_reason(tmp_path):
    assert native._load(tmp_path) == (
        False,
        "it was not built; reinstall with ASWL_NATIVE=1 and --no-build-isolation to see why",
    )


def test_a_broken_library_has_a_reason(tmp_path):
    (tmp_path / "_native.abi3.so").write_bytes(b"no library")
    available, reason = native._load(tmp_path)
    assert not available and reason.startswith("it does not load: ") and "_native.abi3.so" in reason


def test_a_library_of_other_sources_is_told(tmp_path, monkeypatch):
    package, sources = tmp_path / "aswl_kernels", tmp_path / "csrc"
    package.mkdir()
    library = package / "_native.abi3.so"
    library.write_bytes(b"no digest")
    assert not native.is_stale(package)  # an installed package has no csrc/ beside it
    sources.mkdir()
    (sources / "a.cpp").write_text("int a;")
    assert native.is_stale(package)
    library.write_bytes(b"..." + hashlib.sha256(b"int a;").hexdigest().encode() + b"...")
    assert not native.is_stale(package)
    (sources / "b.h").write_text("int b;")
    assert native.is_stale(package)
    monkeypatch.setattr(native, "is_stale", lambda folder: True)
    assert not native.AVAILABLE or "built from other sources than csrc/" in backends()["native"].detail


@needs_library
def test_an_unknown_instruction_set_is_refused():
    done = python("-c", "import aswl_kernels", ASWL_ISA="avx3")
    assert "ASWL_ISA: want one of portable, avx2, avx512, and on this processor; got 'avx3'" in done.stderr


@needs_library
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_every_instruction_set_passes_the_operators_tests(isa):
    if native.DETAIL == isa:
        pytest.skip(f"all tests of this process run {isa}")
    if not has(isa):
        pytest.skip(f"this processor has no {isa}")
    files = [str(HERE / f"test_{name}.py") for name in TESTED]
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, ASWL_ISA=isa)
    assert done.returncode == 0, done.stdout[-3000:]
