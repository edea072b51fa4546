"""What sparse layers share: the attention, the threshold, and the way from and to the dense layer."""

import copy
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from aswl_kernels import gate, magnitude_threshold, tuned
from aswl_kernels._checks import compute_dtype
from aswl_kernels.break_even import CEILING, SMALLEST, break_even, eligible
from aswl_kernels.gate import gate_op


class _Steered(torch.autograd.Function):
    """The weight, or the masked one in its place, in the graph of the weight and of the attention, which gets no gradient."""

    @staticmethod
    def forward(ctx, weight: Tensor, attention: Tensor, masked: Tensor | None) -> Tensor:
        ctx.dtype = weight.dtype
        result = weight if masked is None else masked
        return result[...]  # view_as would change the strides of dimensions of 1, and with them the layout

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.to(ctx.dtype), None, None


class SparseLayer(nn.Module):
    """Mixin in front of ``nn.Linear`` or ``nn.Conv2d``: the weight acts as ``attention * weight`` where
    ``abs(weight) >= threshold`` and as 0 elsewhere (arXiv 2111.02399); its gradient is straight-through.

    ``attention``: parameter [1], 1 at first; ``threshold``: 0-d buffer, 0 (nothing pruned) until a
    :class:`aswl.ASWL` sets it. Both stay fp32 or wider, whatever dtype the module is moved to.
    ``attention_scale``: "paper" multiplies the output by the attention, "detached" by 1 and leaves the attention the
    same gradient. ``attention_steered``: someone else sets the attention's gradient, and none is computed; it stays in
    the graph, so that whoever waits for all parameters' gradients does not wait in vain. ``firm``: kept weights near the
    threshold act smaller, see :func:`aswl_kernels.gate`. ``products``: "dense", "sparse"
    (y and the input gradient by the kept weights alone), "fused" (mask and product in one kernel), or "auto": what was
    measured to be faster, on a CPU sparse or dense at the layer's density (:func:`aswl_kernels.break_even`), elsewhere
    fused or dense for its shape (:mod:`aswl_kernels.tuned`).
    ``learnable``: 0-d buffer, None at first: weights of smaller magnitude get no gradient (``backward_density``).
    ``masked``: the masked weight, while the forward of a model that has made it is under way (:mod:`aswl.masking`).
    """

    dense_type: type[nn.Module]  # the parent
    attention_scale = "paper"
    attention_steered = False
    firm = False
    products = "auto"
    masked: Tensor | None = None
    positions: int | None = None  # products per sample and weight, seen in the last eager forward
    last_products: str | None = None  # those of the last eager forward, "auto" resolved
    break_even: float | None = None  # the density below which sparse products are faster, where it was measured
    _share: tuple[int, float] | None = None  # version of the threshold, density then

    def _begin(self) -> None:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        self.attention = nn.Parameter(torch.ones(1, device=self.weight.device, dtype=dtype))
        self.register_buffer("threshold", torch.zeros((), device=self.weight.device, dtype=dtype))
        self.register_buffer("learnable", None, persistent=False)  # the sparsifier's state holds it

    @classmethod
    def from_dense(cls, dense: nn.Module) -> Self:
        """A sparse layer that shares the dense layer's parameters and hooks. Raises ``TypeError`` on another type."""
        if type(dense) is not cls.dense_type:
            raise TypeError(f"{cls.__name__}.from_dense: want nn.{cls.dense_type.__name__}; got {type(dense).__name__}")
        layer = copy.copy(dense)
        for name, value in vars(layer).items():
            if isinstance(value, (dict, set)):  # parameters, buffers, hooks: a container of its own, the same contents
                setattr(layer, name, value.copy())
        return cls.convert_(layer)

    @classmethod
    def convert_(cls, dense: nn.Module) -> Self:
        """Turn the dense layer itself into a sparse one, so that every reference to it stays good."""
        dense.__class__ = cls
        dense._begin()
        return dense

    def to_dense(self) -> nn.Module:
        """An ordinary layer with zeros, the attention folded into weight and bias; this one stays as it is."""
        return copy.deepcopy(self).fold_()

    @torch.no_grad()
    def fold_(self, weight: bool = True) -> nn.Module:
        """Turn this layer itself into the ordinary one; ``weight=False`` where a tied weight is folded already."""
        scale = self.attention if self.scaled else torch.ones_like(self.attention)
        if weight:
            self.weight.copy_(gate(self.weight, scale, self.threshold, firm=self.firm))
        if self.bias is not None:
            self.bias.mul_(scale)
        del self.attention, self.threshold, self.learnable
        for name in (
            "attention_scale",
            "attention_steered",
            "firm",
            "products",
            "positions",
            "last_products",
            "break_even",
            "_share",
            "masked",
        ):
            vars(self).pop(name, None)
        self.__class__ = self.dense_type
        return self

    @property
    def scaled(self) -> bool:
        """Whether the output is multiplied by the attention's value, and not by 1 with the attention's gradient."""
        return self.attention_scale == "paper"

    def _operands(self, input: Tensor, weight: Tensor, bias: Tensor | None, products: str) -> tuple[Tensor | None, ...]:
        """Weight, threshold, attention and bias as a masked product with this input takes them."""
        if not self.attention_steered:
            return weight, self.threshold, self.attention, bias
        threshold, scale = self.threshold, self.attention.detach() if self.scaled else None
        compiling = torch.compiler.is_compiling()
        if not compiling and torch._C._are_functorch_transforms_active():  # where nobody waits for gradients
            return weight, threshold, scale, bias
        masked, dtype = None, compute_dtype(weight)
        plain = products == "dense" and not (compiling or self.scaled) and self.learnable is None
        if plain and compute_dtype(input) == dtype:
            given = self.masked is not None and self.masked.dtype == dtype
            masked = self.masked if given else gate_op(weight.detach(), None, threshold, dtype, self.firm)
            threshold, bias = None, bias if bias is None else bias.to(dtype)
        return _Steered.apply(weight, self.attention, masked), threshold, scale, bias

    def note_density(self, density: float) -> None:
        """Spare the layer the count: the density that belongs to its threshold as it is now."""
        self._share = (self.threshold._version, density)

    def _choose(self, op: Callable[..., Tensor], input: Tensor, *geometry: object) -> str:
        """The ``products`` of ``op(input, weight, ..., *geometry)``."""
        products = self.products
        if products == "auto" and tuned.decides(input):
            products = "dense" if self.firm else tuned.products(op.__name__, input, self.weight, *geometry)
        elif products == "auto":
            products = self._by_density(op, input, *geometry)
        if not torch.compiler.is_compiling():
            self.last_products = products
        return products

    def _by_density(self, op: Callable[..., Tensor], input: Tensor, *geometry: object) -> str:
        """Sparse below the density where that was measured to be faster, otherwise dense."""
        multiplications = input.numel() * self.weight.numel() // max(self.weight.shape[1], 1)  # stride, groups: 1
        if torch.compiler.is_compiling() or multiplications < SMALLEST or not eligible(input, self.weight):
            return "dense"
        if self._share is None or self._share[0] != self.threshold._version:
            self.note_density(self.density)
        if self._share[1] >= CEILING:
            return "dense"
        self.break_even = break_even(op, input, self.weight, *geometry)
        return "sparse" if self._share[1] < self.break_even else "dense"

    @property
    def kept(self) -> int:
        """How many weights are kept."""
        return self.weight.numel() - int((self.weight.detach().abs().float() < self.threshold.float()).sum())

    @property
    def density(self) -> float:
        """The fraction of weights kept; 1 for an empty layer."""
        return self.kept / self.weight.numel() if self.weight.numel() else 1.0

    def reset_parameters(self) -> None:
        """As the parent's; attention 1, nothing pruned. The parent's constructor ends with a call of this."""
        super().reset_parameters()
        if "attention" not in self._parameters:
            return self._begin()
        with torch.no_grad():
            self.attention.fill_(1)
            self.threshold.zero_()

    def _apply(self, fn, recurse=True):
        held = (self.attention, self.attention.grad, self.threshold, self.learnable)

        def wide(tensor: Tensor) -> Tensor:  # a budget in bf16 would be off by 1 in 256
            moved = fn(tensor)
            narrow = moved.dtype.itemsize < 4 and any(tensor is each for each in held)
            return tensor.to(moved.device, torch.float32) if narrow else moved

        return super()._apply(wide, recurse)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        weight, own = state_dict.get(prefix + "weight"), (prefix + "attention", prefix + "threshold")
        if weight is None or not state_dict.keys().isdisjoint(own):
            return super()._load_from_state_dict(state_dict, prefix, *args)
        # a dense checkpoint: the attention stays, and the threshold moves so that as many weights stay kept
        if self.weight.is_meta:
            kept, cpu = self.weight.numel(), {"device": "cpu"}
            scalars = torch.ones_like(self.attention, **cpu), torch.zeros_like(self.threshold, **cpu)
        else:
            kept, scalars = self.kept, (self.attention.detach(), self.threshold)
        dense = state_dict | {name: scalar.to(weight.device) for name, scalar in zip(own, scalars)}
        super()._load_from_state_dict(dense, prefix, *args)
        if kept == self.weight.numel():
            self.threshold.zero_()
        else:
            keep = torch.tensor([kept], device=self.weight.device)
            self.threshold.copy_(magnitude_threshold([self.weight], keep)[0])
