"""backward_density: gradients for a superset of the kept weights only (Top-KAST)."""

import copy

import pytest
import torch
from torch import nn

import aswl

DENSITY, WIDER = 0.1, 0.3


def training(density=DENSITY, backward_density=WIDER, steps=10):
    """A model, its sparsifier, and a function that does one step and returns the gradients it had."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 40), nn.ReLU(), nn.Linear(40, 5)
    )
    sparsifier = aswl.ASWL(model, density=density, steps=steps, backward_density=backward_density, dense_gradient=1.0)
    optimizer = torch.optim.SGD(sparsifier.param_groups(lr=0.01), momentum=0.9)
    sparsifier.attach(optimizer)
    x, y = torch.randn(64, 2, 6, 6), torch.randint(5, (64,))

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        grads = [model[i].weight.grad.clone() for i in (0, 3, 5)]
        optimizer.step()
        return grads

    return model, sparsifier, optimizer, step


def test_the_gradient_is_that_of_the_largest_weights_the_budget_shared_as_the_kept_ones_is():
    model, sparsifier, _, step = training()
    total = sparsifier.summary().size
    for done in range(14):
        weights = [model[i].weight.detach().clone() for i in (0, 3, 5)]
        kept = [layer.kept for layer in sparsifier.summary().layers]
        learning = [w.abs() >= model[i].learnable for i, w in zip((0, 3, 5), weights)]
        for keep, some, grad in zip(kept, learning, step(), strict=True):
            assert some.sum() >= keep
            assert (grad[~some] == 0).all() and (grad[some] != 0).float().mean() > 0.1  # none where a ReLU is dead
        assert sum(map(torch.sum, learning)) == max(
            round(WIDER * total), round(sparsifier.settings.target(done) * total)
        )
    pairs = [(keep, int(some.sum())) for keep, some in zip(kept, learning) if not some.all()]
    least, most = (max((s - 1) / (k + 1) for k, s in pairs), min((s + 1) / (k - 1) for k, s in pairs))
    assert len(pairs) > 1 and least < most  # one ratio, up to the rounding of both counts


def test_at_density_1_nothing_changes():
    whole, restricted = training(backward_density=None), training(backward_density=1.0)
    for _ in range(8):
        torch.testing.assert_close(restricted[3](), whole[3](), rtol=0, atol=0)


def test_a_resumed_run_has_the_same_gradients():
    model, sparsifier, optimizer, step = training()
    for _ in range(11):
        step()
    again, other, resumed, next_step = training()
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share its tensors
    other.load_state_dict(sparsifier.state_dict())
    for _ in range(3):
        for got, want in zip(next_step(), step(), strict=True):
            torch.testing.assert_close(got, want)
            assert (got == 0).equal(want == 0)
    assert not any("learnable" in name for name in model.state_dict())


def test_the_finished_model_is_ordinary():
    model, sparsifier, _, step = training()
    for _ in range(11):
        step()
    plain = sparsifier.finalize()
    assert type(plain[3]) is nn.Linear and not hasattr(plain[3], "learnable")
    x = torch.randn(3, 2, 6, 6)
    torch.testing.assert_close(plain(x), model(x))


@pytest.mark.parametrize(
    "options", [{"density": 0.2, "backward_density": 0.1}, {"density": 0.2, "backward_density": 1.5}]
)
def test_refuses_less_than_the_density_and_more_than_all(options):
    with pytest.raises(ValueError, match="want backward_density with density= only, from that to 1"):
        aswl.ASWL(nn.Linear(3, 3), **options)
    with pytest.raises(ValueError, match="want backward_density with density= only"):
        aswl.ASWL(nn.Linear(3, 3), gamma=1.0, backward_density=0.5)
