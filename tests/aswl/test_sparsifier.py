"""ASWL as its users meet it: modes, attachment, budget, what it trains."""

import warnings

import pytest
import torch
from conv_net import TOTAL, batch, follow, net, train
from torch import nn
from torch.nn import functional as F

import aswl
from aswl.nn import SparseConv2d, SparseLinear


def test_layers_are_swapped_in_place_and_parameters_stay():
    model = net()
    conv, weight = model[0], model[0].weight
    aswl.ASWL(model, density=0.5, schedule="constant")
    assert model[0] is conv
    assert model[0].weight is weight
    assert [type(module) for module in model if module is not model[1]].count(SparseLinear) == 2
    assert type(model[0]) is SparseConv2d


def test_a_linear_layer_alone():
    model = nn.Linear(10, 10)
    sparsifier = aswl.ASWL(model, density=0.3, schedule="constant")
    assert type(model) is SparseLinear
    assert sparsifier.densities() == {"": 0.3}


@pytest.mark.parametrize("density", [0.01, 0.05, 0.5, 1 / 3])
def test_budget_is_exact_at_every_step(density):
    model = net()
    sparsifier, optimizer = follow(model, density=density, steps=20)
    for step in range(20):
        train(model, sparsifier, optimizer, 1, step)
        asked = sparsifier.settings.target(step + 1)
        assert sparsifier.summary().kept == round(asked * TOTAL)
        for index in (0, 4, 5):  # counted by hand, from the weight and the threshold
            layer = model[index]
            assert layer.kept == int((layer.weight.abs() >= layer.threshold).sum()) >= 1
    assert sparsifier.density == pytest.approx(density, abs=0.5 / TOTAL)


def test_kept_weights_are_the_largest():
    model = net()
    sparsifier, optimizer = follow(model, density=0.1, steps=10)
    train(model, sparsifier, optimizer, 10)
    plain = sparsifier.finalize()
    for index in (0, 4, 5):
        kept = plain[index].weight != 0
        magnitude = model[index].weight.abs()
        assert magnitude[kept].min() > magnitude[~kept].max()


def test_attentions_learn_unequal_shares():
    model = net()
    sparsifier, optimizer = follow(model, density=0.1, steps=60, options={"attention_lr": 0.01})
    train(model, sparsifier, optimizer, 60)
    shares = sparsifier.densities()
    assert max(shares.values()) > 1.1 * min(shares.values())
    attentions = {row.name: row.attention for row in sparsifier.summary().layers}
    assert attentions == pytest.approx(shares, abs=1 / 45)  # alpha 1: attention is density, up to one weight


def test_paper_mode_by_hand():
    model = net()
    sparsifier, _ = follow(model, gamma=2.0, weight_penalty=0.1, penalty_target=0.25)
    layers = [model[i] for i in (0, 4, 5)]
    with torch.no_grad():
        for layer, a in zip(layers, (0.5, 0.75, 1.0)):
            layer.attention.fill_(a)
    sparsifier.refresh()
    sizes = [layer.weight.numel() for layer in layers]
    assert [layer.kept for layer in layers] == [n - int((1 - a) * n) for n, a in zip(sizes, (0.5, 0.75, 1.0))]
    density = sum(n * a for n, a in zip(sizes, (0.5, 0.75, 1.0))) / sum(sizes)
    squares = sum(layer.weight[layer.weight.abs() >= layer.threshold].square().sum().item() for layer in layers)
    penalty = sparsifier.penalty()
    assert penalty.item() == pytest.approx(2 * (density - 0.25) ** 2 + 0.1 * squares, rel=1e-5)
    penalty.backward()
    slopes = [4 * (density - 0.25) * n / sum(sizes) for n in sizes]
    assert [layer.attention.grad.item() for layer in layers] == pytest.approx(slopes, rel=1e-5)


def test_paper_mode_scales_outputs_and_finalize_folds():
    model = net().double()
    sparsifier, optimizer = follow(model, gamma=5.0, lr=0.01)
    train(model.float(), sparsifier, optimizer, 5)
    with torch.no_grad():
        model[4].attention.fill_(0.5)
    sparsifier.refresh()
    model.eval()
    plain = sparsifier.finalize()
    x, _ = batch()
    torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-6)
    kept = model[4].weight.abs() >= model[4].threshold
    torch.testing.assert_close(plain[4].weight, 0.5 * model[4].weight * kept)
    torch.testing.assert_close(plain[4].bias, 0.5 * model[4].bias)


def test_paper_mode_stays_above_the_floor():
    model = net()
    sparsifier, optimizer = follow(model, gamma=50.0, guard=False)  # it does die
    optimizer.param_groups[1]["lr"] = 0.5
    train(model, sparsifier, optimizer, 20)
    assert all(row.attention >= 0.01 - 1e-8 and row.kept >= 1 for row in sparsifier.summary().layers)


def test_paper_mode_without_its_penalty_warns_once():
    model = net()
    _, optimizer = follow(model, gamma=1.0)
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    with pytest.warns(UserWarning, match="penalty"):
        optimizer.step()
    optimizer.step()


