"""VGG-16 for CIFAR, as papers on sparse training use it, after Simonyan and Zisserman (2014), configuration D."""

import torch.nn.functional as F
from torch import Tensor, nn

from aswl.training.models.checks import check_images
from aswl.training.models.initial import he_initialize

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, and 3x3 convolutions of that many
HIDDEN = 512


class VGG16(nn.Module):
    """13 convolutions with batch norm in five stages, each but the last halving the image, then 512 hidden units.

    The form of DST (Liu et al., "Dynamic Sparse Training", 2020; its published code), whose convolutions have no bias and
    whose last image is averaged: 14,987,722 parameters for CIFAR-10. SNIP's and Sparse Momentum's VGG-like is the same up
    to the kind of the last pooling and those biases; their VGG-D, the one that Sparse Momentum's 93.0% at density 5%
    belongs to, has one hidden layer more.

    input_shape: (C, H, W). Raises ValueError for less than 16x16 pixels.
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        channels, height, width = input_shape
        if min(height, width) < 16:
            raise ValueError(f"vgg16: want images of at least 16x16 pixels; got {height}x{width}")
        layers: list[nn.Module] = []
        for stage, (out_channels, convolutions) in enumerate(STAGES):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels)]
                layers += [nn.ReLU()]
                channels = out_channels
        self.features = nn.Sequential(*layers)
        self.fc1 = nn.Linear(channels, HIDDEN)
        self.bn1 = nn.BatchNorm1d(HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, classes)
        he_initialize(self)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        check_images(x, self.input_shape)
        x = self.features(x).mean((2, 3))
        return self.fc2(F.relu(self.bn1(self.fc1(x))))
