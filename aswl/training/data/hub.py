"""Image sets of the Hugging Face hub, through the optional datasets library."""

import datasets

from aswl.training.data.images import ImageSet
from aswl.training.data.parquet import from_table


def read(source: str, names: tuple[str, ...]) -> ImageSet:
    """Read the first split of names that "hf://owner/name" has; raises ValueError when it has none or is not there."""
    name = source.removeprefix("hf://")
    if name.count("/") != 1 or not all(name.split("/")):
        raise ValueError(f"data: want hf://owner/name; got {source}")
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # network, cache, permissions, a script in the repository: each has its own type
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{source}: cannot be loaded ({type(error).__name__}: {reason})") from error
    return from_splits(splits, source, names)


def from_splits(splits: datasets.DatasetDict, source: str, names: tuple[str, ...]) -> ImageSet:
    """Decode the first split of names among splits; source names them in errors. Raises ValueError if there is none."""
    for name in names:
        if name in splits:
            return from_table(splits[name].with_format("arrow")[:], f"{source} {name}")
    raise ValueError(f"{source}: want a split {' or '.join(names)}; has {', '.join(splits)}")
