"""Optimizers: who may carry the method, and how it follows closures, accumulation and skipped steps."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import aswl


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 30), nn.Tanh(), nn.Linear(30, 4))


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, 12, generator=generator), torch.randint(4, (32,), generator=generator)


def loss_of(model, seed=0):
    x, y = data(seed)
    return F.cross_entropy(model(x), y)


def start(optimizer=torch.optim.SGD, lr=0.1, **options):
    model = net()
    sparsifier = aswl.ASWL(model, density=0.2, steps=10)
    optimizer = optimizer(sparsifier.param_groups(lr=lr), **options)
    sparsifier.attach(optimizer)
    return model, sparsifier, optimizer


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_closure_gives_the_same_weights():
    direct, _, optimizer = start()
    for step in range(8):
        optimizer.zero_grad()
        loss_of(direct, step).backward()
        optimizer.step()
    closed, _, optimizer = start()
    for step in range(8):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(closed, step)
            loss.backward()
            return loss

        assert optimizer.step(closure) if step % 2 else optimizer.step(closure=closure) > 0
    assert same(state(direct), state(closed))


def test_accumulation_counts_updates_not_batches():
    whole, counted, optimizer = start()
    loss_of(whole).backward()
    optimizer.step()
    parts, sparsifier, optimizer = start()
    x, y = data()
    for i in range(4):
        (F.cross_entropy(parts(x[8 * i : 8 * i + 8]), y[8 * i : 8 * i + 8]) / 4).backward()
    optimizer.step()
    assert sparsifier.step == counted.step == 1
    torch.testing.assert_close(dict(parts.state_dict()), dict(whole.state_dict()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_skipped_by_a_grad_scaler_change_nothing(fused):
    model, sparsifier, optimizer = start(fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(factor):
        optimizer.zero_grad()
        scaler.scale(factor * loss_of(model, sparsifier.step)).backward()
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    before, held = state(model), sparsifier.state_dict()
    step(float("inf"))
    assert same(state(model), before)
    assert sparsifier.step == held["step"] == 1
    assert torch.equal(sparsifier.state_dict()["signal"], held["signal"])
    step(1.0)
    assert sparsifier.step == 2


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients_steer_as_plain_ones_do(fused):
    plain, steered, optimizer = start()
    for step in range(4):
        optimizer.zero_grad()
        loss_of(plain, step).backward()
        optimizer.step()
    model, sparsifier, optimizer = start(fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(sparsifier.state_dict()["signal"], steered.state_dict()["signal"], rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()), rtol=1e-3, atol=1e-5)


def test_schedulers_reach_the_attention_rate():
    _, _, optimizer = start()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.0005]


def test_param_groups():
    model = net()
    sparsifier = aswl.ASWL(model, density=0.2, steps=10)
    weights, attentions = sparsifier.param_groups(lr=0.3, weight_decay=0.01, attention_lr=0.02, momentum=0.5)
    assert [p.shape for p in weights["params"]] == [(30, 12), (30,), (4, 30), (4,)]
    assert [p.shape for p in attentions["params"]] == [(1,), (1,)]
    assert {k: v for k, v in weights.items() if k != "params"} == {"lr": 0.3, "weight_decay": 0.01, "momentum": 0.5}
    assert {k: v for k, v in attentions.items() if k != "params"} == {"lr": 0.02, "weight_decay": 0.0, "momentum": 0.5}


def test_step_before_attach():
    model = net()
    sparsifier = aswl.ASWL(model, density=0.2, steps=10)
    optimizer = torch.optim.SGD(sparsifier.param_groups(lr=0.1))
    loss_of(model).backward()
    before = state(model)
    with pytest.raises(RuntimeError, match="step before attach"):
        optimizer.step()
    assert same(state(model), before)
    torch.optim.SGD(net().parameters()).step()  # others go on
    sparsifier.attach(optimizer)
    optimizer.step()
    assert sparsifier.step == 1


def test_a_forgotten_sparsifier_holds_nobody_up():
    model = net()
    optimizer = torch.optim.SGD(model.parameters())
    aswl.ASWL(model, density=0.2, steps=10)
    gc.collect()
    optimizer.step()


def test_attach_twice():
    _, sparsifier, optimizer = start()
    with pytest.raises(RuntimeError, match="attach: called twice"):
        sparsifier.attach(optimizer)


def test_attach_refuses():
    model = net()
    early = torch.optim.SGD(model.parameters())
    sparsifier = aswl.ASWL(model, density=0.2, steps=10)
    cases = [
        (torch.optim.LBFGS(model.parameters()), TypeError, "LBFGS takes many"),
        ("SGD", TypeError, "want a torch.optim.Optimizer; got str"),
        (early, ValueError, "does not hold the attention of layer '0'"),
        (torch.optim.SGD(net().parameters()), ValueError, "does not hold the weight of layer '0'"),
    ]
    for optimizer, error, match in cases:
        with pytest.raises(error, match=match):
            sparsifier.attach(optimizer)
    optimizer = torch.optim.SGD(sparsifier.param_groups(lr=0.1))  # a refused attempt leaves the way free
    sparsifier.attach(optimizer)


@pytest.mark.parametrize("kind", [torch.optim.SGD, aswl.optim.SGD], ids=["torch", "aswl"])
def test_two_sparsifiers_follow_one_optimizer(kind):
    """An encoder and a decoder with densities of their own: as if each had its own optimizer."""

    def run(together):
        torch.manual_seed(0)
        encoder, decoder = nn.Linear(20, 20), nn.Linear(20, 20)
        options = {"schedule": "constant", "dense_gradient": 0.5}
        parts = [aswl.ASWL(encoder, density=0.2, **options), aswl.ASWL(decoder, density=0.4, **options)]
        groups = [part.param_groups(lr=0.1) for part in parts]
        optimizers = [kind(groups[0] + groups[1])] * 2 if together else [kind(group) for group in groups]
        for part, optimizer in zip(parts, optimizers):
            part.attach(optimizer)
        for _ in range(5):
            for parameter in (*encoder.parameters(), *decoder.parameters()):
                parameter.grad = None
            decoder(encoder(torch.randn(8, 20))).square().mean().backward()
            for optimizer in dict.fromkeys(optimizers):
                optimizer.step()
        return [*state(encoder).values(), *state(decoder).values(), *(part.state_dict()["signal"] for part in parts)]

    torch.testing.assert_close(run(True), run(False), rtol=0, atol=0)


def test_a_copy_wants_to_be_attached_again():
    model, sparsifier, optimizer = start(aswl.optim.SGD)
    loss_of(model).backward()
    optimizer.step()
    other, its, copied = copy.deepcopy((model, sparsifier, optimizer))
    loss_of(other).backward()
    with pytest.raises(RuntimeError, match="before attach"):
        copied.step()  # its hooks were not copied
    its.attach(copied)
    for each, steps in ((model, optimizer), (other, copied)):
        steps.zero_grad()
        loss_of(each).backward()
        steps.step()
    assert its.step == sparsifier.step == 2
    torch.testing.assert_close(state(other), state(model), rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_attentions_that_cannot_move_are_told_of(frozen):
    class Pooled(nn.Sequential):
        def forward(self, x):
            return self[1](self[0](x))

    model = Pooled(nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 8))
    sparsifier = aswl.ASWL(model, density=0.3, schedule="constant")
    for layer in model:
        layer.attention.requires_grad_(not frozen)
    optimizer = torch.optim.SGD(sparsifier.param_groups(lr=0.01))
    sparsifier.attach(optimizer)
    told = []
    for step in range(150):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer.step()
        told += [(step, str(warning.message)) for warning in caught]
    if frozen:  # on purpose
        assert not told
    else:
        ((step, message),) = told
        assert step == 99 and "no gradient, or a frozen attention: 2; leave out with exclude=" in message
