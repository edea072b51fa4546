"""The method's formulas against tables worked by hand, and its gradients against finite differences of the loss."""

import pytest
import torch
from torch import nn

from aswl import attention as rules


@pytest.mark.parametrize(
    ("attention", "alpha", "ratio"),
    [
        (1.0, 1.0, 0.0),
        (0.75, 1.0, 0.25),
        (0.5, 2.0, 0.25),
        (0.75, 0.5, 0.5),
        (0.001, 1.0, 0.99),  # the floor
        (1.2, 1.0, 0.0),
    ],
)
def test_pruning_ratio(attention, alpha, ratio):
    got = rules.pruning_ratio(torch.tensor([attention], dtype=torch.double), alpha)
    assert got.item() == pytest.approx(ratio)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_slope_at_one_is_neither_zero_nor_infinite(alpha):
    attention = torch.tensor([1.0, 0.9995, 0.5], requires_grad=True)
    rules.pruning_ratio(attention, alpha).sum().backward()
    near = 0.001 ** (alpha - 1)
    torch.testing.assert_close(-attention.grad, torch.tensor([near, near, alpha * 0.5 ** (alpha - 1)]))


@pytest.mark.parametrize(
    ("attention", "size", "min_keep", "keep"),
    [
        (1.0, 10, 1, 10),
        (0.75, 10, 1, 8),  # n - floor(2.5)
        (0.01, 10, 1, 1),  # n - floor(9.9)
        (0.01, 1000, 1, 10),
        (0.01, 1000, 25, 25),
        (0.01, 3, 25, 3),
    ],
)
def test_keep_count(attention, size, min_keep, keep):
    got = rules.keep_count(torch.tensor([attention]), torch.tensor([size]), 1.0, min_keep)
    assert got.tolist() == [keep]


def test_soft_density_by_hand():
    attention = torch.tensor([0.5, 1.0], requires_grad=True)
    density = rules.soft_density(attention, torch.tensor([30, 10]), 1.0)
    density.backward()
    assert density.item() == pytest.approx(25 / 40)
    assert attention.grad.tolist() == pytest.approx([30 / 40, 10 / 40])


def test_marginal_value_by_hand():
    weight = torch.tensor([0.05, -0.9, 1.0, 1.1, -2.0])
    grad = torch.tensor([9.0, 1.0, -2.0, 3.0, 9.0])
    # within 15% of 1: -0.9, 1.0 and 1.1, whose products are -0.9, -2.0 and 3.3
    assert rules.marginal_value(weight, grad, torch.tensor(1.0), 0.15).item() == pytest.approx(-0.4 / 3)
    assert rules.marginal_value(weight, grad, torch.tensor(50.0), 0.15).item() == 0  # an empty band
    assert rules.marginal_value(weight, torch.full((5,), torch.nan), torch.tensor(1.0), 0.15).isnan()


def test_marginal_value_predicts_the_loss():
    """Keeping the next weights changes the loss by their number times the marginal value, to first order."""
    torch.manual_seed(0)
    weight, x, y = torch.randn(40, 50).double(), torch.randn(500, 50).double(), torch.randn(500, 40).double()
    magnitudes = weight.abs().flatten().sort(descending=True).values
    keep, more = 600, 60
    threshold = magnitudes[keep - 1]

    def loss(t):
        sparse = (weight * (weight.abs() >= t)).requires_grad_()
        return nn.functional.mse_loss(x @ sparse.mT, y), sparse

    before, sparse = loss(threshold)
    (grad,) = torch.autograd.grad(before, sparse)
    after, _ = loss(magnitudes[keep + more - 1])
    band = float(1 - magnitudes[keep + more - 1] / threshold)
    predicted = -more * rules.marginal_value(weight, grad, threshold, band)
    assert predicted.item() == pytest.approx((after - before).item(), rel=0.35)
