"""How a number of weights is shared out among layers, and which weights a layer then keeps."""

import math
from typing import Literal

import torch
from torch import Tensor, nn


def uniform(layers: dict[str, nn.Module], density: float) -> dict[str, int]:
    """The same density in every layer; the counts add up to round(density * n)."""
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    return round_counts({name: density * size for name, size in sizes.items()}, sizes, density)


def erdos_renyi_kernel(layers: dict[str, nn.Module], density: float) -> dict[str, int]:
    """Densities proportional to (sum of a weight's dimensions) / (their product), layers that would exceed 1 kept whole
    (Evci et al., arXiv 1911.11134, section 3); the counts add up to round(density * n).
    """
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    raw = {name: sum(layer.weight.shape) for name, layer in layers.items()}  # size times (sum / product)
    whole: set[str] = set()
    while True:
        left = density * sum(sizes.values()) - sum(sizes[name] for name in whole)
        scale = left / sum(value for name, value in raw.items() if name not in whole)
        fuller = {name for name in raw if name not in whole and scale * raw[name] > sizes[name]}
        if not fuller:
            break
        whole |= fuller
    counts = {name: float(sizes[name]) if name in whole else scale * raw[name] for name in raw}
    return round_counts(counts, sizes, density)


def global_magnitude(layers: dict[str, nn.Module], density: float) -> dict[str, int]:
    """What each layer has among the round(density * n) largest magnitudes of all layers, but at least one."""
    return global_scores({name: layer.weight.detach().abs() for name, layer in layers.items()}, density)


def global_scores(scores: dict[str, Tensor], density: float) -> dict[str, int]:
    """What each layer has among the round(density * n) largest scores of all layers, but at least one."""
    sizes = {name: score.numel() for name, score in scores.items()}
    every = torch.cat([score.flatten() for score in scores.values()])
    masks = largest(every, round(density * len(every))).split(list(sizes.values()))
    return round_counts({name: float(mask.sum()) for name, mask in zip(scores, masks)}, sizes, density)


def round_counts(counts: dict[str, float], sizes: dict[str, int], density: float) -> dict[str, int]:
    """Whole numbers next to the counts, at least 1 and at most the layer, that add up to round(density * n): the largest
    remainders are rounded up.
    """
    rounded = {name: min(max(math.floor(count), 1), sizes[name]) for name, count in counts.items()}
    missing = round(density * sum(sizes.values())) - sum(rounded.values())
    step = 1 if missing > 0 else -1
    order = sorted(counts, key=lambda name: step * (counts[name] - rounded[name]), reverse=True)
    while missing:
        before = missing
        for name in order:
            if missing and 1 <= rounded[name] + step <= sizes[name]:
                rounded[name] += step
                missing -= step
        if missing == before:
            raise ValueError(f"shares: want a density that leaves each layer a weight; got {density}")
    return rounded


def largest(score: Tensor, count: int) -> Tensor:
    """A mask, bool and like ``score``, of exactly the ``count`` largest scores."""
    return mask_at(score.flatten().topk(count, sorted=False).indices, score)


def mask_at(indices: Tensor, like: Tensor) -> Tensor:
    """A mask, bool and like another tensor, that is True at ``indices`` of the flattened tensor."""
    mask = torch.zeros(like.numel(), dtype=torch.bool, device=like.device)
    mask[indices] = True
    return mask.view(like.shape)


Shares = Literal["uniform", "erk", "global"]
SHARES = {"uniform": uniform, "erk": erdos_renyi_kernel, "global": global_magnitude}
