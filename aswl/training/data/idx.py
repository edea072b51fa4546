"""MNIST's idx files, plain or gzipped; Fashion-MNIST and KMNIST come in the same ones."""

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from aswl.training.data.images import ImageSet, numbered

PREFIXES = {"train": "train", "test": "t10k"}


def read(files: list[Path], names: tuple[str, ...]) -> ImageSet:
    """Read the split names[0] from the files of one folder; raises ValueError for a missing or damaged file."""
    prefix = PREFIXES[names[0]]
    images = _array(_find(files, f"{prefix}-images", 3), dims=3)
    labels = _array(_find(files, f"{prefix}-labels", 1), dims=1).to(torch.int64)
    return ImageSet(images.unsqueeze(1), labels, numbered(labels, at_least=10))


def _find(files: list[Path], stem: str, dims: int) -> Path:
    for file in files:
        if file.name.removesuffix(".gz") in (f"{stem}-idx{dims}-ubyte", f"{stem}.idx{dims}-ubyte"):
            return file
    have = ", ".join(file.name for file in files)
    raise ValueError(f"data: want {stem}-idx{dims}-ubyte[.gz] in {files[0].parent}; got {have}")


def _array(file: Path, dims: int) -> Tensor:
    """The uint8 array in a file: two zero bytes, 8 for uint8, the number of dimensions, each of them, the values."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file}: not a whole gzip file ({error})") from error
    header = 4 + 4 * dims
    if content[:4] != bytes((0, 0, 8, dims)):
        raise ValueError(f"{file}: want idx, uint8, {dims} dimensions; it starts with 0x{content[:4].hex()}")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    size = math.prod(shape)
    if size == 0 or len(content) != header + size:
        raise ValueError(f"{file}: want {header} bytes and one for each element of {shape}; got {len(content)} bytes")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)
