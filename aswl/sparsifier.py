"""ASWL: makes a model sparse and lets its structure follow the optimizer."""

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aswl import attention as rules
from aswl.attachment import check_optimizer, follow, forbid_steps, warn_of_adaptive
from aswl.clock import Clock, DeviceClock
from aswl.convert import release, sparsify
from aswl.follower import StepFollower
from aswl.guard import Guard
from aswl.masking import Masks
from aswl.schedule import Schedule
from aswl.settings import Settings
from aswl.steering import Steering
from aswl.structure import Structure
from aswl.summary import Summary, summarize
from aswl_kernels import gate, magnitude_threshold, share_budget
from aswl_kernels.break_even import known


class ASWL:
    """Attention-based simultaneous learning of sparse structure and weights (arXiv 2111.02399), for any ``nn.Module``.

    Swaps the model's ``nn.Linear`` and ``nn.Conv2d`` layers for sparse ones in place; parameters stay the same objects.
    Exactly one of the two modes is chosen:

    ``density``: the fraction of weights to keep, in (0, 1]. ``schedule`` ("cubic", "linear", "constant", or a callable
    from updates done to density) leads there between the fractions ``begin`` and ``end`` of ``steps`` optimizer updates
    (of "cubic" and "linear"), and after each update exactly ``round(density * n)`` of all n weights are kept, shared out
    by the attentions.
    ``gamma``: the paper's mode. Add :meth:`penalty` to the loss; where the density ends is a matter of its strength.

    ``include``, ``exclude``: shell globs of module names (None is all); frozen layers, and depthwise convolutions unless
    ``depthwise``, stay dense. ``alpha``: exponent of the pruning ratio p = (1 - a)^alpha. ``min_keep``: weights that
    every layer keeps. ``attention_scale``: "paper" multiplies outputs by the attention, "detached" (default of
    ``density``) only takes the gradient. ``attention_gradient``: what moves the attentions: "scale" (the paper's),
    "band" (what weights near the threshold are worth, see ``docs/method.md``; default of ``density``) or "both".
    ``thresholding``: "firm" (default of ``density``) lets kept weights fade in, from 0 at the threshold to their own value at
    1.25 times that (:func:`aswl_kernels.gate`), "hard" (of ``gamma``) multiplies by them as they are.
    ``dense_gradient``: factor of the pruned weights' gradient, a number or a callable of the step; by default 1, but
    with ``density`` it follows the density r asked for then: min(1, r / 2%)^2 under a firm threshold, the square root
    of r under a hard one. ``pruned_decay``: factor of the optimizer's weight decay for pruned weights; above 1 they forget
    sooner, which long trainings may want (``docs/method.md``). ``band``: half-width, relative to the threshold.
    ``refresh_every``: updates between two refreshes of the thresholds. ``initial_attention``, ``penalty_target`` (r) and
    ``weight_penalty`` (lambda) belong to the paper's loss. ``products``: "sparse" computes outputs and input gradients
    with the kept weights alone, "dense" with masked weights, "fused" masks within the product's kernel, "auto" does what
    was measured to be faster, shape by shape: on a CPU by itself (eager fp32), on a GPU, under hard thresholds, by
    ``aswl bench --tune`` (:meth:`summary` shows it).
    ``backward_density``: restricts the weights' gradients to this fraction of the largest weights (Top-KAST, arXiv
    2106.03517), at least ``density``; None is all. ``capturable``: a step can be captured in a CUDA graph (see
    ``docs/method.md``); schedules are then called for all ``steps`` beforehand. ``guard``: the check for dead or
    non-finite gradients, which waits for the device once per step; by default on unless ``capturable``.

    Raises ``ValueError`` for options out of range, patterns that match nothing, and models with nothing to prune; warns
    where the density asked for cannot be met.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        density: float | None = None,
        gamma: float | None = None,
        alpha: float = 1.0,
        steps: int | None = None,
        schedule: str | Schedule = "cubic",
        begin: float = 0.0,
        end: float = 0.7,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        depthwise: bool = False,
        min_keep: int = 1,
        attention_scale: str | None = None,
        attention_gradient: str | None = None,
        dense_gradient: float | Schedule | None = None,
        pruned_decay: float = 1.0,
        band: float = 0.15,
        refresh_every: int = 1,
        initial_attention: float | None = None,
        penalty_target: float = 0.0,
        weight_penalty: float = 0.0,
        products: str = "auto",
        backward_density: float | None = None,
        capturable: bool = False,
        guard: bool | None = None,
        thresholding: str | None = None,
    ):
        self.settings = Settings(
            density=density,
            gamma=gamma,
            alpha=alpha,
            steps=steps,
            schedule=schedule,
            begin=begin,
            end=end,
            min_keep=min_keep,
            attention_scale=attention_scale,
            attention_gradient=attention_gradient,
            dense_gradient=dense_gradient,
            pruned_decay=pruned_decay,
            band=band,
            refresh_every=refresh_every,
            initial_attention=initial_attention,
            penalty_target=penalty_target,
            weight_penalty=weight_penalty,
            products=products,
            backward_density=backward_density,
            capturable=capturable,
            thresholding=thresholding,
        )
        if guard and capturable:
            raise ValueError("ASWL: want guard=False with capturable=True, since the guard reads norms on the host")
        self.model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
        entries, left_dense = sparsify(self.model, include, exclude, depthwise)
        self._structure = Structure(entries)
        self._clock = (DeviceClock if capturable else Clock)(self.settings, self._structure)
        self._steering = Steering(self._structure, self.settings)
        self._guard = None if capturable or guard is False else Guard(list(self._structure.counts))
        self._penalized = False
        self._warn_of_density(left_dense)
        for entry in entries:
            entry.attention.detach().fill_(self.settings.initial_attention)
            for layer in entry.layers:
                layer.attention_scale = self.settings.attention_scale
                layer.attention_steered = not self.settings.reads_attentions
                layer.products = self.settings.products
                layer.firm = self.settings.firm
        if not (self.settings.reads_attentions or entries[0].layers[0].scaled):
            Masks([entry.layers for entry in entries]).attach(self.model)
        self.refresh()
        self._attached = False
        self._allow_steps = forbid_steps(self._structure)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the ties to the optimizer, whose copy has lost its hooks, too."""
        return vars(self) | {"_attached": False, "_allow_steps": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._allow_steps = forbid_steps(self._structure)

    def param_groups(
        self, *, attention_lr: float | None = None, adaptive: bool = False, **options: Any
    ) -> list[dict[str, Any]]:
        """Two parameter groups for an optimizer: the model's own parameters with ``options`` (lr, weight_decay, ...), and
        the attentions with ``attention_lr`` and no weight decay.

        ``adaptive``: for Adam and its like under ``density=``. They divide gradients by their past size; the attentions'
        keep theirs (``eps=1``), since it makes their steps relative ones. ``attention_lr``: None for 0.001, which SGD's
        momentum of 0.9 makes ten times as fast, or 0.01 with ``adaptive``.
        """
        if attention_lr is None:
            attention_lr = 0.01 if adaptive else 0.001
        attentions = [entry.attention for entry in self._structure.entries if entry.attention.requires_grad]
        own = {id(attention) for attention in attentions}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in own]
        return [
            {"params": others, **options},
            {"params": attentions, **options, "lr": attention_lr, "weight_decay": 0.0}
            | ({"eps": 1.0} if adaptive else {}),
        ]

    def attach(self, optimizer: Optimizer) -> None:
        """Let the structure follow every ``optimizer.step()`` from here on, closures and skipped steps included.

        Raises ``TypeError`` for LBFGS and for what is not an optimizer, ``ValueError`` for one that lacks some of
        the pruned weights or attentions, ``RuntimeError`` when called twice. Warns of one that takes the attentions'
        gradients for absolute ones (see ``adaptive`` of :meth:`param_groups`).
        """
        if self._attached:
            raise RuntimeError("attach: called twice; this sparsifier already follows an optimizer")
        check_optimizer(optimizer, self._structure)
        if self.settings.target is not None:
            warn_of_adaptive(optimizer, self._structure)
        follow(optimizer, StepFollower(self), self.settings.capturable)
        self._attached = True
        self._allow_steps()
        if self.step == 0:  # weights may have been loaded since; later on, a resumed state is as it was
            self.refresh()

    def penalty(self) -> Tensor:
        """gamma (S(a) - r)^2 + lambda sum(sparse^2), 0-d and differentiable: in the paper's mode, add it to the loss."""
        self._penalized = True
        total = torch.zeros((), device=self._structure.device)
        if self.settings.gamma is not None:
            density = rules.soft_density(self._structure.attentions(), self._structure.sizes, self.settings.alpha)
            total = self.settings.gamma * (density - self.settings.penalty_target) ** 2
        if self.settings.weight_penalty:
            one = torch.ones(1, device=total.device)
            sparse = (gate(e.weight, one, e.threshold, firm=self.settings.firm) for e in self._structure.entries)
            total = total + self.settings.weight_penalty * torch.stack([w.float().square().sum() for w in sparse]).sum()
        return total

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring attentions, kept counts and thresholds up to date; :meth:`attach` makes this follow the optimizer."""
        self._follow(self._structure.attentions())

    def _follow(self, attention: Tensor) -> None:
        """Bring attentions, kept counts and thresholds up to these attentions, [L]."""
        options, sizes = self.settings, self._structure.sizes
        if options.target is None:
            attention = attention.clamp(rules.FLOOR, 1)
            keep = rules.keep_count(attention, sizes, options.alpha, options.min_keep)
        else:
            budget = self._clock.budget
            attention, keep = share_budget(attention, sizes, budget, options.alpha, options.min_keep)
        thresholds = magnitude_threshold([entry.weight for entry in self._structure.entries], keep)
        self._structure.store(attention, thresholds.masked_fill(keep >= sizes, 0))
        if keep.is_cpu and not options.capturable:  # no wait for a device
            self._structure.note(keep)
        if options.backward_density is not None:
            wider = round(options.backward_density * self._structure.total)
            wider = budget.clamp(min=wider) if isinstance(budget, Tensor) else max(budget, wider)
            learn = share_budget(attention, sizes, wider, options.alpha, options.min_keep)[1].maximum(keep)
            limits = magnitude_threshold([entry.weight for entry in self._structure.entries], learn)
            self._structure.restrict(limits.masked_fill(learn >= sizes, 0))

    @property
    def step(self) -> int:
        """Optimizer updates done."""
        return self._clock.step

    @property
    def density(self) -> float:
        """The fraction of weights that the pruned layers keep now, counted."""
        return self._structure.kept() / self._structure.total

    def densities(self) -> dict[str, float]:
        """The fraction of weights kept now, counted, by layer name (a tied weight goes by its first)."""
        return {entry.name: entry.layers[0].density for entry in self._structure.entries}

    def summary(self) -> Summary:
        """Shape, kept weights, density, attention, threshold, FLOPs and products of each layer; ``print`` it for a table."""
        return summarize(self._structure.entries)

    def finalize(self) -> nn.Module:
        """A copy of the model with ordinary layers that hold zeros, the attention folded into weights and biases.

        The trained model stays as it is. Warns where nothing was pruned or the asked density was not reached.
        """
        with self._refreshed():
            if self.density == 1:
                warnings.warn("finalize: nothing was pruned", stacklevel=2)
            elif (
                self.settings.density is not None
                and self.density > self.settings.density + len(self._structure.entries) / self._structure.total
            ):
                warnings.warn(
                    f"finalize: density {self.density:.4g} is above the {self.settings.density:.4g} asked for, "
                    f"after {self.step} updates",
                    stacklevel=2,
                )
            return release(copy.deepcopy(self.model))

    @contextlib.contextmanager
    def _refreshed(self) -> Iterator[None]:
        """Attentions and thresholds as a refresh now would have them, where one is not due; then as they were."""
        if self.step % self.settings.refresh_every == 0:
            yield
            return
        before, limits = self._structure.stored(), self._structure.learnable()
        self.refresh()
        try:
            yield
        finally:
            self._structure.store(*before)
            if limits is not None:
                self._structure.restrict(limits)

    def state_dict(self) -> dict[str, Any]:
        """What the model's and the optimizer's state do not hold: plain tensors, numbers and names."""
        return {
            "layers": dict(self._structure.counts),
            "step": self.step,
            "signal": self._steering.signal.clone(),
            "observed": int(self._steering.observed),
            "idle": dict(self._guard.idle) if self._guard else {},
            "break_even": dict(known()),
            "learnable": self._structure.learnable(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; load the model's state too, it holds attentions and thresholds.

        Raises ``ValueError`` where the state belongs to a model with other pruned layers.
        """
        layers = self._structure.counts
        if state["layers"] != layers:
            differing = sorted(dict(state["layers"].items() ^ layers.items()))
            raise ValueError(f"load_state_dict: want the state of the same pruned layers; these differ: {differing}")
        self._clock.step = state["step"]
        self._steering.observed.fill_(state["observed"])
        self._steering.signal.copy_(state["signal"])
        if self._guard:
            self._guard.idle.update(state["idle"])
        if state.get("learnable") is not None:
            self._structure.restrict(state["learnable"])
        known().update(state.get("break_even", {}))  # so that the same products are taken again

    def _warn_of_density(self, left_dense: int) -> None:
        density, total = self.settings.density, self._structure.total
        if density is None:
            return
        floor = sum(min(size, self.settings.min_keep) for size in self._structure.counts.values())
        if floor > round(density * total):
            warnings.warn(
                f"ASWL: density {density} cannot be met: min_keep holds {floor} of {total} weights", stacklevel=3
            )
        if left_dense > density * (total + left_dense):
            warnings.warn(
                f"ASWL: density {density} is that of the pruned layers; the model's cannot come below "
                f"{left_dense / (total + left_dense):.3f}, the share of the layers left dense",
                stacklevel=3,
            )
