"""The networks of the presets, by name."""

from collections.abc import Callable
from functools import partial

from torch import nn

from aswl.training.models.lenet import LeNet5, LeNet300
from aswl.training.models.mobilenet import MobileNetV2
from aswl.training.models.resnet import ResNet
from aswl.training.models.resnet50 import ResNet50
from aswl.training.models.vgg import VGG16
from aswl.training.models.wide_resnet import WideResNet

Shape = tuple[int, int, int]  # of an image: (C, H, W)
MODELS: dict[str, Callable[[Shape, int], nn.Module]] = {
    "lenet300": LeNet300,
    "lenet5": LeNet5,
    **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in (20, 32, 44, 56, 110)},
    "resnet50": ResNet50,
    "vgg16": VGG16,
    **{f"wrn{d}-{w}": partial(WideResNet, depth=d, width=w) for d, w in ((22, 2), (16, 8), (28, 10))},
    "mobilenetv2": MobileNetV2,
}

__all__ = [
    "VGG16",
    "LeNet5",
    "LeNet300",
    "MobileNetV2",
    "ResNet",
    "ResNet50",
    "WideResNet",
    "build",
    "names",
    "published_for",
]


def build(name: str, input_shape: Shape, classes: int) -> nn.Module:
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


def published_for(name: str) -> tuple[Shape, int]:
    """The images and the number of classes that papers report of a network: MNIST's, CIFAR-10's or ImageNet's."""
    if name == "resnet50":
        return (3, 224, 224), 1000
    return ((1, 28, 28) if name.startswith("lenet") else (3, 32, 32)), 10
