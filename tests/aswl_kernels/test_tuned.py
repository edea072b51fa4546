"""Products by measurement: what is looked up, measured and stored; and that a lookup is never more than one."""

import json

import pytest
import torch

from aswl_kernels import masked_conv2d, masked_linear, tuned

X, W = torch.ones(32, 8), torch.ones(4, 8)
LINEAR = "cpu: masked_linear [32, 8] by [4, 8] [], gradients none, float32 by float32"


def entry(products="fused"):
    return {"products": products, "ms": {"dense": 2.0, "fused": 1.0}, "versions": "torch 2"}


def forget():
    tuned.known.cache_clear()
    tuned._look_up.cache_clear()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where this user's table is; nobody has one, and the package ships none."""
    monkeypatch.setenv("ASWL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuned, "files", lambda package: tmp_path / "package")
    forget()
    yield tmp_path / "cache" / "tuned.json"
    forget()


def write(path, table):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(table))
    forget()


def test_the_shipped_table_is_readable(monkeypatch):
    monkeypatch.undo()
    forget()
    table = json.loads((tuned.files("aswl_kernels") / tuned.FILE).read_text())
    assert {key: tuned._entry(value)._asdict() for key, value in table.items()} == table


def test_dense_where_nothing_is_known(cache):
    assert tuned.products("masked_linear", X, W) == "dense"
    write(cache, {LINEAR: entry()})
    assert tuned.products("masked_linear", X, W) == "fused"


def test_the_users_table_goes_above_the_shipped_one(cache, tmp_path):
    other = LINEAR.replace("[32, 8]", "[64, 8]")
    write(tmp_path / "package" / tuned.FILE, {LINEAR: entry("fused"), other: entry("fused")})
    write(cache, {LINEAR: entry("dense")})
    assert tuned.products("masked_linear", X, W) == "dense"
    assert tuned.products("masked_linear", torch.ones(64, 8), W) == "fused"


def test_what_the_key_names(cache):
    write(cache, {LINEAR: entry()})
    for rows in (17, 31, 32):
        assert tuned.products("masked_linear", torch.ones(rows, 8), W) == "fused"
    assert tuned.products("masked_linear", torch.ones(4, 8, 8), W) == "fused"
    others = [
        ("masked_linear", torch.ones(33, 8), W),
        ("masked_linear", X, torch.ones(5, 8)),
        ("masked_linear", X.bfloat16(), W),
        ("masked_linear", X, W.bfloat16()),
        ("masked_linear", X.clone().requires_grad_(), W),
        ("masked_linear", X, W.clone().requires_grad_()),
        ("masked_linear", X.to("meta"), W.to("meta")),
        ("masked_conv2d", X, W),
        ("masked_linear", X, W, (1, 1)),
    ]
    assert {tuned.products(*args) for args in others} == {"dense"}
    with torch.no_grad():
        assert tuned.products("masked_linear", X, W.clone().requires_grad_()) == "fused"
    with torch.autocast("cpu", torch.bfloat16):
        assert tuned.products("masked_linear", X, W) == "dense"
    write(cache, {LINEAR.replace("float32 by", "bfloat16 by"): entry()})
    with torch.autocast("cpu", torch.bfloat16):
        assert tuned.products("masked_linear", X, W) == "fused"


def test_layouts_of_a_convolution_are_two_keys(cache):
    x, weight = torch.ones(2, 3, 8, 8), torch.ones(4, 3, 3, 3)
    geometry = (1, 1), "same", (1, 1), 1
    key = "cpu: masked_conv2d [2, 3, 8, 8] by [4, 3, 3, 3] [(1, 1), 'same', (1, 1), 1] channels_last, gradients none"
    write(cache, {f"{key}, float32 by float32": entry()})
    last = x.contiguous(memory_format=torch.channels_last)
    assert tuned.products("masked_conv2d", x, weight, *geometry) == "dense"
    assert tuned.products("masked_conv2d", last, weight, *geometry) == "fused"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "b"}', '{"a": {"products": "dense"}}', "\0\xff"])
