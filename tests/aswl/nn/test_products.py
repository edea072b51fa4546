"""Which products a sparse layer takes, and what the sparsifier and its summary make of it."""

import pytest
import torch
from harness import prune
from torch import nn

import aswl
from aswl.nn import SparseConv2d, SparseLinear, _layer
from aswl_kernels.break_even import known


@pytest.fixture
def limit(monkeypatch):
    """Every shape counts, and the break-even density is what the test says."""
    limits = [0.3]
    monkeypatch.setattr(_layer, "SMALLEST", 0)
    monkeypatch.setattr(_layer, "eligible", lambda x, weight: True)
    monkeypatch.setattr(_layer, "break_even", lambda op, x, weight, *geometry: limits[0])
    return limits


def layers():
    yield prune(SparseLinear(40, 30), 0.8), torch.randn(8, 40)
    yield prune(SparseConv2d(6, 8, 3, padding=1, groups=2), 0.8), torch.randn(4, 6, 9, 9)


def gradients(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    return y.detach(), *torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))


@pytest.mark.parametrize("products", ["fused", "sparse"])
def test_all_products_give_the_same(products):
    for layer, x in layers():
        layer.products = "dense"
        want = gradients(layer, x)
        layer.products = products
        torch.testing.assert_close(gradients(layer, x), want)
        assert layer.last_products == products


def test_sparse_below_the_break_even_density_and_dense_above(limit):
    for layer, x in layers():
        layer(x)
        assert (layer.last_products, layer.break_even) == ("sparse", limit[0])
        limit[0] = 0.1
        layer(x)
        assert (layer.last_products, layer.break_even) == ("dense", 0.1)
        limit[0] = 0.3
        prune(layer, 0.3)
        layer(x)
        assert layer.last_products == "dense"  # the density of the new threshold


def test_what_the_table_of_tuned_products_says(monkeypatch):
    monkeypatch.setattr(_layer.tuned, "decides", lambda x: True)  # as on a GPU
    asked = []
    monkeypatch.setattr(_layer.tuned, "products", lambda op, *args: asked.append((op, *args)) or "sparse")
    for layer, x in layers():
        asked.clear()
        layer(x)
        assert layer.last_products == "sparse" and layer.break_even is None
        assert asked[0][1] is x and asked[0][2] is layer.weight
        layer.products = "dense"
        layer(x)
        assert layer.last_products == "dense" and len(asked) == 1
    assert asked[0][0] == "masked_conv2d" and asked[0][3:] == ((1, 1), (1, 1), (1, 1), 2)


def test_a_dense_layer_is_not_measured(limit, monkeypatch):
    monkeypatch.setattr(_layer, "break_even", lambda *_: pytest.fail("measured"))
    layer = SparseLinear(40, 30)
    layer(torch.randn(8, 40))
    assert layer.last_products == "dense" and layer.break_even is None


def test_small_layers_are_not_measured(monkeypatch):
    monkeypatch.setattr(_layer, "break_even", lambda *_: pytest.fail("measured"))
    for layer, x in layers():
        layer(x)
        assert layer.last_products == "dense"


def test_the_count_is_taken_once_per_threshold(limit, monkeypatch):
    counts = []
    density = SparseLinear.density
    monkeypatch.setattr(SparseLinear, "density", property(lambda self: counts.append(1) or density.fget(self)))
    layer, x = next(layers())
    layer(x), layer(x)
    assert len(counts) == 1
    prune(layer, 0.9)
    layer(x)
    assert len(counts) == 2
    layer.note_density(0.6)
    layer(x)
    assert len(counts) == 2 and layer.last_products == "dense"


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


def trained(products, steps=12, **options):
    """A sparsified model after a few steps."""
    network = model()
    sparsifier = aswl.ASWL(network, density=0.2, steps=steps, products=products, **options)
    optimizer = torch.optim.SGD(sparsifier.param_groups(lr=0.05), momentum=0.9)
    sparsifier.attach(optimizer)
    x, y = torch.randn(16, 20), torch.randint(10, (16,))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network, sparsifier


def test_training_goes_the_same_way_on_all_products(limit):
    dense, sparse = trained("dense")[0], trained("sparse")[0]
    torch.testing.assert_close(list(sparse.parameters()), list(dense.parameters()), rtol=1e-4, atol=1e-5)
    hard, fused = (trained(products, thresholding="hard")[0] for products in ("dense", "fused"))
    torch.testing.assert_close(list(fused.parameters()), list(hard.parameters()), rtol=1e-4, atol=1e-5)
    automatic, sparsifier = trained("auto")
    torch.testing.assert_close(list(automatic.parameters()), list(dense.parameters()), rtol=1e-4, atol=1e-5)
    layers = sparsifier.summary().layers
    assert [layer.products for layer in layers] == ["sparse" if layer.density < 0.3 else "dense" for layer in layers]
    assert "sparse" in {layer.products for layer in layers}
    assert "sparse, sparse below 0.300" in str(sparsifier.summary())


def test_the_sparsifier_tells_layers_their_density_and_products(limit, monkeypatch):
    monkeypatch.setattr(SparseLinear, "density", property(lambda self: pytest.fail("counted")))
    network, _ = trained("auto")
    assert {layer.products for layer in (network[0], network[2])} == {"auto"}


def test_a_resumed_run_knows_the_same_break_evens():
    _, sparsifier = trained("auto")
    known()["a machine: a shape"] = 0.125
    state = sparsifier.state_dict()
    del known()["a machine: a shape"]
    sparsifier.load_state_dict(state)
    assert known().pop("a machine: a shape") == 0.125
    sparsifier.load_state_dict({name: value for name, value in state.items() if name != "break_even"})


def test_refuses_other_products():
    with pytest.raises(
        ValueError, match=r"ASWL: want products one of \('auto', 'dense', 'fused', 'sparse'\); got 'fast'"
    ):
        aswl.ASWL(model(), density=0.5, products="fast")


def test_a_finished_layer_forgets_its_products(limit):
    for layer, x in layers():
        layer.products = "sparse"
        layer(x)
        assert not vars(layer.to_dense()).keys() & {"products", "last_products", "break_even", "_share"}
