"""MobileNetV2 for CIFAR: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), table 2."""

from torch import Tensor, nn

from aswl.training.models.checks import check_images
from aswl.training.models.initial import he_initialize

# Expansion, channels, blocks and stride of each stage. The first convolution and the second stage have a stride of 2 in
# the paper, for images of 224x224 pixels, and 1 in what is common for CIFAR (github.com/kuangliu/pytorch-cifar).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FEATURES = 1280


class InvertedResidual(nn.Module):
    """A 1x1 convolution to ``expansion`` times the channels (none for 1), a depthwise 3x3 one, and a linear 1x1 one.

    There is a shortcut where the shape stays.
    """

    def __init__(self, channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = expansion * channels
        self.expand = _convolution(channels, wide) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(wide, wide, 3, stride, groups=wide)
        self.project = _convolution(wide, out_channels)[:2]  # without its ReLU
        self.has_shortcut = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C', H', W']
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.has_shortcut else y


class MobileNetV2(nn.Module):
    """A convolution, 17 inverted residuals, three of which halve the image, a 1x1 convolution and one linear layer.

    2,236,682 parameters for CIFAR-10; with 1,000 classes the 3,504,872 of torchvision's (the paper: 3.4M). Of its
    weights, 64,224 are depthwise ones, which :class:`aswl.ASWL` leaves dense unless told otherwise.

    input_shape: (C, H, W).
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        channels = 32
        layers: list[nn.Module] = [_convolution(input_shape[0], channels, 3)]
        for expansion, out_channels, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(channels, out_channels, expansion, 1 if block else stride))
                channels = out_channels
        self.features = nn.Sequential(*layers, _convolution(channels, FEATURES))
        self.fc = nn.Linear(FEATURES, classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        check_images(x, self.input_shape)
        return self.fc(self.features(x).mean((2, 3)))


def _convolution(channels: int, out_channels: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out_channels, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU6())
