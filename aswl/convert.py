"""Which layers of a model are pruned, and their change of type in place."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DataParallel, DistributedDataParallel

from aswl.masking import forget
from aswl.nn import SparseConv2d, SparseLayer, SparseLinear
from aswl.structure import PrunedWeight

SPARSE_TYPES = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}


def sparsify(
    model: nn.Module, include: Iterable[str] | None, exclude: Iterable[str], depthwise: bool
) -> tuple[list[PrunedWeight], int]:
    """Make the model's linear layers and convolutions sparse, in place; return them and the count of weights left dense.

    Left alone are layers that ``include`` (None is everything) does not match or ``exclude`` does, frozen ones,
    depthwise convolutions unless asked for, and weights that some other kind of module uses too (an embedding, say).
    Patterns are shell globs of module names; a module's name stands for all inside it. Raises ``ValueError`` for a
    pattern that matches nothing, and a model with nothing to prune, ``TypeError`` for a wrapper that must come later.
    """
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise TypeError(f"ASWL: want the model before it is wrapped in {type(model).__name__}; got the wrapper")
    exclude, include = _patterns(exclude), None if include is None else _patterns(include)
    layers = dict(_layers(model))
    if not layers:
        raise ValueError(f"ASWL: want a model with nn.Linear or nn.Conv2d layers; {type(model).__name__} has none")
    for option, patterns in (("exclude", exclude), ("include", include or ())):
        for pattern in patterns:
            if not any(_matches(name, pattern) for name in layers):
                raise ValueError(f"ASWL: {option} pattern {pattern!r} matches no layer; there are: {', '.join(layers)}")
    elsewhere = _weights_elsewhere(model)
    pruned: dict[int, PrunedWeight] = {}
    left_dense: dict[int, int] = {}
    for name, layer in layers.items():
        key = id(layer.weight)
        chosen = (
            (include is None or any(_matches(name, pattern) for pattern in include))
            and not any(_matches(name, pattern) for pattern in exclude)
            and layer.weight.requires_grad
            and layer.weight.numel() > 0
            and (depthwise or not _is_depthwise(layer))
            and key not in elsewhere
        )
        if chosen:
            pruned.setdefault(key, PrunedWeight(name, [])).layers.append(layer)
        else:
            left_dense[key] = layer.weight.numel()
    for key in pruned.keys() & left_dense.keys():  # tied to a layer that stays dense
        del pruned[key]
    if not pruned:
        raise ValueError(f"ASWL: nothing is left to prune; frozen or not chosen: {', '.join(layers)}")
    for entry in pruned.values():
        _make_sparse(entry)
    _forbid_fused_inference(model)
    return list(pruned.values()), sum(left_dense.values())


def release(model: nn.Module) -> nn.Module:
    """Turn the model's sparse layers into ordinary ones, in place: attention folded in, zeros where pruned."""
    folded: set[int] = set()
    for layer in list(model.modules()):
        if isinstance(layer, SparseLayer):
            layer.fold_(weight=id(layer.weight) not in folded)
            folded.add(id(layer.weight))
            for key, hook in list(layer._forward_pre_hooks.items()):
                if hook is _no_change:
                    del layer._forward_pre_hooks[key]
    forget(model)
    return model


def _patterns(globs: Iterable[str]) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else tuple(globs)


def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:i]), pattern) for i in range(1, len(parts) + 1))


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Layers of exactly the known types: a subclass may use its weight in ways of its own."""
    for name, module in model.named_modules():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            raise ValueError(f"ASWL: want a model whose lazy modules have seen an input; {name!r} has not")
        known = type(module) in SPARSE_TYPES or isinstance(module, SparseLayer)
        if known and isinstance(module._parameters.get("weight"), nn.Parameter):
            yield name, module


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.weight.shape[1] == 1


def _weights_elsewhere(model: nn.Module) -> set[int]:
    """Identities of the parameters that modules of other types own."""
    known = {id(layer) for _, layer in _layers(model)}
    others = (module for module in model.modules() if id(module) not in known)
    return {id(parameter) for module in others for parameter in module.parameters(recurse=False)}


def _make_sparse(entry: PrunedWeight) -> None:
    for layer in entry.layers:
        if not isinstance(layer, SparseLayer):
            SPARSE_TYPES[type(layer)].convert_(layer)
        layer.attention = entry.attention


def _forbid_fused_inference(model: nn.Module) -> None:
    """In eval mode, ``nn.TransformerEncoderLayer`` hands its layers' raw weights to one fused kernel, which would use
    the dense ones; it does not where a hook is registered below it.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            for layer in (module.linear1, module.linear2):
                if isinstance(layer, SparseLayer):
                    layer.register_forward_pre_hook(_no_change)


def _no_change(module: nn.Module, args: tuple) -> None:
    return None
