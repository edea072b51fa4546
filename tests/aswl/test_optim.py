"""aswl.optim: torch's optimizers without a sparsifier, and with one the same weights as torch's and the hooks."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import aswl
from aswl.training import models

KINDS = {"sgd": (aswl.optim.SGD, torch.optim.SGD), "adamw": (aswl.optim.AdamW, torch.optim.AdamW)}
OPTIONS = {
    "sgd": {"lr": 0.05},
    "sgd with all": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
    "sgd, dampened": {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "maximize": True},
    "adamw": {"lr": 0.01, "weight_decay": 0.1},
}
kinds = pytest.mark.parametrize("name", KINDS)


def net(convolution=False):
    torch.manual_seed(0)
    if convolution:
        return models.build("lenet5", (1, 28, 28), 10)
    return nn.Sequential(nn.Linear(12, 60), nn.Tanh(), nn.Linear(60, 30), nn.Tanh(), nn.Linear(30, 4))


def data(step, shape=(12,), classes=4):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, *shape, generator=generator), torch.randint(classes, (16,), generator=generator)


def train(model, optimizer, steps, sparsifier=None, begin=0):
    penalty = sparsifier is not None and sparsifier.settings.gamma is not None
    sign = -1 if optimizer.param_groups[0].get("maximize") else 1
    for step in range(begin, begin + steps):
        x, y = data(step, *(((1, 28, 28), 10) if isinstance(model, models.lenet.LeNet5) else ()))
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) + (sparsifier.penalty() if penalty else 0)
        (sign * loss).backward()
        optimizer.step()
    return {key: value.clone() for key, value in model.state_dict().items()}


def sparse(kind, options, convolution=False, **method):
    model = net(convolution)
    sparsifier = aswl.ASWL(model, **method if "gamma" in method else {"density": 0.2, "steps": 40} | method)
    optimizer = kind(sparsifier.param_groups(adaptive=issubclass(kind, torch.optim.AdamW), **options))
    sparsifier.attach(optimizer)
    return model, sparsifier, optimizer


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        {},
        {"attention_gradient": "both"},
        {"dense_gradient": 0.3, "refresh_every": 3},
        {"pruned_decay": 5.0, "dense_gradient": 0.3},
        {"density": 0.5, "attention_scale": "paper", "schedule": "constant"},
        {"gamma": 0.5},
        {"gamma": 0.5, "attention_gradient": "both"},
    ],
    ids=str,
)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_same_weights_as_torch_and_hooks(options, method):
    ours, theirs = KINDS["adamw" if options is OPTIONS["adamw"] else "sgd"]
    model, sparsifier, optimizer = sparse(ours, options, **method)
    twin, reference, other = sparse(theirs, options, **method)
    for begin in range(0, 40, 10):
        got, want = train(model, optimizer, 10, sparsifier, begin), train(twin, other, 10, reference, begin)
        close(got, want)
        close(sparsifier.state_dict()["signal"], reference.state_dict()["signal"])
        assert sparsifier.summary().kept == pytest.approx(reference.summary().kept, abs=3 if "gamma" in method else 0)
    if "gamma" not in method and method.get("refresh_every", 1) == 1:
        assert sparsifier.summary().kept == round(sparsifier.settings.density * sparsifier.summary().size)


def test_convolutions_too():
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3}
    model, _, optimizer = sparse(aswl.optim.SGD, options, convolution=True)
    twin, _, other = sparse(torch.optim.SGD, options, convolution=True)
    close(train(model, optimizer, 5), train(twin, other, 5))


@kinds
def test_the_pass_is_taken(name, monkeypatch):
    calls, real = [], getattr(aswl.optim, f"fused_{name}_")
    monkeypatch.setattr(aswl.optim, f"fused_{name}_", lambda *a, **k: calls.append(len(a[0])) or real(*a, **k))
    model, _, optimizer = sparse(KINDS[name][0], {"lr": 0.01})
    train(model, optimizer, 3)
    assert calls == [3, 3, 3]
    assert all(p.grad is not None for p in model.parameters())


@kinds
def test_without_a_sparsifier_it_is_torchs(name):
    ours, theirs = KINDS[name]
    model, twin = net(), net()
    got, want = (
        train(m, kind(m.parameters(), lr=0.01, weight_decay=0.1), 5) for m, kind in ((model, ours), (twin, theirs))
    )
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@kinds
def test_states_go_both_ways(name):
    options = {"lr": 0.02} | ({"momentum": 0.9} if name == "sgd" else {})
    ours, theirs = KINDS[name]
    for first, second in ((ours, theirs), (theirs, ours)):
        model, sparsifier, optimizer = sparse(first, options)
        train(model, optimizer, 10)
        twin, other_sparsifier, other = sparse(second, options)
        twin.load_state_dict(model.state_dict())
        other_sparsifier.load_state_dict(sparsifier.state_dict())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        close(train(twin, other, 10, begin=10), train(model, optimizer, 10, begin=10))
        assert other.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
        keys = [o.state_dict()["param_groups"][0].keys() for o in (optimizer, other)]
        assert keys[0] == keys[1]


@kinds
def test_pickle_and_deepcopy(name):
    model = net()
    optimizer = KINDS[name][0](model.parameters(), lr=0.1)
    train(model, optimizer, 2)
    for twin in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert type(twin) is type(optimizer)
        torch.testing.assert_close(twin.state_dict(), optimizer.state_dict())
        twin.step()


@kinds
def test_hooks_run_once_even_after_torchs_own(name):
    ours, theirs = KINDS[name]
    theirs(net().parameters(), lr=0.1)  # its construction wraps the parent's step
    model, sparsifier, optimizer = sparse(ours, {"lr": 0.01})
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    train(model, optimizer, 1)
    assert calls == ["pre", "post"] and sparsifier.step == 1


def test_a_later_hook_that_changes_gradients_counts():
    """Clipping in a hook of the user's, registered after attach, must reach pruned weights too."""
    results = []
    for kind in KINDS["sgd"]:
        model, _, optimizer = sparse(kind, {"lr": 0.1})
        optimizer.register_step_pre_hook(lambda *_, m=model: nn.utils.clip_grad_norm_(m.parameters(), 1e-3) and None)
        results.append(train(model, optimizer, 3))
    for key in ("0.weight", "2.bias", "4.weight"):
        close(results[0][key], results[1][key])


