"""Every format decodes to the pixels that were written, and every damage is one line that says where."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from aswl.training.data import load

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)  # [N, H, W]
COLOUR = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 2, 1, 0]
NAMES = ["ant", "bee", "cow"]


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_parquet(path: Path, encoded: list, labels: list = LABELS, image: str = "img", label: str = "label") -> None:
    features = {image: {"_type": "Image"}, label: {"names": NAMES, "_type": "ClassLabel"}}
    rows = {image: [{"bytes": content, "path": None} for content in encoded], label: labels[: len(encoded)]}
    schema = pa.schema({image: pa.struct({"bytes": pa.binary(), "path": pa.string()}), label: pa.int64()})
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(rows, schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})}))
    pq.write_table(table, path)


@pytest.mark.parametrize("label", ["label", "labels", "fine_label"])
def test_parquet_shards_in_order(tmp_path, label):
    png = [encode(pixels) for pixels in GREY]
    for i, rows in enumerate((slice(0, 2), slice(2, 3), slice(3, 6))):
        write_parquet(tmp_path / f"data/train-0000{i}-of-00003.parquet", png[rows], LABELS[rows], label=label)
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", png[:2], label=label)
    train, test = load(str(tmp_path), "train"), load(tmp_path, "test")
    assert torch.equal(train.images, torch.from_numpy(GREY)[:, None])
    assert train.labels.tolist() == LABELS and train.classes == tuple(NAMES)
    assert torch.equal(test.images, train.images[:2])
    with pytest.raises(ValueError, match="want train.parquet or its shards in .*; got validation-00000"):
        load(tmp_path / "data/validation-00000-of-00001.parquet", "train")
    (tmp_path / "data/train-00001-of-00003.parquet").unlink()
    with pytest.raises(ValueError, match="train: want 3 shards; got train-00000-of-00003.parquet, train-00002"):
        load(tmp_path, "train")


def test_parquet_file_without_class_names(tmp_path):
    write_parquet(tmp_path / "test.parquet", [encode(pixels) for pixels in COLOUR])
    pq.write_table(pq.read_table(tmp_path / "test.parquet").replace_schema_metadata(), tmp_path / "test.parquet")
    images = load(tmp_path / "test.parquet", "test")
    assert torch.equal(images.images, torch.from_numpy(COLOUR).permute(0, 3, 1, 2))
    assert images.classes == ("0", "1", "2")


def test_grey_images_of_a_colour_set(tmp_path):
    write_parquet(tmp_path / "train.parquet", [encode(GREY[0]), encode(COLOUR[1]), encode(GREY[2])])
    images = load(tmp_path, "train").images
    assert images.shape == (3, 3, 5, 4)
    for row in (0, 2):
        assert torch.equal(images[row], torch.from_numpy(GREY[row]).expand(3, 5, 4))
    assert torch.equal(images[1], torch.from_numpy(COLOUR[1]).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([encode(GREY[0]), b"not an image"], "train: row 1 is not a readable image"),
        ([encode(GREY[0]), encode(COLOUR[1], "JPEG")[:-40]], "row 1 is not a readable image .*truncated"),
        ([encode(GREY[0]), None], "row 1 holds no image bytes"),
        ([encode(GREY[0]), encode(GREY[1]), encode(GREY[2, :4])], "row 2 is 4x4 pixels .*, row 0 is 5x4"),
        ([encode(GREY[0].astype(np.uint16))], "row 0 .*mode I;16 is not 8 bits a channel"),
        ([], "holds no images"),
    ],
)
def test_bad_images(tmp_path, rows, match):
    write_parquet(tmp_path / "train.parquet", rows)
    with pytest.raises(ValueError, match=match):
        load(tmp_path, "train")


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (
            {"image": ["x"], "label": [0]},
            r"train.parquet: want a struct column .*has image \(string\), label \(int64\)",
        ),
        ({"image": [{"bytes": b"", "path": ""}], "y": [0]}, r"has image \(struct<.*>\), y \(int64\)"),
        ({"image": [{"path": ""}], "label": [0]}, "want a struct column"),
        ({"image": [{"bytes": b"", "path": ""}], "label": ["cat"]}, r"integer column .*label \(string\)"),
        ({"image": [{"bytes": b"", "path": ""}] * 2, "label": [0, None]}, "column 'label' has 1 rows without a value"),
    ],
)
def test_bad_columns(tmp_path, columns, match):
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=match):
        load(tmp_path, "train")


def test_bad_parquet(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="train: not readable as parquet"):
        load(tmp_path, "train")
    write_parquet(tmp_path / "train.parquet", [encode(pixels) for pixels in GREY], [0, 1, 2, -1, 0, 0])
    with pytest.raises(ValueError, match="labels out of range: row 3 has label -1; want 0 to 2"):
        load(tmp_path, "train")


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.mark.parametrize("name", ["{}-idx{}-ubyte", "{}.idx{}-ubyte", "{}-idx{}-ubyte.gz"])
def test_idx(tmp_path, name):
    for split, rows in (("train", slice(6)), ("t10k", slice(2))):
        for part, values in (("images", GREY), ("labels", np.array(LABELS, dtype=np.uint8))):
            content = idx(values[rows])
            path = tmp_path / name.format(f"{split}-{part}", values.ndim)
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    train = load(tmp_path, "train")
    assert torch.equal(train.images, torch.from_numpy(GREY)[:, None]) and train.labels.tolist() == LABELS
    assert train.classes == load(tmp_path, "test").classes == tuple("0123456789")
    assert len(load(tmp_path, "test")) == 2


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("train-images-idx3-ubyte", idx(GREY)[:-1], r"want 16 bytes and one for each element of \[6, 5, 4\]; got 135"),
        ("train-images-idx3-ubyte", idx(GREY[:0]), r"\[0, 5, 4\]; got 16 bytes"),
        ("train-images-idx3-ubyte", idx(GREY[0]), "want idx, uint8, 3 dimensions; it starts with 0x00000802"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(GREY))[:-9], "not a whole gzip file"),
        ("train-images-idx3-ubyte", idx(GREY[:5]), r"labels: want int64 \[5\], one per image; got int64 \[6\]"),
        (
            "t10k-images-idx3-ubyte",
            idx(GREY),
            "want train-images-idx3-ubyte.* got t10k-images-idx3-ubyte, train-labels",
        ),
    ],
)
def test_bad_idx(tmp_path, name, content, match):
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array(LABELS, dtype=np.uint8)))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        load(tmp_path, "train")


CIFAR_NAMES = [f"class{i}" for i in range(10)]
CIFAR = RNG.integers(0, 256, (6, 2, 3072), dtype=np.uint8)  # five training batches and the test batch, of 2 images


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2's str, and numpy's function where numpy 1 had it, as in the published archive."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

    def save_bytes(self, content: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(content)

    dispatch[bytes] = save_bytes


def python2(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def cifar_files(version: str) -> dict[str, bytes]:
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    if version == "bin":
        records = {f"{name}.bin": np.insert(CIFAR[i], 0, [i, 9], axis=1).tobytes() for i, name in enumerate(names)}
        return {"batches.meta.txt": "\n".join([*CIFAR_NAMES, ""]).encode(), **records}
    dump, key = (python2, str.encode) if version == "py" else (pickle.dumps, str)
    batches = {name: dump({key("data"): CIFAR[i], key("labels"): [i, 9]}) for i, name in enumerate(names)}
    return {"batches.meta": dump({key("label_names"): CIFAR_NAMES}), **batches}


def write_cifar(folder: Path, files: dict[str, bytes], packed: str | None = None) -> None:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if packed:
        with tarfile.open(folder.parent / packed, "w:gz") as tar:
            tar.add(folder, folder.name)
        for name in files:
            (folder / name).unlink()


@pytest.mark.parametrize(
    ("version", "packed"),
    [("py", None), ("py3", None), ("bin", None), ("py", "cifar-10-python.tar.gz"), ("bin", "cifar-10-binary.tar.gz")],
)
def test_cifar(tmp_path, version, packed):
    folder = tmp_path / f"cifar-10-batches-{'bin' if version == 'bin' else 'py'}"
    write_cifar(folder, cifar_files(version), packed)
    train, test = load(tmp_path, "train"), load(tmp_path / packed if packed else folder, "test")
    pixels = torch.from_numpy(CIFAR).view(6, 2, 3, 32, 32)
    assert torch.equal(train.images, pixels[:5].flatten(0, 1)) and torch.equal(test.images, pixels[5])
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9] and test.labels.tolist() == [5, 9]
    assert train.classes == tuple(CIFAR_NAMES)


class Harmful:
    def __reduce__(self) -> tuple:
        return os.system, ("echo harm > harmed",)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("data_batch_2", pickle.dumps(Harmful()), r"data_batch_2: want .*system is not allowed"),
        ("data_batch_2", pickle.dumps({"data": np.array([Harmful()])}), "system is not allowed"),
        ("data_batch_2", pickle.dumps({"labels": []}), "ndarray 'data' .KeyError"),
        ("data_batch_2", pickle.dumps({"data": CIFAR[0], "labels": "x"}), "list 'labels' .TypeError: .*type str"),
        ("data_batch_2", pickle.dumps({"data": CIFAR[0, :, 1:], "labels": [0, 0]}), r"got uint8 \[2, 3071\]"),
        ("data_batch_2", b"", "data_batch_2: want .*EOFError"),
        ("data_batch_2", pickle.dumps({"data": CIFAR[0], "labels": [0, 10]}), "row 3 has label 10; want 0 to 9"),
        ("data_batch_2", None, "lacks data_batch_2"),
        ("batches.meta", None, "lacks batches.meta"),
        ("batches.meta.txt", b"a", "lacks data_batch_1.bin, data_batch_2.bin"),
    ],
)
def test_bad_cifar(tmp_path, monkeypatch, name, content, match):
    monkeypatch.chdir(tmp_path)  # where harm would show
    files = {**cifar_files("py"), name: content}
    write_cifar(tmp_path / "x", {name: content for name, content in files.items() if content is not None})
    with pytest.raises(ValueError, match=match):
        load(tmp_path / "x", "train")
    assert not (tmp_path / "harmed").exists()


def test_bad_cifar_files(tmp_path):
    write_cifar(tmp_path / "bin", {**cifar_files("bin"), "data_batch_3.bin": bytes(3072)})
    with pytest.raises(ValueError, match="data_batch_3.bin: want records of 3073 bytes; got 3072"):
        load(tmp_path / "bin", "train")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(bytes(range(256)))[:-9])
    with pytest.raises(ValueError, match="cifar-10-python.tar.gz: not a whole tar.gz"):
        load(tmp_path, "train")


def test_hub_splits():
    datasets = pytest.importorskip("datasets", reason="the hub extra is not installed")
    from aswl.training.data import hub

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": [Image.fromarray(pixels) for pixels in COLOUR], "label": LABELS}
    splits = datasets.DatasetDict({"valid": datasets.Dataset.from_dict(rows, features=features).select([2, 0])})
    images = hub.from_splits(splits, "hf://a/b", ("test", "valid"))
    assert torch.equal(images.images, torch.from_numpy(COLOUR[[2, 0]]).permute(0, 3, 1, 2))
    assert images.labels.tolist() == [2, 0] and images.classes == tuple(NAMES)
    with pytest.raises(ValueError, match="hf://a/b: want a split train; has valid"):
        hub.from_splits(splits, "hf://a/b", ("train",))


@pytest.mark.parametrize("source", ["hf://mnist", "hf://a/b/c", "hf:///b"])
def test_hub_names(source):
    pytest.importorskip("datasets", reason="the hub extra is not installed")
    with pytest.raises(ValueError, match=f"want hf://owner/name; got {source}"):
        load(source, "train")
