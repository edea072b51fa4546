"""The peers with learned thresholds against their papers' formulas, and the density that they are brought to."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aswl import optim
from bench.baselines import METHODS
from bench.baselines.asl import ASL, Scaled
from bench.baselines.dst import DST, StepMask, long_tailed
from bench.baselines.learned import Controller, LearnedThresholds
from bench.baselines.shares import global_scores
from bench.baselines.soft_threshold import STR, SoftThreshold

LEARNED = ["str", "dst", "asl"]


def gradients(parametrization, weight, grad):
    """The sparse weight, and the gradients of the weight and of the threshold where it has the gradient ``grad``."""
    weight = weight.clone().requires_grad_()
    sparse = parametrization(weight)
    sparse.backward(grad)
    return sparse.detach(), weight.grad, parametrization.threshold.grad


@pytest.fixture
def weight():
    torch.manual_seed(0)
    return torch.randn(6, 5, dtype=torch.float64)


@pytest.fixture
def grad():
    torch.manual_seed(1)
    return torch.randn(6, 5, dtype=torch.float64)


def test_soft_threshold_by_hand():
    weight = torch.tensor([0.9, -0.6, 0.2, -0.5])
    got = gradients(SoftThreshold(torch.zeros(1)), weight, torch.tensor([2.0, 3.0, 5.0, 7.0]))  # cuts at 0.5
    torch.testing.assert_close(got[0], torch.tensor([0.4, -0.1, 0.0, 0.0]))
    torch.testing.assert_close(got[1], torch.tensor([2.0, 3.0, 0.0, 0.0]))
    torch.testing.assert_close(got[2], torch.tensor([-0.25 * (2.0 - 3.0)]))  # -sigmoid'(0) sum(sign(w) G)


def test_soft_threshold_gradients(weight, grad):
    parametrization = SoftThreshold(torch.tensor([-0.3], dtype=torch.float64))
    cut = 1 / (1 + math.exp(0.3))
    kept = weight.abs() > cut
    sparse, of_weight, of_threshold = gradients(parametrization, weight, grad)
    torch.testing.assert_close(sparse, torch.where(kept, weight - cut * weight.sign(), 0.0))
    torch.testing.assert_close(of_weight, grad * kept)
    torch.testing.assert_close(of_threshold, -cut * (1 - cut) * (grad * weight.sign() * kept).sum().view(1))


def test_long_tailed_estimator_by_hand():
    x = torch.tensor([-1.2, -1.0, -0.7, -0.4, -0.2, 0.0, 0.1, 0.5, 1.0, 1.01])
    torch.testing.assert_close(long_tailed(x), torch.tensor([0.0, 0.4, 0.4, 0.4, 1.2, 2.0, 1.6, 0.4, 0.4, 0.0]))


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1, 1)])
def test_step_mask_gradients(weight, grad, shape):
    threshold = torch.tensor([0.5, 0.0, -0.2, 1.0, 0.3, 0.1], dtype=torch.float64)
    over = weight.abs() - threshold[:, None]
    slope = torch.where(over.abs() > 1, 0.0, torch.where(over.abs() > 0.4, 0.4, 2 - 4 * over.abs()))
    sparse, of_weight, of_threshold = gradients(StepMask(threshold), weight.view(shape), grad.view(shape))
    torch.testing.assert_close(sparse, (weight * (over > 0)).view(shape))
    torch.testing.assert_close(of_weight, (grad * ((over > 0) + weight.abs() * slope)).view(shape))
    torch.testing.assert_close(of_threshold, -(grad * weight * slope).sum(1))


def test_scaled_gradients(weight, grad):
    std = weight.std()
    parametrization = Scaled(torch.tensor([0.7], dtype=torch.float64), share=1.0, limit=5.0)
    width = 0.7 * std + 1e-6
    kept = weight.abs() >= width
    sparse, of_weight, of_threshold = gradients(parametrization, weight, grad)
    torch.testing.assert_close(sparse, weight * kept)
    torch.testing.assert_close(of_weight, grad)  # straight-through
    torch.testing.assert_close(of_threshold, -(grad * weight * ~kept).sum().view(1) * std / width)


def test_gaussian_density():
    parametrization = Scaled(torch.tensor([1.0]), share=0.25, limit=5.0)
    assert parametrization.density().item() == pytest.approx(0.25 * 0.3173, abs=1e-5)  # beyond one standard deviation


@pytest.mark.parametrize("start", [30.0, -30.0, 200.0, -200.0])  # exp(-30 * 30 / 2) is 0 in float32, exp(200) infinite
def test_a_far_threshold_can_still_be_pushed(start):
    for far in (Scaled(torch.tensor([start]), share=0.3, limit=math.inf), StepMask(torch.tensor([start]))):
        assert 0 < far.push() < math.inf
        assert far.margin(torch.tensor([[0.0, 1.0]])).isfinite().all()
    assert SoftThreshold(torch.tensor([2.0])).push() > 0


def test_asl_keeps_no_threshold_below_zero():
    method = ASL(torch.nn.Sequential(torch.nn.Linear(4, 4)), density=0.5, steps=100)
    (learned,) = method.learned.values()
    with torch.no_grad():
        learned.threshold.fill_(-20.0)
        method.adjust()
    assert learned.threshold == 0


@pytest.mark.parametrize(
    "parametrization",
    [
        SoftThreshold(torch.tensor([-2.0])),
        StepMask(torch.linspace(-0.1, 0.3, 6)),
        Scaled(torch.tensor([0.6]), share=0.3, limit=math.inf),
    ],
)
def test_margin_is_where_a_push_zeroes_a_weight(parametrization, weight):
    weight, count = 0.3 * weight.float(), 11
    pushes = Controller(0.1, 100, end=0.7, every=1).pushes([parametrization.margin(weight)], count / weight.numel())
    with torch.no_grad():
        parametrization.threshold += pushes * parametrization.push()
        assert parametrization.sparse(weight).count_nonzero() == count


def test_pushes_by_hand():
    controller = Controller(0.1, 1000, end=0.5, every=10)
    margins = [torch.tensor([[1.0, 5.0]]), torch.tensor([3.0, -2.0])]
    assert controller.pushes(margins, 0.5) == 2.0  # between 3 and 1
    assert controller.pushes(margins, 0.75) == -0.5
    assert controller.pushes(margins, 0.0) == 4.0  # one at least
    assert controller.pushes(margins, 1.0) == -2.0
    assert [controller.due(step) for step in (10, 15)] == [True, False]
    assert controller.density(250) == pytest.approx(0.1 + 0.9 / 8)  # half way on the cubic
    assert controller.density(500) == controller.density(900) == pytest.approx(0.1)


def test_global_counts_by_hand():
    scores = {"a": torch.tensor([9.0, 1.0, 8.0, 2.0]), "b": torch.tensor([7.0, 3.0]), "c": torch.tensor([0.1, 0.2])}
    assert global_scores(scores, 0.375) == {"a": 1, "b": 1, "c": 1}  # 9, 8 and 7, and one at least
    assert global_scores(scores, 0.75) == {"a": 3, "b": 2, "c": 1}


def small_model():
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 8, 3)
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 40), nn.ReLU(), nn.Linear(40, 4))
    return model.to(memory_format=torch.channels_last)


def small_data():
    torch.manual_seed(1)
    x = torch.randn(128, 1, 6, 6)
    return x.contiguous(memory_format=torch.channels_last), x.flatten(1)[:, :4].argmax(1)


def trained(name, steps, density=0.1, watch=lambda method: None, sgd=optim.SGD, **options):
    """A method that trained the small model for ``steps`` updates in bf16; ``watch`` is called after each."""
    model, (x, y) = small_model(), small_data()
    method = METHODS[name](model, density=density, steps=steps, **options)
    optimizer = sgd(method.param_groups(lr=0.1, weight_decay=5e-4), momentum=0.9)
    method.attach(optimizer)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), y) + method.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch(method)
    assert loss.isfinite()
    return method, loss.item()


@pytest.mark.parametrize("name", LEARNED)
def test_density_follows_the_schedule_and_ends_exact(name):
    at, wanted = [], []

    def watch(method):
        if method.step % 5 == 0 or method.step > 75:
            at.append(sum(method.kept().values()))
            wanted.append(round(method.controller.density(method.step) * method.total))

    method, loss = trained(name, 100, watch=watch, every=5)
    assert all(abs(got - want) <= 2 for got, want in zip(at, wanted)), list(zip(at, wanted))
    assert at[-25:] == [round(0.1 * method.total)] * 25  # frozen
    assert loss < 0.7  # chance is 1.39


@pytest.mark.parametrize("name", LEARNED)
def test_finalize_holds_the_sparse_weights(name):
    method, _ = trained(name, 20, sgd=torch.optim.SGD)
    plain, (x, _) = method.finalize(), small_data()
    with torch.no_grad():
        torch.testing.assert_close(plain(x), method.model(x), rtol=0, atol=0)
    assert [type(layer) for layer in plain] == [nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert not any("parametrizations" in key for key in plain.state_dict())
    kept = {name: int(plain.get_submodule(name).weight.count_nonzero()) for name in method.layers}
    assert kept == method.kept()
    assert method.density == sum(kept.values()) / method.total == round(0.1 * method.total) / method.total
    assert method.model[0].parametrizations  # the copy left it alone


@pytest.mark.parametrize("name", LEARNED)
def test_the_lowest_density_leaves_every_layer_a_weight(name):
    method, _ = trained(name, 60, density=0.005)
    assert sum(method.kept().values()) == round(0.005 * method.total)
    assert min(method.kept().values()) >= 1


def test_freezing_keeps_the_values():
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 2, bias=False))
    method = STR(model, density=0.5, steps=100)
    with torch.no_grad():
        method.dense["0"].copy_(torch.tensor([[0.9, -0.6, 0.2, 0.7]]))
        method.dense["1"].copy_(torch.tensor([[0.1], [-0.3]]))
        for learned in method.learned.values():
            learned.threshold.fill_(0.0)  # cuts at 0.5
        method.fix({name: learned.threshold + method.dense[name].abs() for name, learned in method.learned.items()})
    torch.testing.assert_close(model[0].weight, torch.tensor([[0.4, 0.0, 0.0, 0.2]]))
    # the layer's one weight, which its threshold had cut, is there, next to zero
    torch.testing.assert_close(model[1].weight, torch.tensor([[0.0], [0.0]]), atol=1e-6, rtol=0)
    assert method.kept() == {"0": 2, "1": 1}


def test_thresholds_have_their_own_options():
    shared = {"density": 0.1, "steps": 10}
    for method, want in (
        (STR(small_model(), strength=0.02, **shared), {"lr": 0.1, "weight_decay": 0.02}),
        (STR(small_model(), **shared), {"lr": 0.1, "weight_decay": 0.0}),
        (DST(small_model(), **shared), {"lr": 0.1, "weight_decay": 5e-4}),
        (ASL(small_model(), **shared), {"lr": 0.001, "weight_decay": 0.0}),
    ):
        others, thresholds = method.param_groups(lr=0.1, weight_decay=5e-4)
        assert {name: thresholds[name] for name in want} == want
        assert [id(p) for p in thresholds["params"]] == [id(m.threshold) for m in method.learned.values()]
        assert others["lr"] == 0.1 and len(others["params"]) == 6


def own_form(kind, **options) -> LearnedThresholds:
    return kind(small_model(), density=0.1, steps=100, **options)


def test_dst_penalty_and_reset():
    method = own_form(DST, strength=0.5)
    first, last = method.learned["0"].threshold, method.learned["5"].threshold
    with torch.no_grad():
        first.fill_(math.log(2))
        last.fill_(100.0)  # nothing is left
    assert method.penalty().item() == pytest.approx(0.5 * (8 * 0.5 + 40 * 1 + 4 * math.exp(-100)))
    method.penalty().backward()
    torch.testing.assert_close(first.grad, torch.full((8,), -0.5 * 0.5))
    kept = method.kept()["5"]
    method._after()
    assert kept == 0 and method.kept()["5"] == 160
    assert (last == 0).all()
    assert method.learned["3"].threshold.count_nonzero() == 0


def test_dst_does_not_reset_what_was_asked_for():
    assert own_form(DST).reset == 0.01
    assert DST(small_model(), density=0.02, steps=10).reset == 0.002
    assert DST(small_model(), density=0.02, steps=10, strength=1e-3).reset == 0.01


def test_asl_penalty_alone_brings_gaussian_weights_to_the_density():
    torch.manual_seed(0)
    model = nn.Linear(100, 200)
    nn.init.normal_(model.weight, std=0.1)
    method = ASL(model, density=0.2, steps=10_000, strength=10.0)
    threshold = method.learned[""].threshold
    assert math.erf(threshold.item() / math.sqrt(2)) == pytest.approx(0.6 * 0.8)
    optimizer = torch.optim.SGD([threshold], lr=0.05)
    method.attach(optimizer)
    for _ in range(500):
        optimizer.zero_grad()
        method.penalty().backward()
        optimizer.step()
    assert method.penalty().item() < 1e-6
    assert method.density == pytest.approx(0.2, abs=0.01)
    assert method.dense[""].mean().abs() < 1e-7


def test_own_form_has_no_schedule_and_no_frozen_structure():
    method, _ = trained("str", 100, strength=0.0)
    assert all(learned.mask is None for learned in method.learned.values())
    assert method.density > 0.9
