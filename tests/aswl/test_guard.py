import math

import pytest
import torch
from torch import nn

import aswl
from aswl import DeadLayerError
from aswl.guard import PATIENCE, Guard


def sparse_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    sparsifier = aswl.ASWL(net, density=0.5, schedule="constant")
    optimizer = torch.optim.SGD(sparsifier.param_groups(lr=0.1, momentum=0.9))
    sparsifier.attach(optimizer)
    return net, sparsifier, optimizer


def backward(net, optimizer, factor=1.0):
    optimizer.zero_grad()
    (factor * net(torch.randn(32, 8)).square().mean()).backward()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_gradient_is_refused_and_nothing_moves(bad):
    net, _, optimizer = sparse_net()
    for _ in range(2):
        backward(net, optimizer)
        optimizer.step()
    backward(net, optimizer)
    net[2].weight.grad[1, 3] = bad
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(aswl.DeadLayerError, match=r"step 2 refused: the gradient of '2\.weight' holds NaN or infinity"):
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_non_finite_gradient_outside_the_sparse_layers_is_refused():
    net, _, optimizer = sparse_net()
    backward(net, optimizer)
    net[0].bias.grad[0] = math.nan
    with pytest.raises(aswl.DeadLayerError, match=r"'0\.bias'"):
        optimizer.step()


def test_vanished_network_is_refused_at_once():
    net, _, optimizer = sparse_net()
    backward(net, optimizer, factor=0.0)
    with pytest.raises(aswl.DeadLayerError, match="step 0 refused: every gradient of the network is zero"):
        optimizer.step()


def test_vanished_layer_is_refused_after_three_steps():
    net, _, optimizer = sparse_net()
    for step in range(3):
        backward(net, optimizer)
        net[0].weight.grad.zero_()
        if step < 2:
            optimizer.step()
    with pytest.raises(
        aswl.DeadLayerError, match="step 2 refused: the gradient of layer '0' has been zero for 3 steps"
    ):
        optimizer.step()


def test_zero_initialised_block_wakes_in_time():
    """The usual zero initialisation of a residual branch leaves its weights without gradient for one step only."""
    net, sparsifier, optimizer = sparse_net()
    for step in range(6):
        backward(net, optimizer)
        if step % 3 < 2:
            net[0].weight.grad.zero_()
        optimizer.step()
    assert sparsifier.step == 6


def test_switched_off():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16))
    sparsifier = aswl.ASWL(net, density=0.5, schedule="constant", guard=False)
    optimizer = torch.optim.SGD(sparsifier.param_groups(lr=0.1))
    sparsifier.attach(optimizer)
    backward(net, optimizer, factor=0.0)
    optimizer.step()
    assert sparsifier.step == 1


def test_unused_layer_is_not_dead():
    net, sparsifier, optimizer = sparse_net()
    for _ in range(5):
        optimizer.zero_grad()
        net[0](torch.randn(32, 8)).square().mean().backward()
        optimizer.step()
    assert sparsifier.step == 5


@pytest.mark.parametrize("size", [1e-30, 1e-44, 1e25, 3e38])
def test_gradients_whose_squares_overflow_or_vanish_are_gradients(size):
    layer = torch.nn.Linear(3, 3)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, size)
    guard = Guard([""])
    for step in range(PATIENCE + 1):
        guard.check(layer, step)
    layer.weight.grad[1, 1] = float("inf")
    with pytest.raises(DeadLayerError, match="the gradient of 'weight' holds NaN or infinity"):
        guard.check(layer, 0)


@pytest.mark.parametrize("kind", [torch.optim.SGD, aswl.optim.SGD], ids=["torch", "aswl"])
def test_sparse_gradients_are_watched_too(kind):
    model = nn.Sequential(nn.Embedding(10, 8, sparse=True), nn.Linear(8, 2))
    sparsifier = aswl.ASWL(model, density=0.5, schedule="constant")
    optimizer = kind(sparsifier.param_groups(lr=0.1))
    sparsifier.attach(optimizer)
    model(torch.arange(4)).square().sum().backward()
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)
    optimizer.zero_grad()
    model(torch.arange(4)).square().sum().backward()
    model[0].weight.grad._values()[0, 0] = math.nan
    with pytest.raises(DeadLayerError, match="'0.weight' holds NaN"):
        optimizer.step()