def test_a_damaged_file_costs_nothing(cache, content):
    cache.parent.mkdir()
    cache.write_bytes(content.encode("latin-1"))
    assert tuned.products("masked_linear", X, W) == "dense"
    assert tuned.tune(masked_linear, X, W).products == "dense"
    assert list(json.loads(cache.read_text())) == [LINEAR]


def test_unknown_products_in_a_file_are_no_entry(cache):
    write(cache, {LINEAR: entry("magic")})
    assert tuned.products("masked_linear", X, W) == "dense"


def kernel(faster, wrong=1.0):
    """A masked_linear whose fused products take another time, or are wrong."""

    def masked_linear(x, weight, threshold, attention, bias, products):
        if products == "slow" and not faster:
            raise ValueError("no such products here")
        y = x @ weight.where(weight.abs() >= threshold, 0).T
        for _ in range(0 if products == "fused" else 200):
            y = y + 0
        return y * wrong if products == "fused" else y

    return masked_linear


def test_tuning_stores_the_fastest(cache, monkeypatch):
    monkeypatch.setattr(tuned, "_others", lambda x, weight: ("fused", "slow"))
    x, weight = torch.randn(32, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    assert tuned.products("masked_linear", x, weight) == "dense"
    got = tuned.tune(kernel(faster=False), x, weight)
    assert got.products == "fused" and got.ms["fused"] < got.ms["dense"] and got.ms.keys() == {"dense", "fused"}
    assert tuned.products("masked_linear", x, weight) == "fused"
    assert x.grad is None and weight.grad is None
    forget()  # as a new process
    assert tuned.products("masked_linear", x, weight) == "fused"
    (key,) = json.loads(cache.read_text())
    assert key == LINEAR.replace("none", "xw")


def test_a_wrong_answer_is_never_stored(cache, monkeypatch):
    monkeypatch.setattr(tuned, "_others", lambda x, weight: ("fused",))
    for wrong in (1.01, float("nan")):
        with pytest.warns(UserWarning, match=r"masked_linear \[32, 8\] by \[4, 8\]: fused products are off by"):
            got = tuned.tune(kernel(faster=True, wrong=wrong), torch.randn(32, 8), torch.randn(4, 8))
        assert got.products == "dense" and got.ms.keys() == {"dense"}


def test_a_kernel_that_fails_is_no_choice(cache, monkeypatch):
    def masked_linear(x, weight, threshold, attention, bias, products):
        if products == "fused":
            raise RuntimeError("out of shared memory")
        return x @ weight.T

    monkeypatch.setattr(tuned, "_others", lambda x, weight: ("fused",))
    with pytest.warns(UserWarning, match=r"by \[4, 8\]: fused products fail: RuntimeError: out of shared memory"):
        assert tuned.tune(masked_linear, X, W).ms.keys() == {"dense"}


def test_a_table_that_cannot_be_written_is_kept_in_this_process(cache):
    cache.parent.write_text("a file in the folder's place")
    tuned.tune(masked_linear, X, W)
    assert list(tuned.known()) == [LINEAR]


def test_compiled_whole_with_one_lookup_per_static_shape(cache):
    asked = []

    def f(x, weight):
        asked.append(tuned.products("masked_conv2d", x, weight, (1, 1), "same", (1, 1), 1))
        return masked_conv2d(x, weight, torch.tensor(0.5)) * {"dense": 1, "fused": 2}[asked[-1]]

    key = "cpu: masked_conv2d [4, 3, 8, 8] by [4, 3, 3, 3] [(1, 1), 'same', (1, 1), 1], gradients w, float32 by float32"
    write(cache, {key: entry(), key.replace("[4, 3, 8, 8]", "[8, 3, 8, 8]"): entry()})
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    for batch in (4, 7, 6):  # the second makes the batch a symbol
        compiled(torch.ones(batch, 3, 8, 8), weight)
    assert asked == ["fused", "dense", "dense"]
