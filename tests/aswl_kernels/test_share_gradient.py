"""The attentions' gradient under a budget: by the formula, at rest at the optimum, and the Triton kernel."""

import pytest
import torch

from aswl_kernels import reference_sharing, share_budget, share_gradient_


def state(n, device="cpu"):
    tensors = (torch.randn(n), torch.tensor(7.0), torch.randn(n), torch.rand(n), torch.randint(1, 10**6, (n,)))
    return [t.to(device) for t in tensors]


def test_worked_by_hand():
    signal, observed = torch.zeros(3), torch.tensor(0.0)
    attention, sizes = torch.tensor([0.5, 0.1, 1.0]), torch.tensor([10, 50, 7])
    grad = share_gradient_(signal, observed, torch.tensor([3.0, 1.0, 9.0]), attention, sizes)
    # 5 and 5 kept weights (the full layer takes no part), mean 2, mean of magnitudes 2: advantages 0.5, -0.5, 3.5 held
    assert grad.tolist() == pytest.approx([-0.25, 0.05, -1.0])
    assert signal.tolist() == [3.0, 1.0, 9.0] and observed == 1
    share_gradient_(signal, observed, torch.zeros(3), attention, sizes)  # the mean of two
    assert signal.tolist() == [1.5, 0.5, 4.5] and observed == 2
    share_gradient_(signal, torch.tensor(1e6), torch.zeros(3), attention, sizes, smoothing=0.75)
    assert signal.tolist() == [1.125, 0.375, 3.375]


def test_rests_where_all_layers_are_worth_the_same():
    """Steps and projections settle on the optimum under the budget, which is known for this loss."""
    sizes, signal = torch.tensor([1000, 4000, 250]), torch.zeros(3)
    use = torch.tensor([1.0, 0.3, 5.0], dtype=torch.double)  # layer l saves use * log(density * n): worth use / kept
    density, keep = share_budget(torch.full((3,), 0.2).double(), sizes, 1000)
    for _ in range(4000):
        worth = use / (density * sizes)
        density = density - 0.002 * share_gradient_(signal, torch.zeros(()), worth, density, sizes)
        density, keep = share_budget(density.clamp(min=1e-9), sizes, 1000)
    optimum = (1000 - 250) * use[:2] / use[:2].sum()  # the third would take 794 of its 250, so it is full
    assert keep.tolist() == pytest.approx([*optimum.tolist(), 250], abs=4)


@pytest.mark.parametrize("n", [1, 20, 161])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_the_kernel_follows_the_reference(n, alpha, triton_device):
    torch.manual_seed(n)
    want, got = state(n), state(n)
    for mine, its in zip(got, want):
        mine.copy_(its)
    want[3][0] = got[3][0] = 1.0  # full
    got = [t.to(triton_device) for t in got]
    exact = reference_sharing.share_gradient_(*want, alpha, 0.99)
    torch.testing.assert_close(share_gradient_(*got, alpha).cpu(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close([t.cpu() for t in got[:2]], want[:2])


def test_a_nan_stays(triton_device):
    args = state(4, triton_device)
    args[2][1] = float("nan")
    assert share_gradient_(*args).isnan().all()


def test_strided_worth_and_no_layers(triton_device):
    args = state(5, triton_device)
    sums = torch.stack([args[2], args[2]], 1).double()
    same = [t.clone() for t in args]
    same[2] = sums[:, 1]
    torch.testing.assert_close(share_gradient_(*same), share_gradient_(*args))
    assert len(share_gradient_(*state(0, triton_device))) == 0


def test_sums_and_counts_are_a_worth(triton_device):
    args, other = state(20, triton_device), state(20, triton_device)
    sums, counts = torch.randn(20, 2, dtype=torch.float64, device=triton_device).unbind(1)
    counts.mul_(9).round_().clamp_(min=0)
    sums[counts == 0] = 0
    for mine, its in zip(args, other):
        mine.copy_(its)
    args[2], other[2] = sums, -sums / counts.clamp(min=1)
    assert (counts == 0).any() and (counts > 1).any()
    torch.testing.assert_close(share_gradient_(*args, counts=counts), share_gradient_(*other))
    torch.testing.assert_close(args[0], other[0])


def test_bad_arguments_say_what_was_wanted():
    good = state(3)
    for place, bad, wanted in [
        (0, good[0].double(), r"want signal float32\[3\] on cpu; got float64\[3\] on cpu"),
        (1, torch.zeros(1), r"want observed float32 0-d on cpu; got float32\[1\] on cpu"),
        (2, good[2][:2], r"want worth floating \[3\] on cpu; got float32\[2\] on cpu"),
        (3, good[3].int(), r"want attention floating \[L\]; got int32\[3\] on cpu"),
    ]:
        args = [bad if i == place else t for i, t in enumerate(good)]
        with pytest.raises(ValueError, match=f"share_gradient_: {wanted}"):
            share_gradient_(*args)
    with pytest.raises(ValueError, match=r"want alpha > 0 and smoothing in \[0, 1\); got 1.0, 1.0"):
        share_gradient_(*good, smoothing=1.0)


def test_the_operator_is_well_formed():
    torch.library.opcheck(torch.ops.aswl.share_gradient_.default, (*state(5), 1.0, 0.99))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_attention_and_density_are_inverse(alpha):
    density = torch.linspace(0.001, 1, 50, dtype=torch.double)
    torch.testing.assert_close(
        reference_sharing.density_of(reference_sharing.attention_of(density, alpha), alpha), density
    )
    attention = torch.linspace(0.05, 0.95, 10, dtype=torch.double, requires_grad=True)
    (slope,) = torch.autograd.grad(reference_sharing.density_of(attention, alpha).sum(), attention)
    torch.testing.assert_close(reference_sharing.density_slope(attention.detach(), alpha), slope)
