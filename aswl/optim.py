"""torch's SGD and AdamW, whose step takes a sparsifier's pruned weights through one fused pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from aswl_kernels import fused_adamw_, fused_sgd_

Group = dict[str, Any]


class FusedStep(Optimizer):
    """Mixin in front of an optimizer of torch: until a sparsifier is attached, it is that optimizer.

    ``takers``, one for each attached sparsifier: updates its pruned weights, and returns those that the parent must not
    touch again.
    """

    takers: tuple[Callable[[], list[Tensor]], ...] = ()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """As the parent's; the pruned weights of an attached sparsifier go first, and through the fused pass."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        taken = [weight for take in self.takers for weight in take()]
        grads = [weight.grad for weight in taken]
        for weight in taken:
            weight.grad = None  # the parent passes over what has no gradient
        plain = super().step.__func__
        while getattr(plain, "hooked", False):  # torch wraps step in the hooks, which run around this one already
            plain = plain.__wrapped__
        try:
            plain(self)
        finally:
            for weight, grad in zip(taken, grads):
                weight.grad = grad
        return loss

    @torch.no_grad()
    def update_pruned(
        self,
        weights: list[Tensor],
        thresholds: list[Tensor],
        grad_scale: Tensor | None,
        **options: float,
    ) -> Tensor | None:
        """Step the ``weights``, which have gradients, through the fused pass; its sums [L, 3], see
        :func:`aswl_kernels.fused_sgd_`, or None and nothing done where an option or a tensor is outside of it.

        ``options``: ``pruned_decay``, ``pruned_gradient`` and ``band``.
        """
        place = {id(weight): i for i, weight in enumerate(weights)}
        parts = [(g, [p for p in g["params"] if id(p) in place]) for g in self.param_groups]
        parts = [(group, members) for group, members in parts if members]
        held = sum(len(members) for _, members in parts) == len(weights)  # not so where a frozen weight has been thawed
        if not held or not all(
            _is_plain(group, members) and self._is_covered(group, members) for group, members in parts
        ):
            return None
        sums: list[Any] = [None] * len(weights)
        for group, members in parts:
            for alike in self._alike(group, members):
                where = [place[id(weight)] for weight in alike]
                got = self._pass(group, alike, [thresholds[i] for i in where], grad_scale=grad_scale, **options)
                if len(where) == len(weights) and where == sorted(where):
                    return got
                for i, row in zip(where, got):
                    sums[i] = row
        return torch.stack(sums)

    def _is_covered(self, group: Group, weights: list[Tensor]) -> bool:
        """Whether the pass does what the group's options and the weights' states ask for."""
        raise NotImplementedError

    def _alike(self, group: Group, weights: list[Tensor]) -> list[list[Tensor]]:
        """The weights parted so that one call can take each part."""
        raise NotImplementedError

    def _pass(self, group: Group, weights: list[Tensor], thresholds: list[Tensor], **options: Any) -> Tensor:
        raise NotImplementedError


class SGD(FusedStep, torch.optim.SGD):
    """``torch.optim.SGD``: the same arguments, states and results.

    Attached to a sparsifier, the pruned weights take one fused pass per step, unless an option is outside of it
    (``differentiable``, tensor ``weight_decay``, sparse gradients): then torch's step with hooks. A tensor ``lr`` on the
    device is read there, in the rest of torch's step with ``fused=True``.
    """

    def _is_covered(self, group: Group, weights: list[Tensor]) -> bool:
        return all(_fits(self.state[w].get("momentum_buffer"), w) for w in weights if w in self.state)

    def _alike(self, group: Group, weights: list[Tensor]) -> list[list[Tensor]]:
        return _parted(weights, lambda w: (w.dtype, self.state[w].get("momentum_buffer") is None))

    def _pass(self, group: Group, weights: list[Tensor], thresholds: list[Tensor], **options: Any) -> Tensor:
        states = [self.state[weight] for weight in weights]
        first, momenta = states[0].get("momentum_buffer") is None, []
        if group["momentum"] != 0:
            for state, weight in zip(states, weights):
                if first:
                    state["momentum_buffer"] = torch.empty_like(weight)
                momenta.append(state["momentum_buffer"])
        options |= {name: group[name] for name in ("momentum", "dampening", "weight_decay", "nesterov", "maximize")}
        grads = [weight.grad for weight in weights]
        return fused_sgd_(weights, grads, momenta, thresholds, lr=group["lr"], first=first, **options)


class AdamW(FusedStep, torch.optim.AdamW):
    """``torch.optim.AdamW``: the same arguments, states and results.

    Attached to a sparsifier, the pruned weights take one fused pass per step, unless an option is outside of it
    (``amsgrad``, ``differentiable``, tensor options other than ``lr``): then torch's step with hooks.
    """

    def _is_covered(self, group: Group, weights: list[Tensor]) -> bool:
        if group["amsgrad"] or any(isinstance(beta, Tensor) for beta in group["betas"]):
            return False
        states = [(self.state[weight], weight) for weight in weights if self.state.get(weight)]
        return all(_fits(state[name], weight) for state, weight in states for name in ("exp_avg", "exp_avg_sq"))

    def _alike(self, group: Group, weights: list[Tensor]) -> list[list[Tensor]]:
        return _parted(weights, lambda w: w.dtype)

    def _pass(self, group: Group, weights: list[Tensor], thresholds: list[Tensor], **options: Any) -> Tensor:
        exp_avgs, exp_avg_sqs, steps = [], [], []
        self._init_group(group | {"params": weights}, [], [], exp_avgs, exp_avg_sqs, [], steps)
        torch._foreach_add_(steps, 1)
        options |= {name: group[name] for name in ("lr", "betas", "eps", "weight_decay", "maximize")}
        if steps[0].is_cpu and not group["capturable"]:  # torch's own, who reads them there, too
            steps = [step.item() for step in steps]
        grads = [weight.grad for weight in weights]
        return fused_adamw_(weights, grads, exp_avgs, exp_avg_sqs, steps, thresholds, **options)


def _is_plain(group: Group, weights: list[Tensor]) -> bool:
    """Whether options that all optimizers have, and the gradients, are what the pass can take."""
    lr, decay = group["lr"], group["weight_decay"]
    tensors = isinstance(decay, Tensor) or (isinstance(lr, Tensor) and lr.requires_grad)
    return not group["differentiable"] and not tensors and all(_fits(w.grad, w) for w in weights)


def _fits(tensor: Tensor | None, weight: Tensor) -> bool:
    """Whether the tensor, where there is one, is dense and of the weight's dtype, which is real."""
    if tensor is None:
        return True
    return tensor.layout == torch.strided and tensor.dtype == weight.dtype and weight.is_floating_point()


def _parted(weights: list[Tensor], key: Callable[[Tensor], Any]) -> list[list[Tensor]]:
    parts: dict[Any, list[Tensor]] = {}
    for weight in weights:
        parts.setdefault(key(weight), []).append(weight)
    return list(parts.values())
