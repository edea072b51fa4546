"""What ties a sparsifier to an optimizer."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from aswl.structure import Structure


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


def follow(optimizer: Optimizer, before: Callable[[Tensor | float], None], after: Callable[[], None]) -> None:
    """Call ``before(gradient scale)`` when the gradients of a step are complete and ``after()`` once it is done.

    With a closure, gradients are complete only after it has run. Steps that a ``GradScaler`` skips call neither: it
    leaves out ``step()``, or, for a fused optimizer, lends it the scale and the overflow flag.
    """

    def overflown() -> bool:
        flag = getattr(optimizer, "found_inf", None)
        return flag is not None and bool(flag.item())

    def gradients_complete() -> None:
        if not overflown():
            scale = getattr(optimizer, "grad_scale", None)
            before(1.0 if scale is None else scale)

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
            after()

    optimizer.register_step_pre_hook(pre_hook)
    optimizer.register_step_post_hook(post_hook)


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
