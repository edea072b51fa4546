"""ResNet-50 for ImageNet: He et al., "Deep Residual Learning for Image Recognition" (2015), in the form called v1.5.

Names of parameters are torchvision's, so that its checkpoints load.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from aswl.training.models.checks import check_images

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # blocks, and channels of their 3x3 convolutions
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut, which is a 1x1 convolution where the shape changes.

    v1.5: where the image is halved, the 3x3 convolution does it and not the first.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or channels != out_channels:
            shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, C', H', W']
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """A 7x7 convolution and a pooling, each halving the image, and four stages of bottlenecks, the later three halving it.

    input_shape: (C, H, W), published for (3, 224, 224).
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.conv1 = nn.Conv2d(input_shape[0], 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for number, (blocks, width) in enumerate(STAGES, 1):
            first = Bottleneck(channels, width, stride=1 if number == 1 else 2)
            channels = EXPANSION * width
            self.add_module(
                f"layer{number}", nn.Sequential(first, *(Bottleneck(channels, width, 1) for _ in range(blocks - 1)))
            )
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        check_images(x, self.input_shape)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))
