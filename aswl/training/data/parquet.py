"""Parquet files in the layout of dataset hubs: a struct column {bytes, path}, an integer label, names in the schema."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from aswl.training.data.decode import decode
from aswl.training.data.images import ImageSet, numbered

LABELS = ("label", "labels", "fine_label", "fine_labels")
FILE = re.compile(r"(?P<split>[^.-]+)(-(?P<shard>\d+)-of-(?P<shards>\d+).*)?\.parquet")


def read(files: list[Path], names: tuple[str, ...]) -> ImageSet:
    """Read the shards of the first split of names that is among the files, train.parquet or train-00000-of-00004.parquet.

    Raises ValueError for a split without files, a missing shard, and all that from_table refuses.
    """
    matches = [(file, match) for file in files if (match := FILE.fullmatch(file.name))]
    for name in names:
        if chosen := [(file, match) for file, match in matches if match["split"] == name]:
            break
    else:
        have = ", ".join(file.name for file in files)
        raise ValueError(f"data: want {names[0]}.parquet or its shards in {files[0].parent}; got {have}")
    place = chosen[0][0].parent / name
    if len(chosen) != (wanted := int(chosen[0][1]["shards"] or 1)):
        raise ValueError(f"{place}: want {wanted} shards; got {', '.join(file.name for file, _ in chosen)}")
    try:
        tables = [_read_columns(file) for file, _ in chosen]
        return from_table(pa.concat_tables(tables), str(place))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{place}: not readable as parquet ({error})") from error


def from_table(table: pa.Table, place: str) -> ImageSet:
    """Decode a table; place names it in errors, and rows are counted over all its shards.

    Raises ValueError for a missing column (saying which there are), a missing value, and an image that does not decode.
    """
    image, label = _columns(table.schema, place)
    if null := table[label].null_count:
        raise ValueError(f"{place}: column {label!r} has {null} rows without a value")
    labels = torch.tensor(table[label].to_numpy(), dtype=torch.int64)
    images = decode(pc.struct_field(table[image], "bytes").to_pylist(), place)
    return ImageSet(images, labels, _class_names(table.schema, label) or numbered(labels))


def _read_columns(file: Path) -> pa.Table:
    with pq.ParquetFile(file) as parquet:
        return parquet.read(columns=list(_columns(parquet.schema_arrow, str(file))))


def _columns(schema: pa.Schema, place: str) -> tuple[str, str]:
    images = [field.name for field in schema if _holds_images(field.type)]
    labels = [name for name in LABELS if name in schema.names and pa.types.is_integer(schema.field(name).type)]
    if not images or not labels:
        have = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ValueError(
            f"{place}: want a struct column {{bytes, path}} and an integer column {' or '.join(LABELS)}; has {have}"
        )
    return images[0], labels[0]


def _holds_images(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or (i := kind.get_field_index("bytes")) < 0:
        return False
    return pa.types.is_binary(kind[i].type) or pa.types.is_large_binary(kind[i].type)


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return tuple(info.get("info", {}).get("features", {}).get(label, {}).get("names", ()))
