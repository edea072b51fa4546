"""aswl bench: which products a network does, each once, what they take, and what --tune remembers."""

import json

import pytest
import torch

from aswl.cli import main
from aswl.training.bench import bench, table
from aswl_kernels import native, tuned
from aswl_kernels.break_even import known


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASWL_CACHE", str(tmp_path))
    known.cache_clear()
    tuned.known.cache_clear()
    yield tmp_path
    known.cache_clear()
    tuned.known.cache_clear()


@pytest.fixture
def instant(monkeypatch):
    """What was compared, in no time."""
    seen = []

    def compare(op, x, weight, *geometry, threshold=None):
        seen.append((op.__name__, x, weight, geometry, threshold))
        return {"dense": [2.0, 4.0, 3.0], "sparse": [1.0, 8.0, 9.0]}

    monkeypatch.setattr(tuned, "compare", compare)
    return seen


def test_every_product_once(instant):
    products = list(bench("resnet20", batch=2, density=0.25))
    assert [len(product.names) for product in products] == [1, 6, 1, 5, 1, 5, 1]
    assert products[0].names == ["conv1"] and products[-1].names == ["fc"]
    needs_x = [x.requires_grad for _, x, *_ in instant]
    assert needs_x == [False] + 6 * [True]
    op, x, weight, geometry, threshold = instant[1]
    assert (op, x.shape, geometry) == ("masked_conv2d", (2, 16, 32, 32), ((1, 1), (1, 1), (1, 1), 1))
    assert 0 < (weight.abs() >= threshold).float().mean() < 0.5
    assert products[0].ms == {"dense": 3.0, "sparse": 8.0} and products[0].fastest == "dense"


def test_layout_size_and_dtypes(instant):
    list(bench("resnet50", batch=2, size=32, channels_last=True, dtype="amp"))
    _, x, weight, *_ = instant[1]
    assert (x.dtype, weight.dtype) == (torch.bfloat16, torch.float32)
    assert instant[2][1].is_contiguous(memory_format=torch.channels_last) and not instant[2][1].is_contiguous()
    list(bench("lenet300", batch=1, dtype="bf16"))
    assert instant[-1][1].dtype == instant[-1][2].dtype == torch.bfloat16


def test_the_table(instant):
    text = table(list(bench("lenet300", batch=4))).splitlines()
    assert text[0].split() == ["layers", "input", "weight", "dense,", "ms", "fused,", "ms", "sparse,", "ms", "fastest"]
    assert text[1].split() == ["fc1", "4x784", "300x784", "3.0000", "-", "8.0000", "dense"]


@pytest.mark.skipif(not native.AVAILABLE, reason="no sparse products here")
def test_the_command_measures_and_remembers(cache, capsys, monkeypatch):
    monkeypatch.setattr("aswl.nn._layer.SMALLEST", 1 << 20)
    assert main(["bench", "lenet300", "--batch", "16", "--tune"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "sparse below" in lines[1]
    (key,) = json.loads((cache / "break_even.json").read_text())
    assert "masked_linear [16, 784] by [300, 784]" in key and not (cache / "tuned.json").exists()


def test_elsewhere_the_fastest_goes_to_the_table_of_tuned_products(monkeypatch, cache):
    stored = []
    entry = tuned.Measured("fused", {"dense": 2.0, "fused": 1.0}, "")
    monkeypatch.setattr(tuned, "tune", lambda op, x, weight, *geometry: stored.append(x.shape) or entry)
    monkeypatch.setattr(tuned, "decides", lambda x: True)  # as on a GPU
    products = list(bench("lenet300", batch=4, tune=True))
    assert stored == [(4, 784), (4, 300), (4, 100)] and products[0].fastest == "fused"
    assert table(products).splitlines()[1].split()[-4:] == ["2.0000", "1.0000", "-", "fused"]


@pytest.mark.parametrize(
    "args, message",
    [
        (["nonet"], "model: want one of lenet300"),
        (["--batch", "0"], "batch: want 1 or more; got 0"),
        (["--density", "2"], "density in (0, 1]; got 2.0"),
        (["--device", "tpu"], "device: want auto, cpu, cuda or cuda:N; got 'tpu'"),
    ],
)
def test_what_cannot_be(args, message, capsys):
    assert main(["bench", *args]) == 1
    assert message in capsys.readouterr().err
