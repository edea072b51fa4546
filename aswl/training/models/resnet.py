"""The CIFAR ResNets of He et al., "Deep Residual Learning for Image Recognition" (2015), section 4.2."""

import torch.nn.functional as F
from torch import Tensor, nn

from aswl.training.models.checks import check_images
from aswl.training.models.initial import he_initialize


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (option A).

    Where the channels change, the image is halved, and so is the shortcut, with zeros for its new channels.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.new_channels = out_channels - channels
        stride = 2 if self.new_channels else 1
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C', H', W']
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.new_channels:
            half = self.new_channels // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        return F.relu(y + x)


class ResNet(nn.Module):
    """Three stages of basic blocks with 16, 32 and 64 channels, the later two halving the image.

    input_shape: (C, H, W); depth: layers with weights, 6n + 2 of them. Raises ValueError for another depth.
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int, depth: int = 20) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"resnet: want a depth of 6n + 2, as 20, 32 or 56; got {depth}")
        blocks = (depth - 2) // 6
        self.input_shape = tuple(input_shape)
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.fc = nn.Linear(64, classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        check_images(x, self.input_shape)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _stage(channels: int, out_channels: int, blocks: int) -> nn.Sequential:
    rest = (Block(out_channels, out_channels) for _ in range(blocks - 1))
    return nn.Sequential(Block(channels, out_channels), *rest)
