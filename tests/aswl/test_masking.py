"""Masks made all at once: the same training, fewer launches, and never an old mask."""

import copy

import pytest
import torch
import torch.nn.functional as F
from graphs import Tape
from torch import nn
from torch.utils.checkpoint import checkpoint

import aswl
from aswl import masking


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")
        self.strided = nn.Conv2d(8, 8, 3, stride=2, bias=False)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.tied = nn.Linear(16, 8)
        self.tied.weight = self.second.weight

    def forward(self, x):
        x = self.strided(self.conv(x).relu()).relu().mean((2, 3))
        x = self.first(x).relu()
        return self.second(x) + self.tied(x)


def prepare(**options):
    torch.manual_seed(0)
    model = Net()
    sparsifier = aswl.ASWL(model, density=0.3, steps=4, **options)
    optimizer = aswl.optim.SGD(sparsifier.param_groups(lr=0.1), momentum=0.9)
    sparsifier.attach(optimizer)
    return model, sparsifier, optimizer


def train(model, optimizer, steps=6, **autocast):
    torch.manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(4, 3, 8, 8), torch.randint(8, (4,))
        optimizer.zero_grad()
        with torch.autocast("cpu", **autocast) if autocast else torch.enable_grad():
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
    return [*model.state_dict().values(), *(p.grad for p in model.parameters())]


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(masking, "DEVICES", ("cpu", "cuda"))


@pytest.fixture
def calls(monkeypatch):
    """How many weights each call masks."""
    counted, own = [], masking.gate_all
    monkeypatch.setattr(masking, "gate_all", lambda weights, *rest: counted.append(len(weights)) or own(weights, *rest))
    return counted


@pytest.mark.parametrize("autocast", [{}, {"dtype": torch.bfloat16}], ids=["fp32", "autocast"])
def test_the_same_training_to_the_bit(autocast, monkeypatch, calls):
    model, _, optimizer = prepare(products="dense")
    want = train(model, optimizer, **autocast)
    assert calls == []  # not on a CPU
    monkeypatch.setattr(masking, "DEVICES", ("cpu",))
    model, _, optimizer = prepare(products="dense")
    got = train(model, optimizer, **autocast)
    assert calls == [4] * 6
    for mine, its in zip(got, want, strict=True):
        assert torch.equal(mine, its)
    assert all(layer.masked is None for layer in model.modules() if isinstance(layer, aswl.nn.SparseLayer))


def test_one_launch_for_all(at_once):
    model, _, _ = prepare(products="dense")
    tape, x = Tape(), torch.randn(4, 3, 8, 8)
    with tape:
        model(x)
    assert (tape.launches()["gate"], tape.launches()["gate_all"]) == (0, 1)


def test_an_edit_behind_the_back_is_seen(at_once):
    model, _, _ = prepare(products="dense")
    x = torch.randn(2, 3, 8, 8)
    model(x)
    model.first.weight.data.mul_(3)  # changes no version
    want = model.first.forward(torch.ones(1, 8))
    seen = []
    model.first.register_forward_hook(lambda layer, args, output: seen.append(layer.masked))
    model(x)
    torch.testing.assert_close(F.linear(torch.ones(1, 8), seen[0], model.first.bias), want)


def test_layers_out_of_the_ordinary_mask_their_own(at_once, calls):
    for options in ({"gamma": 1.0}, {"attention_gradient": "both"}, {"attention_scale": "paper"}):
        net = Net()
        aswl.ASWL(net, **{"density": 0.3, "steps": 4} | options if "gamma" not in options else options)
        net(torch.randn(2, 3, 8, 8))
    assert calls == []
    model, _, _ = prepare(backward_density=0.5)
    model(torch.randn(2, 3, 8, 8))
    assert calls == []
    model, _, _ = prepare()
    model.strided.last_products = "fused"
    model(torch.randn(2, 3, 8, 8))
    assert calls == [3]
    torch.func.vmap(model)(torch.randn(2, 2, 3, 8, 8))
    assert calls == [3]


def test_other_parameters_in_their_place(at_once):
    model, _, _ = prepare(products="dense")
    doubled = {name: 2 * parameter.detach() for name, parameter in model.named_parameters()}
    x = torch.randn(2, 3, 8, 8)
    got = torch.func.functional_call(model, doubled, x)
    assert not torch.allclose(got, model(x))
    assert torch.equal(got, torch.func.functional_call(model, {k: nn.Parameter(v) for k, v in doubled.items()}, x))


def test_large_layers_mask_their_own(at_once, calls, monkeypatch):
    monkeypatch.setattr(masking, "LARGEST", 200)
    model, _, _ = prepare()
    model(torch.randn(2, 3, 8, 8))
    assert calls == [2]  # 128 weights and 128, not 216 and 576


def test_another_dtype_than_the_masks(at_once):
    model, _, _ = prepare(products="dense")
    model.conv.register_forward_hook(lambda layer, args, output: output.to(torch.bfloat16))
    model.strided.register_forward_hook(lambda layer, args, output: output.float())
    assert model(torch.randn(2, 3, 8, 8)).dtype == torch.float32


def test_a_copy_masks_its_own_weights(at_once, calls):
    model, _, _ = prepare(products="dense")
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    want = model(x)
    assert not torch.allclose(twin(x), want)
    torch.testing.assert_close(model(x), want)
    assert calls == [4] * 3


def test_nothing_is_left_after_an_error_or_the_end(at_once):
    model, sparsifier, optimizer = prepare()
    with pytest.raises(ValueError):
        model(torch.randn(2, 4, 8, 8))
    assert model.conv.masked is None
    train(model, optimizer)
    plain, x = sparsifier.finalize(), torch.randn(2, 3, 8, 8)
    assert not plain._forward_pre_hooks and not plain._forward_hooks and not plain._forward_hooks_always_called
    torch.testing.assert_close(plain(x), model(x))
    assert len(model._forward_pre_hooks) == 1


def test_a_checkpointed_forward(at_once):
    model, _, _ = prepare(products="dense")
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    gradients = []
    for forward in (model, lambda x: checkpoint(model, x, use_reentrant=False), model):
        (gradient,) = torch.autograd.grad(forward(x).square().sum(), x)
        gradients.append(gradient)
    part = checkpoint(lambda x: model.strided(model.conv(x)), x, use_reentrant=False)
    assert torch.equal(gradients[0], gradients[1])
    torch.autograd.grad(part.sum(), x)
