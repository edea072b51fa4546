import itertools

import pytest
from torch import nn

import aswl
from aswl.schedule import Constant, Polynomial, density_schedule, gradient_schedule


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        # 100 steps: the way down ends at step 70
        ("cubic", {0: 1.0, 35: 0.1 + 0.9 / 8, 70: 0.1, 100: 0.1, 10**6: 0.1}),
        ("linear", {0: 1.0, 35: 0.55, 70: 0.1, 100: 0.1}),
        ("constant", {0: 0.1, 35: 0.1, 100: 0.1}),
        (lambda step: 1 / (1 + step), {0: 1.0, 9: 0.1}),
    ],
    ids=["cubic", "linear", "constant", "callable"],
)
def test_density(kind, values):
    schedule = aswl.ASWL(nn.Linear(4, 4), density=0.1, steps=100, schedule=kind).settings.target
    assert {step: schedule(step) for step in values} == pytest.approx(values, abs=1e-12)


def test_density_between_two_fractions():
    schedule = density_schedule("linear", 0.2, 100, begin=0.2, end=0.6)
    assert [schedule(step) for step in (0, 20, 30, 40, 60, 100)] == pytest.approx([1, 1, 0.8, 0.6, 0.2, 0.2])
    at_once = density_schedule("cubic", 0.2, 100, begin=0.5, end=0.5)
    assert [at_once(step) for step in (49, 50)] == [1, 0.2]


def test_density_never_rises():
    schedule = density_schedule("cubic", 0.02, 1000, begin=0.0, end=0.7)
    values = [schedule(step) for step in range(1200)]
    assert all(a >= b for a, b in itertools.pairwise(values))


@pytest.mark.parametrize(("kind", "steps"), [("cubic", None), ("linear", None), ("quadratic", 10)])
def test_density_refuses(kind, steps):
    with pytest.raises(ValueError, match=f"{kind}.*got None|got '{kind}'"):
        density_schedule(kind, 0.1, steps, begin=0.0, end=0.7)


def test_gradient_follows_the_density():
    target = Polynomial(1.0, 0.04, 0, 10)
    hard = gradient_schedule(None, target, firm=False)
    assert [hard(step) for step in (0, 5, 10, 99)] == pytest.approx([1, 0.52**0.5, 0.2, 0.2])
    firm = gradient_schedule(None, target, firm=True)
    assert {firm(step) for step in range(20)} == {1.0}
    firm = gradient_schedule(None, Polynomial(0.03, 0.005, 0, 10), firm=True)
    assert [firm(step) for step in (0, 4, 8, 10, 99)] == pytest.approx([1, 1, 0.25, 0.0625, 0.0625])


def test_gradient_forms():
    assert gradient_schedule(None, None, firm=False) == gradient_schedule(None, None, firm=True) == Constant(1.0)
    assert gradient_schedule(None, Constant(0.25), firm=False) == Constant(0.5)  # what never changes needs no table
    assert gradient_schedule(None, Constant(0.01), firm=True) == Constant(0.25)
    assert gradient_schedule(0, None, firm=True) == Constant(0.0)
    ramp = Polynomial(1.0, 0.5, 0, 10)
    assert gradient_schedule(ramp, Constant(0.1), firm=True) is ramp


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_gradient_refuses(value):
    with pytest.raises(ValueError, match=f"got {value}"):
        gradient_schedule(value, None, firm=True)
