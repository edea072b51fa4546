"""The masks of a model's small weights, made all at once where the model's forward begins."""

import torch
from torch import Tensor, nn

from aswl.nn import SparseLayer
from aswl_kernels import gate_all
from aswl_kernels._checks import compute_dtype

DEVICES = ("cuda",)  # where a launch may cost more than what it does
LARGEST = 1 << 20  # weights of a layer, whose mask takes about as long as its launch


class Masks:
    """Hooks of a model: ``make`` gives its layers their masked weights, ``drop`` takes them back.

    ``layers``: sparse layers by weight (more than one where it is tied), whose attentions neither scale nor learn in the
    backward. A layer that is called by itself, traced, compiled or otherwise out of the ordinary masks its own weight.
    """

    def __init__(self, layers: list[list[SparseLayer]]):
        self.layers = layers

    def attach(self, model: nn.Module) -> None:
        """Follow every forward of the model."""
        model.register_forward_pre_hook(self.make)
        model.register_forward_hook(self.drop, always_call=True)

    def make(self, model: nn.Module, args: tuple) -> None:
        """Give each small layer its masked weight, in autocast's dtype where that is on."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
            return
        kinds: dict[tuple, list[list[SparseLayer]]] = {}
        for layers in self.layers:
            weight = layers[0]._parameters.get("weight")  # none where it is parametrised
            small = type(weight) is nn.Parameter and weight.device.type in DEVICES and weight.numel() <= LARGEST
            if small and all(layer.last_products in (None, "dense") and layer.learnable is None for layer in layers):
                kinds.setdefault((weight.device, weight.dtype, layers[0].firm), []).append(layers)
        for alike in kinds.values():
            if len(alike) > 1:
                first = [layers[0] for layers in alike]
                dtype = compute_dtype(first[0].weight)
                weights, thresholds = [layer.weight.detach() for layer in first], [layer.threshold for layer in first]
                masked = gate_all(weights, thresholds, dtype, first[0].firm)
                for layers, weight in zip(alike, masked):
                    _give(layers, weight)

    def drop(self, model: nn.Module, args: tuple, output: object) -> None:
        """The weights may change from here on."""
        if not torch.compiler.is_compiling():
            for layers in self.layers:
                if layers[0].masked is not None:  # setting an attribute of a module takes its time
                    _give(layers, None)


def _give(layers: list[SparseLayer], masked: Tensor | None) -> None:
    for layer in layers:
        layer.masked = masked


def forget(model: nn.Module) -> None:
    """Remove the hooks."""
    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), Masks):
                del hooks[key]
    for key in set(model._forward_hooks_always_called) - set(model._forward_hooks):
        del model._forward_hooks_always_called[key]
