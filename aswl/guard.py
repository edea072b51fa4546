"""The guard against dying: an optimizer step on vanished, NaN or infinite gradients is refused."""

import math

import torch
from torch import Tensor, nn

PATIENCE = 3  # steps without any gradient before a layer counts as dead; zero-initialised blocks wake after one or two


class DeadLayerError(RuntimeError):
    """A gradient vanished or is not finite; the optimizer step was refused and the weights are as they were."""


def _norms(grads: list[Tensor], order: float) -> list[float]:
    norms = torch._foreach_norm([grad._values() if grad.is_sparse else grad for grad in grads], order)
    return torch.stack([norm.float().to(norms[0].device) for norm in norms]).tolist()


class Guard:
    """Watches the gradients of a model. ``idle`` counts, per pruned weight, the steps without any gradient."""

    def __init__(self, layers: list[str]):
        self.idle = dict.fromkeys(layers, 0)

    def check(self, model: nn.Module, step: int) -> None:
        """Raise :class:`DeadLayerError`, naming the parameter and the step, if any gradient holds a NaN or an infinity,
        all gradients are zero, or a pruned layer's gradient has been zero for ``PATIENCE`` steps running. Waits for the
        device once, and again where a norm is 0 or not finite.
        """
        names, grads = [], []
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and parameter.numel() > 0:
                names.append(name)
                grads.append(parameter.grad)
        if not grads:
            return
        sizes = dict(zip(names, _norms(grads, 2)))
        # squares overflow and vanish where the gradient does not; the largest magnitude is slow on a CPU, and exact
        unclear = [i for i, size in enumerate(sizes.values()) if not 0 < size < math.inf]
        if unclear:
            sizes |= zip([names[i] for i in unclear], _norms([grads[i] for i in unclear], math.inf))
        for name, size in sizes.items():
            if not math.isfinite(size):
                raise DeadLayerError(f"step {step} refused: the gradient of {name!r} holds NaN or infinity")
        if not any(sizes.values()):
            raise DeadLayerError(
                f"step {step} refused: every gradient of the network is zero ({', '.join(names[:3])}, ...)"
            )
        for layer in self.idle:
            size = sizes.get(f"{layer}.weight" if layer else "weight")
            if size is not None:
                self.idle[layer] = 0 if size else self.idle[layer] + 1
            if self.idle[layer] >= PATIENCE:
                raise DeadLayerError(
                    f"step {step} refused: the gradient of layer {layer!r} has been zero for {PATIENCE} steps"
                )
