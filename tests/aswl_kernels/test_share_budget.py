"""How a budget is shared: worked by hand, exact for any layers, and the Triton kernel against the reference."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aswl_kernels import reference_sharing, share_budget


@pytest.mark.parametrize(
    ("density", "sizes", "budget", "min_keep", "keep"),
    [
        ([0.5, 0.5], [10, 30], 20, 1, [5, 15]),
        ([0.2, 0.1], [100, 100], 30, 1, [20, 10]),
        ([0.2, 0.1], [100, 100], 15, 1, [10, 5]),
        ([0.9, 0.1], [100, 100], 150, 1, [100, 50]),  # the first is full, the second takes the rest
        ([1.0, 0.001], [100, 100], 20, 5, [15, 5]),  # the second stays at min_keep
        ([0.5, 0.5], [3, 3], 3, 1, [2, 1]),  # equal claims: the first comes first
        ([0.5, 0.5, 0.5], [5, 7, 9], 21, 1, [5, 7, 9]),
        ([0.5, 0.5], [5, 7], 1, 2, [2, 2]),  # the limits leave no choice
        ([0.3], [10], 4, 1, [4]),
    ],
)
def test_by_hand(density, sizes, budget, min_keep, keep):
    scaled, got = share_budget(torch.tensor(density).double(), torch.tensor(sizes), budget, min_keep=min_keep)
    assert got.tolist() == keep
    assert torch.all((scaled * torch.tensor(sizes) - got).abs() <= 1)


layers = st.lists(st.tuples(st.floats(1e-6, 1), st.integers(1, 10**7)), min_size=1, max_size=12)


@given(layers, st.floats(1e-6, 1), st.integers(1, 50))
def test_is_exact(layers, part, min_keep):
    density, sizes = torch.tensor([d for d, _ in layers]), torch.tensor([n for _, n in layers])
    budget = max(round(part * int(sizes.sum())), 1)
    scaled, keep = share_budget(density.double(), sizes, budget, min_keep=min_keep)
    least = sizes.clamp(max=min_keep)
    assert keep.sum() == max(budget, least.sum())
    assert torch.all(keep >= least)
    assert torch.all(keep <= sizes)
    assert torch.all((scaled * sizes - keep).abs() <= 1)
    free = (keep > least + 1) & (keep < sizes - 1)  # one factor for all that meet no limit
    ratio = (scaled / density.double())[free]
    assert len(ratio) == 0 or (ratio.max() / ratio.min() - 1).abs() < 1e-6


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers, st.floats(1e-6, 1), st.integers(1, 50))
def test_the_kernel_shares_as_the_reference_does(triton_device, layers, part, min_keep):
    density, sizes = torch.tensor([d for d, _ in layers]).double(), torch.tensor([n for _, n in layers])
    budget = torch.tensor(max(round(part * int(sizes.sum())), 1))
    want_density, want = reference_sharing.share_budget(density, sizes, budget, 1.0, min_keep)
    scaled, keep = (
        t.cpu() for t in share_budget(*(t.to(triton_device) for t in (density, sizes, budget)), min_keep=min_keep)
    )
    assert keep.sum() == want.sum()
    assert torch.all((keep - want).abs() <= 1)  # where two remainders are equal but for rounding
    torch.testing.assert_close(scaled, want_density, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("n", [1, 54, 161, 300])
def test_the_kernel_with_many_layers(n, triton_device):
    density, sizes = torch.rand(n).double() + 1e-3, torch.randint(1, 10**6, (n,))
    sizes[: n // 3] = 1000  # equal claims: ties
    density[: n // 3] = 0.5
    budget = sizes.sum() // 10
    want_density, want = reference_sharing.share_budget(density, sizes, budget, 1.0, 1)
    scaled, keep = (t.cpu() for t in share_budget(*(t.to(triton_device) for t in (density, sizes, budget))))
    assert torch.equal(keep, want)
    torch.testing.assert_close(scaled, want_density, rtol=1e-12, atol=0)


def test_no_layers(triton_device):
    none = torch.empty(0, device=triton_device)
    assert [len(t) for t in share_budget(none, none.long(), 3)] == [0, 0]


def test_bad_arguments_say_what_was_wanted():
    density, sizes = torch.rand(3), torch.ones(3, dtype=torch.int64)
    for args, wanted in [
        ((density[None], sizes, 1), r"want attention floating \[L\]; got float32\[1, 3\] on cpu"),
        ((density, sizes[:2], 1), r"want sizes int64\[3\] on cpu; got int64\[2\] on cpu"),
        ((density, sizes.int(), 1), r"want sizes int64\[3\] on cpu; got int32\[3\] on cpu"),
        ((density, sizes, torch.ones(1)), r"want budget a number, or int64 0-d on cpu; got float32\[1\] on cpu"),
        ((density, sizes, 1, 0.0), "want alpha > 0; got 0.0"),
        ((density, sizes, 1, 1.0, -1), "want min_keep >= 0; got -1"),
    ]:
        with pytest.raises(ValueError, match=f"share_budget: {wanted}"):
            share_budget(*args)


def test_the_operator_is_well_formed():
    args = torch.rand(5).double(), torch.randint(1, 99, (5,)), torch.tensor(40), 1.0, 1
    torch.library.opcheck(torch.ops.aswl.share_budget.default, args)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_another_exponent(alpha, triton_device):
    attention, sizes = torch.tensor([0.2, 0.5, 0.9], device=triton_device).double(), torch.tensor([1000, 50, 400])
    scaled, keep = share_budget(attention, sizes.to(triton_device), 300, alpha)
    assert keep.sum() == 300
    torch.testing.assert_close(1 - (1 - scaled.cpu()) ** alpha, keep.cpu().double() / sizes, rtol=0, atol=1 / 50)
