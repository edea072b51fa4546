"""Build script: the version, read from the source, and the C++ library, built where a compiler and torch are there.

``ASWL_NATIVE=1`` makes the library a must, ``ASWL_NATIVE=0`` leaves it out. pip must be called with
``--no-build-isolation`` to let this script see torch, whose headers and stable interface it needs.
"""

import hashlib
import importlib.util
import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

HERE = Path(__file__).parent
ASKED = os.environ.get("ASWL_NATIVE", "")
SETS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c", "-mpopcnt"],
}
# native.is_stale looks for it in the library
DIGEST = hashlib.sha256(b"".join(p.read_bytes() for p in sorted((HERE / "csrc").glob("*.*")))).hexdigest()
TORCH = importlib.util.find_spec("torch")  # found, not imported: that would take seconds


class Build(build_ext):
    """Compiles every source once for the operators and once per instruction set for the kernels."""

    def build_extension(self, ext: Extension) -> None:
        headers = Path(TORCH.origin).parent / "include"
        if not (headers / "torch" / "csrc" / "stable" / "library.h").exists():
            raise CompileError(f"torch's headers are not in {headers}")
        x86 = platform.machine() in ("x86_64", "AMD64")
        jobs = {"op": ["-DTORCH_TARGET_VERSION=0x020b000000000000", f'-DASWL_SOURCES="{DIGEST}"']}
        jobs |= {s: [f"-DISA={s}", *SETS[s]] for s in (SETS if x86 else ["portable"])}
        common = ["-O3", "-g1", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wno-attributes"]

        def compile(job: str, source: str) -> list[str]:
            folder, flags = f"{self.build_temp}/{job}", [*common, *jobs[job]]
            includes = [str(headers)] if job == "op" else []
            return self.compiler.compile([source], folder, include_dirs=includes, extra_postargs=flags)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [o for part in pool.map(compile, *zip(*product(jobs, ext.sources))) for o in part]
        path, library = self.get_ext_fullpath(ext.name), str(headers.parent / "lib")
        self.compiler.link_shared_object(objects, path, libraries=["torch_cpu"], library_dirs=[library])


if ASKED not in ("", "0", "1"):
    raise SystemExit(f"ASWL_NATIVE: want 0 or 1; got {ASKED!r}")
if ASKED == "1" and TORCH is None:
    raise SystemExit("ASWL_NATIVE=1: want torch importable (pip install torch, then --no-build-isolation); got none")
sources = sorted(str(p.relative_to(HERE)) for p in (HERE / "csrc").glob("*.cpp"))
headers = [str(p) for p in (HERE / "csrc").glob("*.h")]
native = Extension("aswl_kernels._native", sources, depends=headers, py_limited_api=True, optional=ASKED != "1")
build = ASKED != "0" and TORCH is not None
version = re.search(r'__version__ = "(.+)"', (HERE / "aswl" / "__init__.py").read_text(encoding="utf-8")).group(1)
options = {"bdist_wheel": {"py_limited_api": "cp311"}} if build else {}
setup(version=version, ext_modules=[native] if build else [], cmdclass={"build_ext": Build}, options=options)
