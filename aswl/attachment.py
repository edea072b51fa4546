"""What ties a sparsifier to an optimizer."""

import warnings
import weakref
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from aswl.optim import FusedStep
from aswl.structure import Structure

RELATIVE = 0.1  # an eps from which on next to attentions' gradients, 1 at most, little of them is divided away


def check_optimizer(optimizer: Optimizer, structure: Structure) -> None:
    """Raise ``TypeError`` for what is not an optimizer or is LBFGS, ``ValueError`` for one without the parameters."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"attach: want a torch.optim.Optimizer; got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        wanted = "attach: want an optimizer with one gradient per step"
        raise TypeError(f"{wanted}; LBFGS takes many, and the mask must not move in between")
    held = _held_by(optimizer)
    for entry in structure.entries:
        for what in ("weight", "attention"):
            parameter = getattr(entry, what)
            if parameter.requires_grad and id(parameter) not in held:
                raise ValueError(
                    f"attach: the optimizer does not hold the {what} of layer {entry.name!r} (was it made before "
                    "ASWL(model)?); make it from sparsifier.param_groups(...)"
                )
    devices = {str(entry.weight.device) for entry in structure.entries}
    if len(devices) > 1:
        raise ValueError(f"attach: want all pruned weights on one device; got {', '.join(sorted(devices))}")


def warn_of_adaptive(optimizer: Optimizer, structure: Structure) -> None:
    """Warn where the optimizer will divide the attentions' gradients by their past size, and they cease to be relative."""
    attentions = {id(entry.attention) for entry in structure.entries}
    for group in optimizer.param_groups:
        eps = group.get("eps")
        if isinstance(eps, float) and eps < RELATIVE and any(id(p) in attentions for p in group["params"]):
            warnings.warn(
                f"attach: {type(optimizer).__name__} divides the attentions' gradients by their past size, and layers of a "
                "low density then change too fast or too slowly; make its groups with param_groups(adaptive=True)",
                stacklevel=3,
            )
            return


class Follower(Protocol):
    """What a sparsifier does in the course of a step. Gradients come multiplied by ``scale``, and stay so."""

    def check(self) -> None:
        """Refuse gradients on which nothing may move."""

    def prepare(self, optimizer: Optimizer, scale: Tensor | float) -> None:
        """Change the gradients into those that an optimizer of torch is to follow; decay what it does not reach by them."""

    def update(self, optimizer: FusedStep, scale: Tensor | float) -> list[Tensor]:
        """Step what the fused pass can take and prepare the other gradients; the weights that were taken."""

    def finish(self) -> None:
        """Bring the structure up to date."""


def follow(optimizer: Optimizer, follower: Follower, capturable: bool = False) -> None:
    """Call the follower in the course of every step: ``check`` when the gradients are complete, ``update`` within the
    step of a :class:`aswl.optim.FusedStep`, but ``prepare`` before that of another optimizer, ``finish`` at the end.

    With a closure, gradients are complete only after it has run. Steps that a ``GradScaler`` skips call nothing: it
    leaves out ``step()``, or, for a fused optimizer, lends it the scale and the overflow flag. With ``capturable``
    nothing waits for the device, and a step with such a flag raises ``RuntimeError``.
    """
    fused = isinstance(optimizer, FusedStep)

    def overflown() -> bool:
        flag = getattr(optimizer, "found_inf", None)
        if flag is not None and capturable:
            raise RuntimeError(
                "step: want no GradScaler with capturable=True, since its overflow flag is read on the host to skip the "
                "step; train in bf16, which needs none, or without capturable"
            )
        return flag is not None and bool(flag.item())

    def scale() -> Tensor | float:
        lent = getattr(optimizer, "grad_scale", None)
        return 1.0 if lent is None else lent

    def gradients_complete() -> None:
        if not overflown():
            follower.check()
            if not fused:
                follower.prepare(optimizer, scale())

    def pre_hook(_: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            gradients_complete()
            return None

        def wrapped():
            loss = closure()
            gradients_complete()
            return loss

        return args[:1], {**kwargs, "closure": wrapped}

    def post_hook(_: Optimizer, args: tuple, kwargs: dict) -> None:
        if not overflown():
            follower.finish()

    optimizer.register_step_pre_hook(pre_hook)
    optimizer.register_step_post_hook(post_hook)
    if fused:
        optimizer.takers += (lambda: [] if overflown() else follower.update(optimizer, scale()),)


def forbid_steps(structure: Structure) -> Callable[[], None]:
    """Make every optimizer that holds one of the pruned weights refuse to step, until the returned function is called
    or the structure is gone: its updates would leave the masks behind.
    """
    watched = weakref.ref(structure)

    def refuse(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        waiting = watched()
        if waiting and not _held_by(optimizer).isdisjoint(id(entry.weight) for entry in waiting.entries):
            raise RuntimeError("step before attach: call sparsifier.attach(optimizer) once, before the first step")

    handle = register_optimizer_step_pre_hook(refuse)
    weakref.finalize(structure, handle.remove)
    return handle.remove


def _held_by(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
