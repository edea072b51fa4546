"""The C++ library: it registers CPU kernels under the operators' names when it is loaded, here."""

import ctypes
import hashlib
import os
from pathlib import Path

import torch

SETS = ("portable", "avx2", "avx512")


def _load(folder: Path) -> tuple[bool, str]:
    """(True, instruction set), or (False, the reason why there is none); ``RuntimeError`` for an impossible ASWL_ISA."""
    paths = sorted(folder.glob("_native*.so"))
    if not paths:
        return False, "it was not built; reinstall with ASWL_NATIVE=1 and --no-build-isolation to see why"
    try:
        torch.ops.load_library(paths[0])
    except OSError as error:
        return False, f"it does not load: {error.__cause__ or error}"
    name = ctypes.CDLL(str(paths[0])).aswl_isa
    name.restype = ctypes.c_char_p
    isa = name().decode()
    if not isa:
        asked = os.environ["ASWL_ISA"]
        raise RuntimeError(f"ASWL_ISA: want one of {', '.join(SETS)}, and on this processor; got {asked!r}")
    return True, isa


def is_stale(folder: Path) -> bool:
    """Whether the library in ``folder`` was built from other sources than the csrc/ beside it; never where there is none.

    A build that fails leaves the library of an earlier one in place.
    """
    sources = sorted((folder.parent / "csrc").glob("*.*"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest().encode()
    return bool(sources) and any(digest not in path.read_bytes() for path in folder.glob("_native*.so"))


AVAILABLE, DETAIL = _load(Path(__file__).parent)
