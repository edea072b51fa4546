"""The specification of how a budget is shared among layers, in plain PyTorch; vectors are [L], one entry per layer."""

import torch
from torch import Tensor


def density_of(attention: Tensor, alpha: float) -> Tensor:
    """The kept fraction without the paper's floor: 1 - (1 - a)^alpha."""
    return 1 - (1 - attention.clamp(0, 1)).pow(alpha)


def attention_of(density: Tensor, alpha: float) -> Tensor:
    """The attention whose kept fraction is ``density``: 1 - (1 - density)^(1 / alpha)."""
    return 1 - (1 - density).pow(1 / alpha)


def density_slope(attention: Tensor, alpha: float) -> Tensor:
    """d(kept fraction) / d(attention) = alpha (1 - a)^(alpha - 1), kept away from 0 and infinity near a = 1."""
    return alpha * (1 - attention).clamp(1e-3, 1).pow(alpha - 1)


def observe_(signal: Tensor, observed: Tensor, worth: Tensor, smoothing: float) -> None:
    """Take ``worth`` into the exponential average ``signal``, a plain mean while few were ``observed``."""
    observed.add_(1)
    signal.lerp_(worth.to(signal.dtype), observed.reciprocal().clamp(min=1 - smoothing))


def share_gradient_(
    signal: Tensor,
    observed: Tensor,
    worth: Tensor,
    attention: Tensor,
    sizes: Tensor,
    alpha: float,
    smoothing: float,
    counts: Tensor | None = None,
) -> Tensor:
    """d(log density) = -clip((v - mean v) / mean(abs(v)), -1, 1) as the attentions' gradient, v the smoothed worth."""
    observe_(signal, observed, worth if counts is None else -worth / counts.clamp(min=1), smoothing)
    density = density_of(attention, alpha)
    kept = (density * sizes).masked_fill(density >= 1, 0)
    mean, typical = (kept * signal).sum(), (kept * signal.abs()).sum()
    advantage = (signal * kept.sum() - mean) / typical.clamp(min=1e-30)
    return (-density * advantage.clamp(-1, 1) / density_slope(attention, alpha)).to(attention.dtype)


def share_budget(
    attention: Tensor, sizes: Tensor, budget: Tensor, alpha: float, min_keep: int
) -> tuple[Tensor, Tensor]:
    """clip(c q, min_keep / n, 1) of densities q with c such that the kept counts add up to the budget."""
    wanted, most = density_of(attention.double(), alpha).clamp(min=1e-9) * sizes, sizes.double()
    least = most.clamp(max=min_keep)
    kinks = torch.cat([least / wanted, most / wanted]).sort().values  # [2L], of the kept total as a function of c
    totals = torch.minimum(torch.maximum(kinks[:, None] * wanted, least), most).sum(1)
    right = (totals < budget).sum(0, keepdim=True).clamp(1, len(kinks) - 1)  # the first kink at or above the budget
    low, high = totals.gather(0, right - 1), totals.gather(0, right)  # indexing would wait for the device
    part = ((budget - low) / (high - low).clamp(min=1e-30)).clamp(0, 1)
    factor = torch.lerp(kinks.gather(0, right - 1), kinks.gather(0, right), part)
    exact = torch.minimum(torch.maximum(factor * wanted, least), most)
    keep = (exact + 1e-9 * most).floor().clamp(max=most)  # 2.9999999996 is 3
    spare = budget - keep.sum()
    remainder = (exact - keep).masked_fill(keep >= most, -1)
    rank = remainder.argsort(descending=True, stable=True).argsort()
    keep = torch.minimum(keep + (rank < spare), most)
    return attention_of(exact / most, alpha).to(attention.dtype), keep.long()
