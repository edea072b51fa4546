"""What the tests of the fused optimizers share: options, one step by an operator or by its reference, and layers."""

import pytest
import torch
from harness import randn

from aswl_kernels import fused_adamw_, fused_sgd_, reference

SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "decay": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.8, "weight_decay": 0.1, "nesterov": True},
    "dampened": {"momentum": 0.9, "dampening": 0.3, "maximize": True},
    "decay alone": {"weight_decay": 0.1},
}
ADAMW = {
    "plain": {"weight_decay": 0.0},
    "decay": {"weight_decay": 0.1},
    "fast": {"betas": (0.3, 0.9), "eps": 1e-3, "maximize": True},
}
CASES = [pytest.param("sgd", o, id=f"sgd, {n}") for n, o in SGD.items()]
CASES += [pytest.param("adamw", o, id=f"adamw, {n}") for n, o in ADAMW.items()]
cases = pytest.mark.parametrize("name, options", CASES)


def step(name, weights, grads, states, thresholds, number=1, *, lr=0.1, **options):
    """One fused step, whatever the optimizer."""
    if name == "sgd":
        return fused_sgd_(weights, grads, states[0], thresholds, lr=lr, first=number == 1, **options)
    return fused_adamw_(weights, grads, *states, [number] * len(weights), thresholds, lr=lr, **options)


def by_reference(
    name, weights, grads, states, thresholds, number=1, *, lr=0.1, copies=None, grad_scale=None, **options
):
    """The same by the reference, in the dtype of the weights."""
    mask = [options.get("pruned_decay", 1.0), options.get("pruned_gradient", 1.0), options.get("band", 0.15)]
    decay, maximize = options.get("weight_decay", 0.0 if name == "sgd" else 0.01), options.get("maximize", False)
    if name == "sgd":
        own = [options.get("momentum", 0.0), options.get("dampening", 0.0), decay, options.get("nesterov", False)]
        tail = (lr, *own, maximize, number == 1, *mask)
        return reference.fused_sgd_(weights, grads, states[0], thresholds, list(copies or ()), grad_scale, *tail)
    tail = (lr, *options.get("betas", (0.9, 0.999)), options.get("eps", 1e-8), decay, maximize, *mask)
    steps = [number] * len(weights)
    return reference.fused_adamw_(weights, grads, *states, steps, [], thresholds, list(copies or ()), grad_scale, *tail)


def layers(sizes=(5, 70_001, 0, 1, 33), dtype=torch.float32, device="cpu"):
    """(weights, grads, states, thresholds): half of each layer pruned, one weight at the threshold."""
    weights, grads = ([randn(size, dtype) for size in sizes] for _ in range(2))
    thresholds = [w.abs().float().median() if w.numel() else torch.tensor(0.5) for w in weights]
    states = [[randn(size, dtype).abs() for size in sizes] for _ in range(2)]  # as after some steps
    return clone((weights, grads, states, thresholds), device=device)


def clone(tensors, dtype=None, device=None):
    """A copy of the tensors in lists of any depth."""
    if isinstance(tensors, torch.Tensor):
        return tensors.to(device or tensors.device, dtype or tensors.dtype, copy=True)
    return [clone(part, dtype, device) for part in tensors]


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