def test_band_adds_to_the_paper_gradient():
    """By hand: the first step's signal is the band's mean itself, and with alpha 1 the slope of the density is 1."""
    model = net()
    sparsifier, optimizer = follow(model, gamma=1.0, attention_gradient="both", initial_attention=0.5)
    x, y = batch()
    (300 * F.cross_entropy(model(x), y) + sparsifier.penalty()).backward()
    layer = model[4]
    own, product = layer.attention.grad.clone(), layer.weight.grad * layer.weight.detach()
    relative = layer.weight.detach().abs() / layer.threshold
    expected = own + layer.weight.numel() * product[(relative >= 0.85) & (relative <= 1.15)].mean()
    optimizer.step()
    torch.testing.assert_close(layer.attention.grad, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(layer.attention.grad, own, rtol=1e-3)


@pytest.mark.parametrize("thresholding", ["firm", "hard"])
@pytest.mark.parametrize("products", ["dense", "sparse"])
def test_the_trained_network_is_the_one_that_is_handed_over(thresholding, products):
    model = net()
    sparsifier, optimizer = follow(model, density=0.1, steps=10, thresholding=thresholding, products=products)
    train(model, sparsifier, optimizer, 12)
    plain, (x, _) = sparsifier.finalize(), batch()
    torch.testing.assert_close(plain.eval()(x), model.eval()(x))
    assert sum(int(plain[i].weight.count_nonzero()) for i in (0, 4, 5)) == sparsifier.summary().kept
    weight, threshold = plain[4].weight.detach(), model[4].threshold
    nearest = weight[weight != 0].abs().min()  # the one at the threshold
    torch.testing.assert_close(nearest, threshold / 64 if thresholding == "firm" else threshold)


def test_dense_gradient_scales_only_pruned_weights():
    model = net()
    _, optimizer = follow(model, density=0.25, schedule="constant", dense_gradient=0.25)
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    dense = model[4].weight.grad.clone()
    kept = model[4].weight.abs() >= model[4].threshold
    optimizer.step()
    torch.testing.assert_close(model[4].weight.grad, torch.where(kept, dense, 0.25 * dense))


@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, aswl.optim.SGD, aswl.optim.AdamW]
)
def test_pruned_weights_decay_more(kind):
    """By as much as the optimizer's own weight decay takes, once for each time more."""

    def step(pruned_decay, weight_decay):
        model = nn.Linear(30, 20)
        sparsifier = aswl.ASWL(model, density=0.2, schedule="constant", pruned_decay=pruned_decay)
        adaptive = "SGD" not in kind.__name__
        groups = sparsifier.param_groups(lr=0.1, weight_decay=weight_decay, adaptive=adaptive)
        optimizer = kind(groups, **({"betas": (0.9, 0.5), "eps": 1.0} if adaptive else {}))
        with torch.no_grad():
            model.weight.copy_(torch.linspace(-1, 1, 600).view(20, 30))
        sparsifier.attach(optimizer)
        pruned = model.weight.abs() < model.threshold
        model.weight.grad, model.bias.grad = torch.full_like(model.weight, 0.01), torch.ones(20)
        optimizer.step()
        return model.weight.detach(), pruned

    (none, pruned), (once, _), (thrice, _) = step(1, 0.0), step(1, 0.01), step(3, 0.01)
    assert 400 < pruned.sum() < 500
    lost = (none - once).where(pruned, 0)
    assert lost.abs().max() > 1e-4
    rough = {"rtol": 0.05, "atol": 1e-6}  # Adam divides by the size of what it adds up
    torch.testing.assert_close(once - thrice, 2 * lost, **rough)


def test_weight_gradient_is_straight_through():
    model = net()
    sparsifier, _ = follow(model, density=0.25, schedule="constant")
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    plain = sparsifier.finalize()
    plain.train()
    F.cross_entropy(plain(x), y).backward()
    torch.testing.assert_close(model[4].weight.grad, plain[4].weight.grad)


def test_summary_counts_products():
    model = net()
    sparsifier, _ = follow(model, density=0.25, schedule="constant")
    assert sparsifier.summary().layers[0].flops is None
    model(batch()[0])
    conv, fc, _ = sparsifier.summary().layers
    assert (conv.dense_flops, conv.flops) == (2 * 8 * 27 * 36, 2 * conv.kept * 36)
    assert (fc.dense_flops, fc.flops) == (2 * 288 * 20, 2 * fc.kept)
    table = str(sparsifier.summary()).splitlines()
    assert len(table) == 5
    assert table[0].split()[:4] == ["layer", "shape", "kept", "of"]
    assert table[-1].split()[:4] == ["total", f"{round(0.25 * TOTAL):,}", f"{TOTAL:,}", "0.2500"]


def test_compiled_wrapper_can_be_given():
    compiled = torch.compile(net(), backend="eager")
    assert set(aswl.ASWL(compiled, density=0.1, steps=10).densities()) == {"0", "4", "5"}


def test_moves_to_another_dtype():
    model = net()
    _, optimizer = follow(model, density=0.1, steps=10)
    model.double()
    optimizer.zero_grad()
    x, y = batch()
    F.cross_entropy(model(x.double()), y).backward()
    optimizer.step()
    assert model[4].attention.dtype == torch.double


def test_bf16_weights_keep_ties():
    model = net().bfloat16()
    sparsifier = aswl.ASWL(model, density=0.1, schedule="constant")
    for row, layer in zip(sparsifier.summary().layers, (model[0], model[4], model[5])):
        asked = round(row.attention * row.size)
        ties = int((layer.weight.abs().float() == layer.threshold).sum())
        assert asked - 1 <= row.kept <= asked + ties


def test_silent_when_all_is_well():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = net()
        sparsifier, optimizer = follow(model, density=0.1, steps=10)
        train(model, sparsifier, optimizer, 10)
        sparsifier.finalize()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("capturable", [False, True])
def test_another_default_dtype(dtype, capturable):
    torch.set_default_dtype(dtype)
    try:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        sparsifier = aswl.ASWL(model, density=0.5, steps=4, capturable=capturable)
        optimizer = aswl.optim.SGD(sparsifier.param_groups(lr=0.1))
        sparsifier.attach(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().sum().backward()
            optimizer.step()
        assert sparsifier.state_dict()["observed"] == 4
    finally:
        torch.set_default_dtype(torch.float32)
