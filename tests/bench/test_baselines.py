"""The interface that all methods share: exact densities, living layers, the same bits, a copy that computes the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aswl import optim
from bench.baselines import METHODS
from bench.baselines.method import prunable

SPARSE = [name for name in METHODS if name != "dense"]
OPTIONS = {"rigl": {"every": 5}, "gmp-uniform": {"every": 5}, "gmp-erk": {"every": 5}, "gmp-global": {"every": 5}}
OPTIMIZERS = {
    "nesterov": lambda groups: optim.SGD(groups, momentum=0.9, nesterov=True),
    "momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "plain": lambda groups: torch.optim.SGD(groups),
}
STEPS = 30
SIZES = {"0": 216, "3": 1152, "7": 160}


class Net(nn.Sequential):
    """A convolution, a norm, a convolution, a linear layer: 216 + 1152 + 160 weights. Gradients reach all of them."""

    def __init__(self):
        layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 16, 3, bias=False), nn.GELU()
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def train(name, density=0.1, optimizer="nesterov", amp=False, steps=STEPS, watch=lambda method: None):
    torch.manual_seed(1)
    model = Net().to(memory_format=torch.channels_last)
    method = METHODS[name](model, density=density, steps=steps, **OPTIONS.get(name, {}))
    stepper = OPTIMIZERS[optimizer](method.param_groups(lr=0.05, weight_decay=5e-4))
    method.attach(stepper)
    data = torch.Generator().manual_seed(2)
    for _ in range(steps):
        x = torch.randn(8, 3, 8, 8, generator=data).contiguous(memory_format=torch.channels_last)
        y = torch.randint(10, (8,), generator=data)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            logits = model(x)
        stepper.zero_grad()
        (F.cross_entropy(logits.float(), y) + method.penalty()).backward()
        stepper.step()
        watch(method)
    return method


def test_depthwise_weights_do_not_count():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=4), nn.Linear(8, 8))
    assert list(prunable(model)) == ["1", "2"]


def nonzeros(model):
    return {n: int(m.weight.count_nonzero()) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


@pytest.mark.parametrize("optimizer, amp", [("nesterov", False), ("momentum", True), ("plain", False)])
@pytest.mark.parametrize("name", SPARSE)
def test_the_density_is_exact(name, optimizer, amp):
    method = train(name, optimizer=optimizer, amp=amp)
    assert sum(nonzeros(method.finalize()).values()) == round(0.1 * 1528) == 153
    assert method.density == 153 / 1528


@pytest.mark.parametrize("name", METHODS)
def test_finalize_holds_zeros_and_computes_the_same(name):
    method = train(name)
    plain = method.finalize()
    assert [count / SIZES[name] for name, count in nonzeros(plain).items()] == list(method.densities().values())
    assert [type(module) for module in plain] == [type(module) for module in Net()]
    method.model.eval(), plain.eval()
    x = torch.randn(8, 3, 8, 8)
    torch.testing.assert_close(plain(x), method.model(x))
    with torch.no_grad():
        plain[0].weight.zero_()
    assert method.densities()["0"] > 0  # a copy


@pytest.mark.parametrize("name", METHODS)
def test_two_runs_give_the_same_bits(name):
    first, second = (train(name, amp=True).finalize().state_dict() for _ in range(2))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("name", SPARSE)
def test_no_layer_dies(name):
    alive = []
    train(name, density=0.01, watch=lambda method: alive.append(min(method.densities().values())))
    assert min(alive) > 0 and len(alive) == STEPS
