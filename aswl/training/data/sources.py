"""From the name of a data source to an ImageSet: what is in a place is told from its files."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

from aswl.training.data.images import ImageSet

SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}  # the first name that is there serves
FORMATS = {
    "parquet": ("*.parquet", "data/*.parquet"),
    "idx": ("*-idx?-ubyte", "*-idx?-ubyte.gz", "*.idx?-ubyte", "*.idx?-ubyte.gz"),
    "cifar": (
        "data_batch_*",
        "test_batch*",
        "batches.meta*",
        "cifar-10-batches-py/*",
        "cifar-10-batches-bin/*",
        "cifar-10-python.tar.gz",
        "cifar-10-binary.tar.gz",
    ),
}


def load(source: str | Path, split: str) -> ImageSet:
    """Read one split, "train" or "test" (a source with only a validation split serves it as "test"), into memory.

    source: "digits" (scikit-learn's, every fifth image is test); a folder or file with parquet files, MNIST idx files
    or the CIFAR-10 archive; or "hf://owner/name". Raises FileNotFoundError for a path that does not exist, ImportError
    for a library that is not installed, ValueError for a source that holds no such split or is not what it seems.
    """
    if split not in SPLITS:
        raise ValueError(f"split: want one of {', '.join(SPLITS)}; got {split!r}")
    if source == "digits":
        return _reader("digits").read(split)
    if str(source).startswith("hf://"):
        return _reader("hub", extra="hub").read(str(source), SPLITS[split])
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"data: no file or folder {path}")
    for name, patterns in FORMATS.items():
        if files := _matching(path, patterns):
            return _reader(name).read(files, SPLITS[split])
    wanted = "*.parquet, MNIST's train-images-idx3-ubyte[.gz], cifar-10-python.tar.gz, cifar-10-batches-py or -bin"
    raise ValueError(f"data: want {wanted}; {path} {_contents(path)}")


def _matching(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    if path.is_file():
        return [path] if any(path.match(pattern) for pattern in patterns) else []
    return sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})


def _contents(path: Path) -> str:
    if path.is_file():
        return "is none of these"
    names = sorted(file.name for file in path.iterdir())
    return f"holds {', '.join(names[:8]) or 'nothing'}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _reader(name: str, extra: str = "train") -> ModuleType:
    """Import the module of one format, late, so that no data library is needed for the others."""
    try:
        return import_module(f"aswl.training.data.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(f"{name} data needs {error.name}: pip install 'aswl[{extra}]'") from error
