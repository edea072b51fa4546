"""What every way of training a sparse network has in common: the interface of :class:`aswl.ASWL`, and little more."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """Layers whose weights count, by name: linear ones and convolutions but depthwise ones, as in :class:`aswl.ASWL`."""

    def counts(layer: nn.Module) -> bool:
        if isinstance(layer, nn.Conv2d):
            return layer.groups == 1 or layer.weight.shape[1] > 1
        return isinstance(layer, nn.Linear)

    return {name: layer for name, layer in model.named_modules() if counts(layer)}


class Method:
    """Trains ``model``, in place, with ``density`` of the weights of all its :func:`prunable` layers.

    ``steps``: optimizer updates of the whole training, which schedules are fractions of. A training loop is that of
    :class:`aswl.ASWL`: give :meth:`param_groups` to an optimizer, :meth:`attach` it, add :meth:`penalty` to the loss.
    Subclasses say what happens around an update, :meth:`before_step` (gradients are there) and :meth:`after_step`.
    This class itself changes nothing: the dense twin, whose density is 1.
    """

    def __init__(self, model: nn.Module, *, density: float, steps: int):
        self.model, self.target, self.steps = model, density, steps
        self.step = 0  # updates done
        self.layers = prunable(model)
        self.sizes = {name: layer.weight.numel() for name, layer in self.layers.items()}
        self.total = sum(self.sizes.values())

    def param_groups(self, **options: Any) -> list[dict[str, Any]]:
        """The model's parameters, with ``options`` (lr, weight_decay)."""
        return [{"params": list(self.model.parameters()), **options}]

    def attach(self, optimizer: Optimizer) -> None:
        """Let the method act before and after every ``optimizer.step()``."""
        self.optimizer = optimizer
        optimizer.register_step_pre_hook(lambda *_: self._before())
        optimizer.register_step_post_hook(lambda *_: self._after())

    def penalty(self) -> Tensor | float:
        """What the method adds to the loss."""
        return 0.0

    def before_step(self) -> None:
        """Called without autograd when all gradients are there."""

    def after_step(self) -> None:
        """Called without autograd after every update; ``self.step`` counts it."""

    @torch.no_grad()
    def kept(self) -> dict[str, int]:
        """How many weights of each layer are not zero where the network multiplies by them."""
        return {name: int(layer.weight.count_nonzero()) for name, layer in self.layers.items()}

    @property
    def density(self) -> float:
        """The fraction of all these layers' weights that are not zero."""
        return sum(self.kept().values()) / self.total

    def densities(self) -> dict[str, float]:
        """The fraction of weights that are not zero, by layer."""
        return {name: kept / self.sizes[name] for name, kept in self.kept().items()}

    def finalize(self) -> nn.Module:
        """A copy of the model with ordinary layers that hold zeros."""
        return copy.deepcopy(self.model)

    @torch.no_grad()
    def _before(self) -> None:
        self.before_step()

    @torch.no_grad()
    def _after(self) -> None:
        self.step += 1
        self.after_step()


class Masked(Method):
    """A method whose pruned weights *are* zero: masks [like the weight, bool] are applied to weights after each update.

    ``layer.weight.grad`` is dense when :meth:`before_step` is called, which may read it and must leave it masked
    (:meth:`mask_gradients`); :meth:`set_mask` changes a mask, and forgets the momentum of weights that come or go.
    """

    def __init__(self, model: nn.Module, *, density: float, steps: int):
        super().__init__(model, density=density, steps=steps)
        self.masks = {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in self.layers.items()}

    def before_step(self) -> None:
        self.mask_gradients()

    def after_step(self) -> None:
        self.update()
        for name, layer in self.layers.items():
            layer.weight.mul_(self.masks[name])

    def update(self) -> None:
        """Change the masks, where it is time to."""

    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights."""
        for name, layer in self.layers.items():
            layer.weight.grad.mul_(self.masks[name])

    def set_mask(self, name: str, mask: Tensor) -> None:
        """Change the mask of a layer. Weights that go become zero, weights that come start from zero."""
        weight = self.layers[name].weight
        stays = mask & self.masks[name]
        momentum = self.momentum(name)
        if momentum is not None:
            momentum.mul_(stays)
        weight.data.mul_(stays)
        self.masks[name] = mask

    def momentum(self, name: str) -> Tensor | None:
        """The optimizer's momentum of a layer's weight, before the first step and without momentum None."""
        return self.optimizer.state[self.layers[name].weight].get("momentum_buffer") if self.step else None

    def kept(self) -> dict[str, int]:
        return {name: int(mask.sum()) for name, mask in self.masks.items()}
