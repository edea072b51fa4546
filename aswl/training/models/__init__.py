"""The networks of the presets, by name."""

from collections.abc import Callable
from functools import partial

from torch import nn

from aswl.training.models.lenet import LeNet5, LeNet300
from aswl.training.models.resnet import ResNet

MODELS: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "lenet300": LeNet300,
    "lenet5": LeNet5,
    **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in (20, 32, 44, 56, 110)},
}

__all__ = ["LeNet5", "LeNet300", "ResNet", "build", "names"]


def build(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network for images of input_shape, (C, H, W), and a number of classes.

    Its forward takes float [B, C, H, W], gives logits [B, classes], and raises ValueError for images of another shape.
    Raises ValueError for an unknown name, and for a shape or number of classes that the network cannot have.
    """
    if name not in MODELS:
        raise ValueError(f"model: want one of {', '.join(MODELS)}; got {name!r}")
    if len(input_shape) != 3 or min(input_shape) < 1 or classes < 1:
        raise ValueError(f"{name}: want a positive (C, H, W) and number of classes; got {input_shape} and {classes}")
    return MODELS[name](input_shape, classes)


def names() -> tuple[str, ...]:
    """The names that build knows."""
    return tuple(MODELS)
