"""What ASWL keeps and hands over: refreshes, resumed states, the finished model."""

import copy

import pytest
import torch
from conv_net import TOTAL, follow, net, train
from torch import nn

import aswl
from aswl.nn import SparseConv2d
from aswl_kernels import gate


def test_refresh_every():
    model = net()
    sparsifier, optimizer = follow(model, density=0.1, steps=10, refresh_every=4)
    thresholds = []
    for step in range(8):
        train(model, sparsifier, optimizer, 1, step)
        thresholds.append(model[4].threshold.item())
    assert len(set(thresholds[:3])) == 1
    assert thresholds[2] != thresholds[3] == thresholds[6] != thresholds[7]
    train(model, sparsifier, optimizer, 1, 8)
    plain = sparsifier.finalize()  # brings the thresholds up to date
    assert sum(int((plain[i].weight != 0).sum()) for i in (0, 4, 5)) == round(0.1 * TOTAL)


def test_resumes_bit_identically():
    straight, resumed = net(), net(1)
    sparsifier, optimizer = follow(straight, density=0.05, steps=20, options={"momentum": 0.9})
    train(straight, sparsifier, optimizer, 9)
    state = copy.deepcopy((straight.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    train(straight, sparsifier, optimizer, 11, 9)
    again, optimizer = follow(resumed, density=0.05, steps=20, options={"momentum": 0.9})
    resumed.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    again.load_state_dict(state[2])
    train(resumed, again, optimizer, 11, 9)
    assert all(torch.equal(a, b) for a, b in zip(straight.state_dict().values(), resumed.state_dict().values()))
    assert again.densities() == sparsifier.densities()


def test_state_of_another_model_is_refused():
    sparsifier = aswl.ASWL(net(), density=0.5, schedule="constant")
    other = aswl.ASWL(nn.Linear(3, 4), density=0.5, schedule="constant")
    with pytest.raises(ValueError, match="same pruned layers; these differ: \\['', '0', '4', '5'\\]"):
        other.load_state_dict(sparsifier.state_dict())


def test_finalize_gives_an_ordinary_model():
    model = net()
    sparsifier, optimizer = follow(model, density=0.1, steps=10)
    train(model, sparsifier, optimizer, 10)
    plain = sparsifier.finalize()
    assert [type(module) for module in plain] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Flatten, nn.Linear, nn.Linear]
    assert plain.state_dict().keys() == net().state_dict().keys()
    assert type(model[0]) is SparseConv2d
    train(model, sparsifier, optimizer, 1)  # and the trained one goes on
    one = torch.ones(1)
    torch.testing.assert_close(
        sparsifier.finalize()[4].weight, gate(model[4].weight, one, model[4].threshold, firm=True)
    )


def test_finalize_warns_of_a_dense_or_unfinished_model():
    sparsifier = aswl.ASWL(net(), density=0.1, steps=10)
    with pytest.warns(UserWarning, match="nothing was pruned"):
        sparsifier.finalize()
    model = net()
    sparsifier, optimizer = follow(model, density=0.1, steps=100)
    train(model, sparsifier, optimizer, 10)
    with pytest.warns(UserWarning, match=r"above the 0\.1 asked for, after 10 updates"):
        sparsifier.finalize()


@pytest.mark.parametrize("backward_density", [None, 0.6])
def test_finalize_between_two_refreshes_leaves_the_model_as_it_was(backward_density):
    model = net()
    options = {"density": 0.2, "steps": 10, "refresh_every": 4, "backward_density": backward_density}
    sparsifier, optimizer = follow(model, **options)
    train(model, sparsifier, optimizer, 6)
    before = copy.deepcopy(model.state_dict()), sparsifier.state_dict()["learnable"]
    with pytest.warns(UserWarning, match="is above the 0.2 asked for"):
        plain = sparsifier.finalize()
    torch.testing.assert_close((dict(model.state_dict()), sparsifier.state_dict()["learnable"]), before, rtol=0, atol=0)
    sparsifier.refresh()  # what was delivered is what a refresh would have given
    kept = sum(int(plain[i].weight.count_nonzero()) for i in (0, 4, 5))
    assert kept == sparsifier.summary().kept


@pytest.mark.parametrize("attached_first", [False, True])
@pytest.mark.parametrize("refresh_every", [1, 4])
def test_resumes_alike_whenever_it_is_attached(attached_first, refresh_every):
    options = {"density": 0.2, "steps": 20, "refresh_every": refresh_every}
    model = net()
    sparsifier, optimizer = follow(model, **options)
    train(model, sparsifier, optimizer, 6)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    train(model, sparsifier, optimizer, 4, start=6)

    other = net(seed=1)
    its = aswl.ASWL(other, **options)
    resumed = torch.optim.SGD(its.param_groups(lr=0.05))
    if attached_first:
        its.attach(resumed)
    for part, state in zip((other, resumed, its), saved):
        part.load_state_dict(state)
    if not attached_first:
        its.attach(resumed)
    train(other, its, resumed, 4, start=6)
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
