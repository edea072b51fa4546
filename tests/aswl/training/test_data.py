"""Sources are found or refused in one line, and batches depend on (seed, epoch, batch, rank) alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aswl.training import data
from aswl.training.data import Batches, ImageSet, channel_stats, load

ROOT = Path(data.__file__).parents[3]
REAL = Path(os.environ.get("ASWL_DATA", ROOT / "../shared/data"))


def numbered_set(n: int, channels: int = 1, size: int = 8) -> ImageSet:
    """A set whose labels are the row numbers and whose images are noise."""
    images = torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(0))
    return ImageSet(images.to(torch.uint8), torch.arange(n), tuple(str(i) for i in range(n)))


def batches(source: ImageSet, batch_size: int, **keywords) -> Batches:
    channels = source.input_shape[0]
    return Batches(source, batch_size, **{"train": True, "mean": [0.0] * channels, "std": [1.0] * channels, **keywords})


def run(code: str, **env: str) -> str:
    command, env = [sys.executable, "-c", code], {**os.environ, **env}
    return subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True, timeout=120, check=True).stdout


def test_digits():
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.input_shape == (1, 8, 8) and train.classes == tuple("0123456789")
    # The set begins 0, 1, 2, ..., 9 in order, and its first row of pixels is 0 0 5 13 9 1 0 0 of 16.
    assert train.labels[:8].tolist() == [0, 1, 2, 3, 5, 6, 7, 8] and test.labels[:2].tolist() == [4, 9]
    assert train.images[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert train.images.max() == 255
    assert torch.equal(load("digits", "test").images, test.images)


@pytest.mark.parametrize(
    ("source", "split", "error", "match"),
    [
        ("digits", "validation", ValueError, "split: want one of train, test; got 'validation'"),
        ("absent", "train", FileNotFoundError, "no file or folder .*absent$"),
        ("empty", "train", ValueError, r"want \*.parquet, .*empty holds nothing$"),
        ("other", "train", ValueError, "other holds file0.txt, .*file7.txt and 2 more$"),
        ("other/file3.txt", "train", ValueError, "file3.txt is none of these$"),
    ],
)
def test_load_refuses(tmp_path, source, split, error, match):
    for folder in ("empty", "other"):
        (tmp_path / folder).mkdir()
    for i in range(10):
        (tmp_path / f"other/file{i}.txt").touch()
    with pytest.raises(error, match=match):
        load(source if source == "digits" else tmp_path / source, split)


def test_import_loads_no_data_library():
    code = "import sys, aswl.training.data; print(*sys.modules)"
    assert not {"pyarrow", "PIL", "sklearn", "datasets"} & set(run(code).split())


@pytest.mark.parametrize(
    ("source", "module", "extra"),
    [("digits", "sklearn", "train"), ("FOLDER", "pyarrow", "train"), ("hf://a/b", "datasets", "hub")],
)
def test_missing_library_names_its_extra(tmp_path, source, module, extra):
    (tmp_path / "train.parquet").touch()
    code = f"""
import sys
from aswl.training.data import load
sys.modules[{module!r}] = None
try:
    load({source.replace("FOLDER", str(tmp_path))!r}, "train")
except ImportError as error:
    print(error)
"""
    assert f"needs {module}" in (message := run(code)) and f"pip install 'aswl[{extra}]'" in message


def test_hub_out_of_reach_is_one_line():
    pytest.importorskip("datasets", reason="the hub extra is not installed")
    code = """
from aswl.training.data import load
try:
    load("hf://nobody/nothing", "train")
except ValueError as error:
    print(error)