@kinds
def test_a_learning_rate_in_a_tensor(name):
    """The same as the number, and a scheduler changes it where it is."""
    lr = torch.tensor(2**-6)
    results = []
    for rate in (lr, lr.item()):
        model, _, optimizer = sparse(KINDS[name][0], {"lr": rate})
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for step in range(4):
            results.append(train(model, optimizer, 1, begin=step))
            scheduler.step()
    torch.testing.assert_close(results[:4], results[4:], rtol=0, atol=0)
    assert lr == 2**-10


@kinds
def test_closures(name):
    model, _, optimizer = sparse(KINDS[name][0], {"lr": 0.01})
    twin, _, other = sparse(KINDS[name][0], {"lr": 0.01})
    want = train(model, optimizer, 6)
    for step in range(6):

        def closure(step=step):
            other.zero_grad()
            x, y = data(step)
            loss = F.cross_entropy(twin(x), y)
            loss.backward()
            return loss

        assert other.step(closure) > 0
    torch.testing.assert_close(dict(twin.state_dict()), want, rtol=0, atol=0)


@kinds
def test_schedulers(name):
    model, _, optimizer = sparse(KINDS[name][0], {"lr": 0.01})
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0**step)
    train(model, optimizer, 1)
    scheduler.step()
    before = model[0].weight.clone()
    train(model, optimizer, 1)
    assert model[0].weight.equal(before)


