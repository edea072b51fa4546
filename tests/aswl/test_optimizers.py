"""ASWL with any optimizer, and what adaptive ones need."""

import pytest
import torch
from conv_net import TOTAL, follow, net, train

import aswl


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_any_optimizer(kind):
    model = net()
    sparsifier, optimizer = follow(model, kind, lr=0.01, density=0.1, steps=10)
    train(model, sparsifier, optimizer, 10)
    assert sparsifier.summary().kept == round(0.1 * TOTAL)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, aswl.optim.AdamW, torch.optim.RMSprop])
def test_adaptive_optimizers_take_relative_steps(kind):
    """Next to nothing left: absolute steps of 0.01 would empty a layer at once."""
    model = net()
    sparsifier, optimizer = follow(model, kind, lr=0.001, density=0.05, schedule="constant")
    before = sparsifier.densities()
    train(model, sparsifier, optimizer, 40)
    after = sparsifier.densities()
    assert before != after
    assert all(1 / 2.3 < after[name] / before[name] < 2.3 for name in before)  # e^0.8


def test_a_step_changes_no_share_by_more_than_a_twentieth():
    model = net()
    sparsifier = aswl.ASWL(model, density=0.05, schedule="constant")
    optimizer = torch.optim.AdamW(sparsifier.param_groups(lr=0.001, attention_lr=0.5))
    with pytest.warns(UserWarning, match=r"AdamW divides .* make its groups with param_groups\(adaptive=True\)"):
        sparsifier.attach(optimizer)
    for step in range(20):
        before = torch.stack([layer.attention.detach() for layer in (model[0], model[4], model[5])])
        train(model, sparsifier, optimizer, 1, step)
        factors = torch.stack([layer.attention.detach() for layer in (model[0], model[4], model[5])]) / before
        assert 1 < factors.max() / factors.min() < 1.05 / 0.95 + 1e-4
        assert sparsifier.summary().kept == round(0.05 * TOTAL)


def test_groups_for_adaptive_optimizers():
    sparsifier = aswl.ASWL(net(), density=0.1, schedule="constant")
    (weights, attentions), (_, slow) = sparsifier.param_groups(lr=0.3, adaptive=True), sparsifier.param_groups(lr=0.3)
    assert "eps" not in weights and (attentions["eps"], attentions["lr"], attentions["weight_decay"]) == (
        1.0,
        0.01,
        0.0,
    )
    assert "eps" not in slow and slow["lr"] == 0.001
