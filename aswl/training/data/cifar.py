"""The CIFAR-10 archive as its authors publish it: the Python or the binary version, packed or extracted."""

import io
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aswl.training.data.images import ImageSet

BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
PIXELS = 3 * 32 * 32


def read(files: list[Path], names: tuple[str, ...]) -> ImageSet:
    """Read the split names[0]; raises ValueError for a missing or damaged part, or a pickle with more than arrays."""
    place, parts = _parts(files)
    batches, meta, decode = BATCHES[names[0]], "batches.meta", _decode_pickle
    if "batches.meta.txt" in parts:
        batches, meta, decode = [f"{name}.bin" for name in batches], "batches.meta.txt", _decode_binary
    if missing := [name for name in (meta, *batches) if name not in parts]:
        raise ValueError(f"{place}: want the CIFAR-10 archive; it lacks {', '.join(missing)}")
    if meta == "batches.meta":
        classes = tuple(_field(parts, meta, "label_names", list))
    else:
        classes = tuple(parts[meta].decode().split())
    decoded = [decode(parts, name) for name in batches]
    images, labels = (torch.cat(tensors) for tensors in zip(*decoded))
    return ImageSet(images.view(-1, 3, 32, 32), labels, classes)


def _parts(files: list[Path]) -> tuple[Path, dict[str, bytes]]:
    archives = [file for file in files if file.name.endswith(".tar.gz")]
    extracted = [file for file in files if file not in archives]
    if extracted:  # of the two versions, whichever comes first
        place = extracted[0].parent
        return place, {file.name: file.read_bytes() for file in extracted if file.parent == place}
    try:
        with tarfile.open(archives[0]) as tar:
            return archives[0], {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.isfile()}
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{archives[0]}: not a whole tar.gz file ({error})") from error


def _decode_pickle(parts: dict[str, bytes], name: str) -> tuple[Tensor, Tensor]:
    data = _field(parts, name, "data", np.ndarray)
    if data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
        raise ValueError(f"{name}: want data as uint8 [N, {PIXELS}]; got {data.dtype} {list(data.shape)}")
    return torch.tensor(data), torch.tensor(_field(parts, name, "labels", list), dtype=torch.int64)


def _decode_binary(parts: dict[str, bytes], name: str) -> tuple[Tensor, Tensor]:
    if not parts[name] or len(parts[name]) % (1 + PIXELS):
        raise ValueError(f"{name}: want records of {1 + PIXELS} bytes; got {len(parts[name])} bytes")
    records = torch.frombuffer(bytearray(parts[name]), dtype=torch.uint8).view(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0].to(torch.int64)


def _field(parts: dict[str, bytes], name: str, key: str, kind: type) -> Any:
    try:
        # Python 2 wrote the archive: its str holds pixels as well as names, and latin1 keeps every byte.
        value = _ArraysOnly(io.BytesIO(parts[name]), encoding="latin1").load()[key]
        if not isinstance(value, kind):
            raise TypeError(f"it is of type {type(value).__name__}")
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(
            f"{name}: want a pickled dict with a {kind.__name__} {key!r} ({type(error).__name__}: {error})"
        ) from error
    return value


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain containers and numpy arrays, and refuses whatever could run code."""

    def find_class(self, module: str, name: str) -> object:
        if module.removeprefix("numpy.").removeprefix("_") in ("core.multiarray", "numpy"):
            if name == "_reconstruct":
                return np.empty(0).__reduce__()[0]  # it moved between numpy 1 and 2
            if name in ("ndarray", "dtype"):
                return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
