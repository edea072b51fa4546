"""ASWL: makes a model sparse and keeps its thresholds following the optimizer."""

import copy
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from aswl import attention as at
from aswl.convert import sparsify
from aswl.guard import Guard
from aswl.nn import SparseLayer
from aswl.schedule import Schedule, density_schedule, gradient_schedule
from aswl.summary import Summary, summarize
from aswl_kernels import gate, magnitude_threshold

SMOOTHING = 0.99  # of the marginal values, per step


class ASWL:
    """Attention-based simultaneous learning of sparse structure and weights (arXiv 2111.02399), for any ``nn.Module``."""

    def __init__(
        self,
        model: nn.Module,
        *,
        density: float | None = None,
        gamma: float | None = None,
        alpha: float = 1.0,
        steps: int | None = None,
        schedule: str | Schedule = "cubic",
        include: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        depthwise: bool = False,
        min_keep: int = 1,
        attention_scale: str | None = None,
        attention_gradient: str | None = None,
        dense_gradient: float | Schedule | None = None,
        band: float = 0.15,
        refresh_every: int = 1,
        penalty_target: float = 0.0,
        weight_penalty: float = 0.0,
        initial_attention: float | None = None,
        guard: bool = True,
    ):
        if (density is None) == (gamma is None):
            raise ValueError(f"ASWL: want exactly one of density and gamma; got density={density}, gamma={gamma}")
        self.gamma = gamma
        self.alpha = alpha
        self.min_keep = min_keep
        self.band = band
        self.refresh_every = refresh_every
        self.penalty_target, self.weight_penalty = penalty_target, weight_penalty
        self.attention_scale = attention_scale or ("paper" if density is None else "detached")
        self.attention_gradient = attention_gradient or ("scale" if density is None else "band")
        self.target = None if density is None else density_schedule(schedule, density, steps)
        self.dense_gradient = gradient_schedule(1.0 if density is None and dense_gradient is None else dense_gradient, steps)
        self.model = getattr(model, "_orig_mod", model)
        self.entries, self.left_dense = sparsify(self.model, include, exclude, depthwise)
        self.step = 0
        self.optimizer = None
        for e in self.entries:
            for l in e.layers:
                l.attention_scale = self.attention_scale
            with torch.no_grad():
                e.attention.fill_(initial_attention or 1.0)
        dev = self.entries[0].weight.device
        self.sizes = torch.tensor([e.weight.numel() for e in self.entries], device=dev)
        self.values = torch.zeros(len(self.entries), device=dev)
        self.seen = 0
        self.guard = Guard([e.name for e in self.entries]) if guard else None
        self.refresh()

    def param_groups(self, attention_lr=None, **options):
        att = [e.attention for e in self.entries]
        ids = {id(a) for a in att}
        rest = [p for p in self.model.parameters() if id(p) not in ids]
        lr = attention_lr if attention_lr is not None else (0.001 if self.gamma is not None else 0.01)
        return [{"params": rest, **options}, {"params": att, **options, "lr": lr, "weight_decay": 0.0}]

    def attach(self, optimizer):
        optimizer.register_step_pre_hook(self._pre)
        optimizer.register_step_post_hook(self._post)

    @torch.no_grad()
    def _pre(self, opt, args, kwargs):
        if self.guard: self.guard.check(self.model, self.step)
        c = self.dense_gradient(self.step)
        vals = []
        for e in self.entries:
            t = e.layers[0].threshold
            vals.append(at.marginal_value(e.weight, e.weight.grad, t, self.band))
            if c != 1:
                pruned = e.weight.abs().float() < t
                if c == 0: e.weight.grad.masked_fill_(pruned, 0)
                else: e.weight.grad.mul_(torch.where(pruned, c, 1.0))
        v = torch.stack(vals)
        self.seen += 1
        self.values.lerp_(v, max(1 - SMOOTHING, 1 / self.seen))
        self.follow()

    def follow(self):
        if self.attention_gradient == "scale":
            return
        a = torch.stack([e.attention.detach() for e in self.entries]).flatten()
        slope = at.density_slope(a, self.alpha)
        mode = self.attention_gradient
        if self.gamma is not None or mode == "raw":
            g = -self.sizes * self.values * slope
            for e, gi in zip(self.entries, g.unbind()):
                e.attention.grad += gi
        elif mode == "band":
            q = at.density_of(a, self.alpha)
            k = q * self.sizes
            norm = (k * self.values.abs()).sum() / k.sum()
            mean = (k * self.values).sum() / k.sum()
            s = (self.values - mean) / norm.clamp(min=1e-30)
            g = -q * s / slope
            for e, gi in zip(self.entries, g.unbind()):
                e.attention.grad.fill_(gi)
        elif mode == "none":
            for e in self.entries: e.attention.grad.zero_()

    @torch.no_grad()
    def _post(self, opt, args, kwargs):
        self.step += 1
        if self.step % self.refresh_every == 0:
            self.refresh()

    @torch.no_grad()
    def refresh(self):
        a = torch.stack([e.attention.detach() for e in self.entries]).flatten()
        if self.gamma is not None:
            a = a.clamp(0.01, 1)
            keep = at.keep_count(a, self.sizes, self.alpha, self.min_keep)
        else:
            budget = round(self.target(self.step) * int(self.sizes.sum()))
            q = at.density_of(a, self.alpha).clamp(min=1e-6)
            q, keep = at.share_budget(q, self.sizes, budget, self.min_keep)
            a = at.attention_of(q, self.alpha).to(a.dtype)
        t = magnitude_threshold([e.weight for e in self.entries], keep)
        for e, ai, ti, k in zip(self.entries, a.split(1), t.unbind(), (keep >= self.sizes).unbind()):
            e.attention.copy_(ai)
            for l in e.layers: l.threshold.copy_(ti.masked_fill(k, 0))

    def penalty(self):
        a = torch.stack([e.attention for e in self.entries]).flatten()
        return self.gamma * (at.soft_density(a, self.sizes, self.alpha) - self.penalty_target) ** 2

    def summary(self): return summarize(self.entries)