"""
    message = run(code, HF_HUB_OFFLINE="1")
    assert message.startswith("hf://nobody/nothing: cannot be loaded") and message.count("\n") == 1


@pytest.mark.parametrize(
    ("images", "labels", "classes", "match"),
    [
        (torch.zeros(2, 1, 3, 3), [0, 0], 2, r"want uint8 \[N, C, H, W\].*got float32 \[2, 1, 3, 3\]"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), [0, 0], 2, r"got uint8 \[2, 3, 3\]"),
        (torch.zeros(0, 1, 3, 3, dtype=torch.uint8), [], 2, r"got uint8 \[0, 1, 3, 3\]"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [0], 2, r"want int64 \[2\].*got int64 \[1\]"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [0.0, 0.0], 2, r"got float32 \[2\]"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [0, 2], 2, "labels out of range: row 1 has label 2; want 0 to 1"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), [-1, 0], 2, "row 0 has label -1; want 0 to 1"),
    ],
)
def test_image_set_refuses(images, labels, classes, match):
    with pytest.raises(ValueError, match=match):
        ImageSet(images, torch.tensor(labels), tuple("ab"[:classes]))


@pytest.mark.parametrize(
    ("shape", "known", "named", "misfit"),
    [
        ((1, 2, 2), ("cat", "dog"), ("cat", "dog"), None),
        ((1, 2, 2), ("cat", "dog", "cow"), ("cat", "dog"), None),
        ((1, 2, 2), ("0", "1"), ("cat", "dog"), None),
        ((1, 2, 2), ("cat", "dog"), ("0", "1"), None),
        ((1, 3, 2), ("cat", "dog"), ("cat", "dog"), "want images (1, 3, 2); got (1, 2, 2)"),
        ((1, 2, 2), ("cat",), ("cat", "dog"), "want at most 1 classes; got 2"),
        ((1, 2, 2), ("cat", "dog"), ("dog", "cat"), "want class 0 to be 'cat'; got 'dog'"),
    ],
)
def test_images_that_a_network_cannot_be_tested_on(shape, known, named, misfit):
    images = ImageSet(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([0]), named)
    assert images.misfit(shape, known) == misfit


def test_channel_stats():
    images = numbered_set(100, channels=3).images
    mean, std = channel_stats(images)
    exact = images.double().div(255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(exact.mean(1).tolist(), abs=1e-14)
    assert std == pytest.approx(exact.std(1, correction=0).tolist(), abs=1e-14)
    assert channel_stats(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8)) == ((0.2,), (0.0,))


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    world_size=st.integers(1, 4),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 1000),
    drop_last=st.booleans(),
)
def test_training_shows_every_image_once(n, world_size, batch_size, seed, epoch, drop_last):
    part = n // world_size
    keywords = {"seed": seed, "world_size": world_size, "drop_last": drop_last}
    if batch_size > part:
        with pytest.raises(ValueError, match=f"batch_size: want 1 to {part}, the images of a rank; got {batch_size}"):
            batches(numbered_set(n), batch_size, **keywords)
        return
    ranks = [batches(numbered_set(n), batch_size, rank=rank, **keywords) for rank in range(world_size)]
    labels = [[y.tolist() for _, y in rank.epoch(epoch)] for rank in ranks]
    kept = part // batch_size * batch_size if drop_last else part
    assert {len(rank) for rank in ranks} == {len(rank) for rank in labels} == {-(-kept // batch_size)}
    assert {sum(map(len, rank)) for rank in labels} == {kept}
    seen = [label for rank in labels for batch in rank for label in batch]
    assert len(set(seen)) == len(seen)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 40), world_size=st.integers(1, 4), batch_size=st.integers(1, 50))
def test_evaluation_keeps_order_and_drops_nothing(n, world_size, batch_size):
    source, seen = numbered_set(n), []
    for rank in range(world_size):
        shard = batches(source, batch_size, train=False, rank=rank, world_size=world_size)
        labels = [y for _, y in shard.epoch(0)]
        assert len(labels) == len(shard)
        labels = torch.cat(labels).tolist() if labels else []
        assert labels == list(range(rank, n, world_size))
        seen += labels
    assert sorted(seen) == list(range(n))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), augment=st.sampled_from(["none", "crop", "crop_flip"]), rank=st.integers(0, 1))
def test_resume_is_the_tail_of_the_epoch(data, augment, rank):
    keywords = {"seed": data.draw(st.integers(0, 9)), "augment": augment, "rank": rank, "world_size": 2}
    whole = list(batches(numbered_set(23), 3, **keywords).epoch(5))
    start = data.draw(st.integers(0, len(whole)))
    torch.rand(data.draw(st.integers(0, 3)))  # the global generator has no say
    tail = list(batches(numbered_set(23), 3, **keywords).epoch(5, start))
    assert len(tail) == len(whole) - start
    for (x, y), (whole_x, whole_y) in zip(tail, whole[start:]):
        assert torch.equal(x, whole_x) and torch.equal(y, whole_y)


def test_seeds_epochs_batches_and_ranks_differ():
    one = numbered_set(1).images
    source = ImageSet(one.expand(64, *one.shape[1:]), torch.arange(64), tuple(str(i) for i in range(64)))

    def draw(seed: int, epoch: int, start: int = 0, rank: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        return next(batches(source, 16, seed=seed, augment="crop", rank=rank, world_size=2).epoch(epoch, start))

    draws = [draw(0, 0), draw(0, 1), draw(1, 0), draw(1, 1), draw(0, 0, start=1), draw(0, 0, rank=1)]
    for i, (x, y) in enumerate(draws):
        assert not any(torch.equal(x, other_x) or torch.equal(y, other_y) for other_x, other_y in draws[:i])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    list(batches(numbered_set(10), 5, augment="crop_flip").epoch(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_normalisation():
    source = numbered_set(7, channels=3)
    mean, std = channel_stats(source.images)
    (x, y), *rest = batches(source, 100, train=False, mean=mean, std=std).epoch(0)
    assert not rest and x.dtype == torch.float32 and x.is_contiguous() and y.dtype == torch.int64
    wanted = (source.images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(x.double(), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
@pytest.mark.parametrize("shape", [(1, 9, 6), (3, 8, 8)])
def test_augmentation_is_a_shift_and_a_mirror(augment, shape):
    """Every image is one of the 81 shifts (and mirrors) made one by one, and over 2,000 images all of them occur."""
    one = torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    source = ImageSet(one.expand(2000, *shape), torch.zeros(2000, dtype=torch.int64), ("one",))
    [(x, _)] = batches(source, 2000, augment=augment).epoch(0)
    padded = torch.nn.functional.pad(one, (4, 4, 4, 4))
    shifts = [padded[:, i : i + shape[1], j : j + shape[2]] for i in range(9) for j in range(9)]
    if augment == "crop_flip":
        shifts += [shift.flip(2) for shift in shifts]
    got = x.mul(255).round().to(torch.uint8).flatten(1)
    found = (got[:, None] == torch.stack(shifts).flatten(1)).all(2)  # [2000, 81 or 162]
    assert (found.sum(1) == 1).all()
    assert found.any(0).all()


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"batch_size": 0}, "batch_size: want 1 to 10, the images of a rank; got 0"),
        ({"batch_size": 0, "train": False}, "batch_size: want 1 or more; got 0"),
        ({"batch_size": 11}, "batch_size: want 1 to 10, the images of a rank; got 11"),
        ({"augment": "mixup"}, "augment: want one of none, crop, crop_flip; got 'mixup'"),
        ({"augment": "crop", "train": False}, "evaluation wants 'none'; got 'crop'"),
        ({"rank": 2, "world_size": 2}, "rank: want 0 to world_size - 1 = 1; got 2"),
        ({"mean": (0.5, 0.5)}, r"mean, std: want 1 values each, std positive; got \(0.5, 0.5\)"),
        ({"std": (0.0,)}, "std positive"),
        ({"std": (float("nan"),)}, "std positive"),
    ],
)
def test_batches_refuse(keywords, match):
    with pytest.raises(ValueError, match=match):
        batches(numbered_set(10), **{"batch_size": 5, **keywords})


@pytest.mark.parametrize("start", [-1, 3])
def test_start_outside_the_epoch(start):
    with pytest.raises(ValueError, match=f"start: want 0 to 2, the batches of an epoch; got {start}"):
        batches(numbered_set(10), 5).epoch(0, start)


@pytest.mark.skipif(not REAL.is_dir(), reason="no folder with real data: set ASWL_DATA")
@pytest.mark.parametrize(
    ("folder", "n", "input_shape", "first_labels", "classes", "mean"),
    [
        ("mnist", 10_000, (1, 28, 28), [7, 2, 1, 0, 4], ("0", "1", "2"), 0.1325),
        ("cifar10_jpeg", 10_000, (3, 32, 32), None, ("airplane", "automobile", "bird"), 0.4941),
        ("tiny_imagenet_101", 5_050, (3, 64, 64), None, ("n01443537", "n01641577", "n01698640"), 0.4834),
    ],
)
def test_real_data(folder, n, input_shape, first_labels, classes, mean):
    source = load(REAL / folder, "test")
    assert len(source) == n and source.input_shape == input_shape and source.classes[:3] == classes
    assert first_labels is None or source.labels[:5].tolist() == first_labels
    assert channel_stats(source.images)[0][0] == pytest.approx(mean, abs=1e-4)
