"""Wide ResNets for CIFAR: Zagoruyko and Komodakis, "Wide Residual Networks" (2016), section 2 and table 1."""

import torch.nn.functional as F
from torch import Tensor, nn

from aswl.training.models.checks import check_images
from aswl.training.models.initial import he_initialize


class Block(nn.Module):
    """Two 3x3 convolutions, batch norm and ReLU before each, around a shortcut: B(3, 3) without dropout.

    Where the channels change, the shortcut is a 1x1 convolution of the input after its batch norm and ReLU, as in the
    authors' code; ``stride`` is then the first convolution's and the shortcut's.
    """

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if channels != out_channels:
            self.shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C', H', W']
        y = F.relu(self.bn1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = self.conv1(y)
        return x + self.conv2(F.relu(self.bn2(y)))


class WideResNet(nn.Module):
    """Three stages of blocks with 16, 32 and 64 times ``width`` channels, the later two halving the image.

    Parameters for CIFAR-10: 1,079,642 (WRN-22-2), 10,961,370 (16-8) and 36,479,194 (28-10), in the paper 11.0M and 36.5M.
    WRN-22-2 is RigL's, whose published code trains it with a dropout of 0.3 between the convolutions; here there is none.

    input_shape: (C, H, W); depth: convolutions, those of the three shortcuts included, 6n + 4 of them for n blocks a stage.
    Raises ValueError for another depth, and for a width below 1.
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int, depth: int, width: int) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4 or width < 1:
            raise ValueError(
                f"wrn: want a depth of 6n + 4, as 16, 22 or 28, and a width of 1 or more; got {depth} and {width}"
            )
        blocks = (depth - 4) // 6
        self.input_shape = tuple(input_shape)
        self.conv1 = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, 16 * width, blocks, stride=1)
        self.layer2 = _stage(16 * width, 32 * width, blocks, stride=2)
        self.layer3 = _stage(32 * width, 64 * width, blocks, stride=2)
        self.bn = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        check_images(x, self.input_shape)
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


def _stage(channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = (Block(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(Block(channels, out_channels, stride), *rest)