@kinds
@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler(name, fused):
    model, sparsifier, optimizer = sparse(KINDS[name][0], {"lr": 0.01, "fused": fused})
    twin, reference, other = sparse(KINDS[name][1], {"lr": 0.01})
    want = train(twin, other, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    step = 0
    for factor in (1.0, float("inf"), 1.0, 1.0, 1.0):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        x, y = data(step)
        optimizer.zero_grad()
        scaler.scale(factor * F.cross_entropy(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor == 1:
            step += 1
        else:
            assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert sparsifier.step == 4
    close(dict(model.state_dict()), want)
    close(sparsifier.state_dict()["signal"], reference.state_dict()["signal"])


@pytest.mark.parametrize(
    "name, options",
    [
        ("sgd", {"differentiable": True}),
        ("sgd", {"weight_decay": torch.tensor(0.01)}),
        ("adamw", {"amsgrad": True}),
        ("adamw", {"betas": (torch.tensor(0.9), 0.99)}),
        ("adamw", {"differentiable": True}),
    ],
    ids=str,
)
def test_outside_the_pass_it_is_torchs_step_with_hooks(name, options, monkeypatch):
    monkeypatch.setattr(aswl.optim, f"fused_{name}_", None)
    options = {"lr": 0.01} | options
    results = []
    for kind in KINDS[name]:
        model, _, optimizer = sparse(kind, options)
        results.append(train(model, optimizer, 5))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@kinds
def test_no_decay_of_pruned_weights(name):
    """Without gradients at pruned weights, those that are not decayed do not move at all."""
    method = {"schedule": "constant", "dense_gradient": 0.0, "pruned_decay": 0.0}
    model, _, optimizer = sparse(KINDS[name][0], {"lr": 0.1, "weight_decay": 0.5}, **method)
    layer = model[2]
    pruned = layer.weight.abs() < layer.threshold
    before = layer.weight.clone()
    train(model, optimizer, 1)
    moved = layer.weight != before
    assert not moved[pruned].any() and moved[~pruned].all()


@kinds
def test_a_refused_step_leaves_everything_untouched(name):
    model, sparsifier, optimizer = sparse(KINDS[name][0], {"lr": 0.1})
    train(model, optimizer, 2)
    before, held = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    for parameter in model.parameters():
        parameter.grad[(0,) * parameter.dim()] = float("nan")
    with pytest.raises(aswl.DeadLayerError):
        optimizer.step()
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), held, rtol=0, atol=0)
    assert sparsifier.step == 2


@kinds
def test_layers_without_gradients_are_passed_over(name):
    model, sparsifier, optimizer = sparse(KINDS[name][0], {"lr": 0.1})
    x, _ = data(0)
    before = model[4].weight.clone()
    model[1](model[0](x)).square().mean().backward()
    optimizer.step()
    assert sparsifier.step == 1 and model[4].weight.equal(before) and model[4].weight.grad is None


@kinds
def test_groups_and_new_layers_states(name):
    """Pruned weights in several groups, in another order, some of them stepping for the first time later."""
    results = []
    for kind in KINDS[name]:
        model = net()
        sparsifier = aswl.ASWL(model, density=0.3, schedule="constant")
        attentions = [layer.attention for layer in model if hasattr(layer, "attention")]
        groups = [{"params": [model[4].weight, model[0].weight], "lr": 0.03}, {"params": [model[2].weight]}]
        options = {"momentum": 0.9, "dampening": 0.2} if name == "sgd" else {}
        optimizer = kind([*groups, {"params": attentions, "lr": 0.001, "eps": 1.0}], lr=0.01, **options)
        sparsifier.attach(optimizer)
        model[2].weight.requires_grad_(False)
        train(model, optimizer, 2)
        model[2].weight.requires_grad_(True)
        results.append(train(model, optimizer, 5))
    close(*results)


def test_the_papers_mode_warns_of_a_missing_penalty_at_the_step():
    model, _, optimizer = sparse(aswl.optim.SGD, {"lr": 0.1}, gamma=1.0)
    x, y = data(0)
    F.cross_entropy(model(x), y).backward()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    assert [w.filename for w in caught] == [__file__] and "not in the loss" in str(caught[0].message)


@pytest.mark.parametrize("name", KINDS)
def test_a_thawed_weight_that_the_optimizer_lacks_stays(name):
    model = net()
    sparsifier = aswl.ASWL(model, density=0.3, schedule="constant")
    model[0].weight.requires_grad_(False)
    held = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = KINDS[name][0](held, lr=0.1, **({"eps": 1.0} if name == "adamw" else {}))
    sparsifier.attach(optimizer)
    model[0].weight.requires_grad_(True)
    before = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    x, y = data(0)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert [torch.equal(layer.weight, was) for layer, was in zip((model[0], model[2]), before)] == [True, False]
