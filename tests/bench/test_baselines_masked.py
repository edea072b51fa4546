"""Methods that train with masks, against masks worked by hand and the equations of their papers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.baselines.ac_dc import ACDC, CIFAR, IMAGENET
from bench.baselines.rigl import RigL
from bench.baselines.shares import erdos_renyi_kernel, global_magnitude
from bench.baselines.sparse_evolution import SET
from bench.baselines.sparse_momentum import SparseMomentum
from bench.baselines.static import Static
from bench.baselines.top_kast import TopKAST


def layers(*weights):
    """A model of one linear layer without a bias for each list of weights."""
    model = nn.Sequential(*(nn.Linear(len(weight), 1, bias=False) for weight in weights))
    for layer, weight in zip(model, weights):
        layer.weight.data.copy_(torch.tensor([weight]))
    return model


def prepared(method, weights, grads, step=1):
    """The method before update ``step + 1``: those weights, masks where they are not 0, gradients, momenta of 1."""
    for i, (layer, weight, grad) in enumerate(zip(method.model, weights, grads)):
        layer.weight.data.copy_(torch.tensor([weight]))
        layer.weight.grad = torch.tensor([grad])
        method.masks[str(i)] = layer.weight.data != 0
    method.attach(torch.optim.SGD(method.param_groups(lr=0.1), momentum=0.9))
    for layer in method.model:
        method.optimizer.state[layer.weight]["momentum_buffer"] = torch.ones_like(layer.weight)
    method.step = step
    with torch.no_grad():
        method.before_step()
    return method


def test_static_masks_are_random_and_stay():
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    largest = model[0].weight.abs() > model[0].weight.abs().flatten().kthvalue(1843).values
    method = Static(model, density=0.1, steps=10)
    before = {name: mask.clone() for name, mask in method.masks.items()}
    assert method.kept() == erdos_renyi_kernel(method.layers, 0.1) and sum(method.kept().values()) == 237
    assert (before["0"] & largest).sum() < 0.3 * method.kept()["0"]  # a tenth of it, by chance
    optimizer = torch.optim.SGD(method.param_groups(lr=0.1, weight_decay=0.1), momentum=0.9)
    method.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 64)).square().sum().backward()
        optimizer.step()
        assert all(torch.equal(layer.weight != 0, before[name]) for name, layer in method.layers.items())


def test_rigl_drops_the_smallest_and_grows_where_the_gradient_is_largest():
    method = RigL(layers([1.0] * 6), density=0.5, steps=100, every=1, fraction=0.5)
    prepared(method, [[3.0, -2, 0.5, 0, 0, 0]], [[0.1, 0.1, 0.9, -5, 0.2, 1]])
    weight = method.model[0].weight
    assert method.masks["0"].tolist() == [[True, True, False, True, False, False]]
    assert weight.tolist() == [[3, -2, 0, 0, 0, 0]]
    assert weight.grad.tolist() == [pytest.approx([0.1, 0.1, 0, -5, 0, 0])]
    assert method.optimizer.state[weight]["momentum_buffer"].tolist() == [[1, 1, 0, 0, 0, 0]]


def test_what_is_dropped_and_grown_at_once_stays():
    method = RigL(layers([1.0] * 6), density=0.5, steps=100, every=1, fraction=0.5)
    prepared(method, [[3.0, -2, 0.5, 0, 0, 0]], [[0.1, 0.1, 9, -5, 0.2, 1]])
    assert method.model[0].weight.tolist() == [[3, -2, 0.5, 0, 0, 0]]
    assert method.optimizer.state[method.model[0].weight]["momentum_buffer"].tolist() == [[1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("step, rate", [(0, 0.3), (25, 0.225), (50, 0.075), (75, 0)])
def test_rigl_drops_along_a_cosine(step, rate):
    method = RigL(layers([1.0] * 6), density=0.5, steps=100)
    method.step = step
    assert method.rate() == pytest.approx(rate)


WHEN = {
    "default": (RigL, {}, [100, 200]),
    "options": (RigL, {"every": 30, "end": 0.5}, [30, 60, 90, 120, 150, 180]),
    "a hundred": (SET, {}, [100, 200]),
    "to the end": (SparseMomentum, {"every": 150}, [150, 300]),
}


@pytest.mark.parametrize("cls, options, want", WHEN.values(), ids=WHEN)
def test_when_masks_change(cls, options, want):
    method = cls(layers([1.0] * 6), density=0.5, steps=400, **options)
    method.model[0].weight.grad = torch.ones(1, 6)
    method.attach(torch.optim.SGD(method.param_groups(lr=0.1)))
    changes = []
    method.rewire = lambda: changes.append(method.step)
    for method.step in range(400):
        with torch.no_grad():
            method.before_step()
    assert changes == want


@pytest.mark.parametrize("steps, every", [(400, 100), (30_000, 300)])
def test_masks_change_once_per_epoch_of_a_hundred_unless_that_is_too_often(steps, every):
    assert SET(layers([1.0] * 6), density=0.5, steps=steps).every == every


def test_set_drops_the_weights_around_zero_of_both_signs():
    torch.manual_seed(0)
    method = SET(layers([1.0] * 12), density=0.5, steps=100, every=1, fraction=0.34)
    prepared(method, [[0.1, 0.2, 0.3, -4, -5, -6, 0, 0, 0, 0, 0, 0]], [[1.0] * 12])
    weight, mask = method.model[0].weight[0].tolist(), method.masks["0"][0].tolist()
    assert sum(mask) == 6 and all(mask[i] for i in (1, 2, 4, 5))
    assert weight[1:3] == pytest.approx([0.2, 0.3]) and weight[4:6] == [-5, -6]
    assert weight[0] == pytest.approx(0.1 * mask[0]) and weight[3] == -4 * mask[3]  # may come back at once
    assert all(0 < abs(w) <= 1e-3 if kept else w == 0 for w, kept in zip(weight[6:], mask[6:]))


def test_set_grows_anywhere():
    grown, signs = torch.zeros(12), set()
    for seed in range(60):
        torch.manual_seed(seed)
        method = SET(layers([1.0] * 12), density=0.5, steps=100, every=1, fraction=0.34)
        grown += prepared(method, [[1.0, 2, 3, -4, -5, -6, 0, 0, 0, 0, 0, 0]], [[1.0] * 12]).masks["0"][0]
        signs |= set(method.model[0].weight[0, 6:].sign().tolist())
    assert grown[[1, 2, 4, 5]].tolist() == [60] * 4
    others = grown[[0, 3, *range(6, 12)]]  # 2 of 8 each time
    assert others.sum() == 120 and others.min() >= 5 and others.max() <= 28
    assert signs == {-1, 0, 1}


def test_sparse_momentum_is_a_mean_of_dense_gradients():
    method = SparseMomentum(layers([1.0] * 4), density=0.5, steps=100, momentum=0.75)
    for grad in ([4.0, 0, -4, 8], [0.0, 4, -4, 0]):
        method.model[0].weight.grad = torch.tensor([grad])
        with torch.no_grad():
            method.before_step()
    assert method.momenta["0"].tolist() == [pytest.approx([0.75, 1, -1.75, 1.5])]


def sparse_momentum(weights, grads, fraction):
    method = SparseMomentum(layers(*weights), density=0.5, steps=10**6, every=1, fraction=fraction)
    return prepared(method, weights, grads)


def test_sparse_momentum_shares_out_by_the_momentum_of_weights():
    weights = [[1.0, 2, 3, 4, 5, 0, 0, 0, 0, 0], [1.0, 2, 3, 4, 5, 0, 0, 0, 0, 0]]
    grads = [[3.0, -3, 3, -3, 3, 9, 1, -8, 2, 7], [1.0, -1, 1, -1, 1, 0, 50, 60, -70, 0]]
    method = sparse_momentum(weights, grads, 0.4001)  # two of each layer go; three come here, one there
    assert method.masks["0"][0].tolist() == [False, False, True, True, True, True, False, True, False, True]
    assert method.masks["1"][0].tolist() == [False, False, True, True, True, False, False, False, True, False]


def test_sparse_momentums_new_weights_start_as_if_gradients_had_been_dense():
    """SGD by hand on dense gradients, as the authors have it, masks on weights alone."""
    torch.manual_seed(0)
    method = SparseMomentum(layers([1.0] * 40), density=0.5, steps=10**6, every=3, fraction=0.5, momentum=0.9)
    weight = method.model[0].weight
    optimizer = torch.optim.SGD(method.param_groups(lr=0.1), momentum=0.9)
    method.attach(optimizer)
    before, buffer = method.masks["0"], torch.zeros(1, 40)
    for _ in range(4):  # masks change before the fourth update
        grad = torch.randn(1, 40)
        buffer = 0.9 * buffer + grad
        weight.grad = grad.clone()
        optimizer.step()
    new = method.masks["0"] & ~before
    assert new.any()
    torch.testing.assert_close(weight[new], -0.1 * buffer[new])


def test_what_a_full_layer_cannot_take_goes_to_the_others():
    weights = [[4.0, 3, 2, 0], [1.0, 2, 3, 0, 0, 0, 0, 0], [1.0, 2, 0, 0]]
    grads = [[99.0] * 4, [1.0] * 8, [1.0] * 4]
    method = sparse_momentum(weights, grads, 0.6)  # 1, 1, 1 go, and 3 * (.98, .01, .01) of them would come
    assert method.kept() == {"0": 4, "1": 3, "2": 1}


def test_sparse_momentum_without_a_gradient():
    weights = [[1.0, 2, 3, 4, 5, 0, 0, 0, 0, 0], [1.0, 2, 3, 4, 5, 0, 0, 0, 0, 0]]
    assert sparse_momentum(weights, [[0.0] * 10] * 2, 0.4001).kept() == {"0": 5, "1": 5}


def test_top_kast_worked_by_hand():
    method = TopKAST(layers([4.0, -3, 2, 1, 0.5, 0.25]), density=1 / 3, steps=9)  # A has 2, B 4
    weight, dense = method.model[0].weight, method.dense["0"]
    assert weight.tolist() == [[4, -3, 0, 0, 0, 0]] and method.kept() == {"0": 2}
    optimizer = torch.optim.SGD(method.param_groups(lr=1.0, weight_decay=0.1))
    method.attach(optimizer)
    method.model(torch.tensor([[1.0, 1, -2, 1, 5, 5]])).sum().backward()
    optimizer.step()
    # 4 - 1 - .4, -3 - 1 + .3, 2 + 2 - 3 * .2, 1 - 1 - 3 * .1, and two that do not learn
    assert dense[0].tolist() == pytest.approx([2.6, -3.7, 3.4, -0.3, 0.5, 0.25])
    assert weight[0].tolist() == pytest.approx([0, -3.7, 3.4, 0, 0, 0])
    assert method.b["0"].tolist() == [[True, True, True, False, True, False]]


def test_top_kast_follows_its_equations():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    dense = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    biases = [model[0].bias.detach().clone(), model[2].bias.detach().clone()]
    method = TopKAST(model, density=0.25, steps=8, backward=1.7)
    optimizer = torch.optim.SGD(method.param_groups(lr=0.5, weight_decay=0.01))
    method.attach(optimizer)
    used = list(method.used.values())
    for _ in range(8):
        x, y = torch.randn(5, 6).double(), torch.randint(4, (5,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

        params = [t.requires_grad_() for t in dense + biases]
        order = [w.detach().abs().flatten().argsort(descending=True) for w in dense]
        a = [torch.zeros(w.numel()).index_fill(0, o[:k], 1).view_as(w) for w, o, k in zip(dense, order, used)]
        b = [torch.zeros(w.numel()).index_fill(0, o[: round(1.7 * k)], 1) for w, o, k in zip(dense, order, used)]
        b = [mask.view_as(w) for mask, w in zip(b, dense)]
        alpha = [(w * m).detach() + (w - w.detach()) * n for w, m, n in zip(dense, a, b)]
        loss = F.cross_entropy(F.linear(F.linear(x, alpha[0], biases[0]).tanh(), alpha[1], biases[1]), y)
        for w, m, n, k in zip(dense, a, b, used):
            loss = loss + 0.01 / 2 * ((m + (n - m) * w.numel() / k) * w.square()).sum()
        loss = loss + 0.01 / 2 * sum(bias.square().sum() for bias in biases)
        grads = torch.autograd.grad(loss, params)
        dense, biases = ([(p - 0.5 * g).detach() for p, g in zip(params, grads)][i : i + 2] for i in (0, 2))
    for ours, want in zip(method.dense.values(), dense):
        torch.testing.assert_close(ours.detach(), want)


def test_top_kast_refuses_a_smaller_b():
    with pytest.raises(ValueError, match="backward >= 1, as what is used learns; got 0.5"):
        TopKAST(layers([1.0, 2]), density=0.5, steps=9, backward=0.5)


def test_phases_of_ac_dc_are_the_papers():
    assert [round(200 * switch) for switch in CIFAR] == [10, 30, 50, 70, 90, 110, 130, 150, 170]
    assert [round(100 * switch) for switch in IMAGENET] == [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85]
    with pytest.raises(ValueError, match="odd number; got 2"):
        ACDC(layers([1.0, 2]), density=0.5, steps=9, switches=(0.1, 0.2))


def test_ac_dc_turns_sparse_and_dense():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 5))
    method = ACDC(model, density=0.2, steps=20, switches=(0.25, 0.5, 0.75))
    optimizer = torch.optim.SGD(method.param_groups(lr=0.1), momentum=0.9)
    method.attach(optimizer)
    densities, masks = [], []
    for step in range(20):
        optimizer.zero_grad()
        model(torch.randn(4, 10)).square().sum().backward()
        optimizer.step()
        densities.append(method.density)
        masks.append(method.masks["0"])
        buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
        if step == 9:  # dense again
            assert (model[0].weight == 0).sum() == (~masks[8]).sum() > 0 and not any(b.any() for b in buffers)
        else:
            assert all(b.any() for b in buffers)
    assert densities == [1.0] * 4 + [0.2] * 5 + [1.0] * 5 + [0.2] * 6
    assert all(mask is masks[14] for mask in masks[14:])
    assert sum(int(layer.weight.count_nonzero()) for layer in (model[0], model[2])) == 24


def test_global_magnitude_leaves_no_layer_empty():
    model = layers([5.0, -4, 3, 1], [-6.0, 2.0], [0.1, 0.2])
    named = {"a": model[0], "b": model[1], "c": model[2]}
    assert global_magnitude(named, 0.5) == {"a": 2, "b": 1, "c": 1}  # 3, 1 and 0 are the largest
    assert global_magnitude(named, 1.0) == {"a": 4, "b": 2, "c": 2}
