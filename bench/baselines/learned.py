"""What the methods that learn their thresholds have in common, and how they are brought to a density asked for."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from aswl.schedule import Polynomial
from bench.baselines.method import Method
from bench.baselines.shares import global_scores, largest


class Thresholded(nn.Module):
    """A layer's parametrization: what the layer multiplies by, made of its dense ``weight`` and learned ``threshold``.

    ``mask``: None until the structure is frozen; then the weight under this mask, and the threshold is out of use.
    """

    threshold: nn.Parameter
    mask: Tensor | None

    def __init__(self, threshold: Tensor):
        super().__init__()
        self.threshold = nn.Parameter(threshold)
        self.register_buffer("mask", None)

    def forward(self, weight: Tensor) -> Tensor:
        return self.sparse(weight) if self.mask is None else weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight  # the parametrization starts from the layer's weight as it is

    def sparse(self, weight: Tensor) -> Tensor:
        """The paper's sparse weight."""
        raise NotImplementedError

    def push(self) -> Tensor:
        """How fast, in relation to other layers, the paper's regulariser raises the threshold; positive, like it."""
        raise NotImplementedError

    def margin(self, weight: Tensor) -> Tensor:
        """How many pushes a weight withstands: it is zero in ``sparse`` once the threshold is raised by more of them."""
        raise NotImplementedError


class Controller:
    """The strength of a method's regulariser for which the network has the density that a schedule asks for.

    No paper has such a thing: there a strength is tried out for each density. It is given to these methods so that they
    can be compared at the same density as all others, and nothing of theirs is tuned by hand. What they learn, which
    threshold should be higher than which other, is theirs; the regulariser, which raises all thresholds, is replaced by
    a number of its pushes, found exactly (:meth:`pushes`) and negative where thresholds must come down. So do the
    attentions of :class:`aswl.ASWL`, which learn the layers' shares of a density that is asked for, too.
    """

    def __init__(self, density: float, steps: int, *, end: float, every: int):
        self.every = every
        self.density = Polynomial(1.0, density, 0, end * steps, 3.0)  # gradual pruning's cubic, then held

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def pushes(self, margins: list[Tensor], density: float) -> Tensor:
        """The number of pushes, 0-d, that as many weights withstand as ``density`` asks for: half way to the next."""
        values = torch.cat([margin.flatten() for margin in margins])
        count = min(max(round(density * values.numel()), 1), values.numel())
        last = values.kthvalue(values.numel() - count + 1).values
        below = values[values < last]
        return (last + below.max()) / 2 if below.numel() else last


class LearnedThresholds(Method):
    """A method with a :class:`Thresholded` weight in every layer, made by ``parametrization(weight)``.

    ``strength``: of the paper's own regulariser; None: the :class:`Controller`'s, every ``every`` updates. It is at the
    density asked for by the fraction ``end`` of training; at ``freeze`` the weights that withstand most pushes, exactly
    round(density * n) and one at least in every layer, become the structure, and training goes on with these alone.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        density: float,
        steps: int,
        strength: float | None = None,
        end: float = 0.7,
        freeze: float = 0.75,
        every: int = 10,
    ):
        super().__init__(model, density=density, steps=steps)
        self.strength = strength
        self.controller = None if strength is not None else Controller(density, steps, end=end, every=every)
        self.freeze = round(freeze * steps)
        for layer in self.layers.values():
            parametrize.register_parametrization(layer, "weight", self.parametrization(layer.weight))
        self.learned = {name: layer.parametrizations.weight[0] for name, layer in self.layers.items()}
        self.dense = {name: layer.parametrizations.weight.original for name, layer in self.layers.items()}

    def parametrization(self, weight: Tensor) -> Thresholded:
        raise NotImplementedError

    def param_groups(self, **options: Any) -> list[dict[str, Any]]:
        """The model's parameters with ``options``, and the thresholds with :meth:`threshold_options`."""
        thresholds = [learned.threshold for learned in self.learned.values()]
        of_method = {id(threshold) for threshold in thresholds}
        others = [parameter for parameter in self.model.parameters() if id(parameter) not in of_method]
        return [{"params": others, **options}, {"params": thresholds, **options, **self.threshold_options(**options)}]

    def threshold_options(self, **options: Any) -> dict[str, Any]:
        """What is different for the thresholds, of the options given for the other parameters."""
        return {}

    def after_step(self) -> None:
        if self.controller is not None and self.step > self.freeze:
            return
        self.adjust()
        if self.controller is not None and (self.step == self.freeze or self.controller.due(self.step)):
            density = self.controller.density(self.step)
            margins = {name: learned.margin(self.dense[name]) for name, learned in self.learned.items()}
            pushes = self.controller.pushes(list(margins.values()), density)
            for name, learned in self.learned.items():
                last = self.controller.pushes([margins[name]], 0.0)  # more would cut the layer's last weight
                learned.threshold.add_(torch.minimum(pushes, last) * learned.push())
            if self.step == self.freeze:
                self.fix(margins)

    def adjust(self) -> None:
        """What the paper does to weights and thresholds after an update, while thresholds are learned."""

    def fix(self, margins: dict[str, Tensor]) -> None:
        """Freeze the structure: those with the largest margins stay, with the value they have in ``sparse``."""
        for name, count in global_scores(margins, self.target).items():
            learned, weight = self.learned[name], self.dense[name]
            mask = largest(margins[name], count)
            sparse = learned.sparse(weight)
            tiny = torch.finfo(weight.dtype).eps * weight.abs()  # where rounding, or the layer's first, left a zero
            weight.copy_(torch.where(sparse == 0, tiny.copysign(weight), sparse) * mask)
            learned.mask = mask

    def finalize(self) -> nn.Module:
        """A copy of the model with ordinary layers that hold zeros."""
        model = super().finalize()
        for name in self.layers:
            layer = model.get_submodule(name)
            weight = nn.Parameter(layer.weight.detach())
            # remove_parametrizations would change the class, which the copy shares with its original
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            layer.weight = weight
        return model
