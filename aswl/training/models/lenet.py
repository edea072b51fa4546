"""LeNet-300-100 and LeNet-5 (LeCun et al. 1998), the latter in Caffe's form, on which pruning papers report."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from aswl.training.models.checks import check_images


class LeNet300(nn.Module):
    """A perceptron with hidden layers of 300 and 100 units over the flattened image, of any shape (C, H, W)."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        self.fc1 = nn.Linear(math.prod(input_shape), 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        check_images(x, self.input_shape)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class LeNet5(nn.Module):
    """Two 5x5 convolutions, of 20 and 50 channels, each pooled by 2, then 500 hidden units, with a ReLU after each.

    Caffe's own network has no ReLU after the convolutions; the pruning papers compared here have (SNIP's and Sparse Momentum's
    code), and so has this one.

    input_shape: (C, H, W). Raises ValueError for less than 16x16 pixels.
    """

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)
        channels, *size = input_shape
        height, width = (((pixels - 4) // 2 - 4) // 2 for pixels in size)
        if min(height, width) < 1:
            raise ValueError(f"lenet5: want images of at least 16x16 pixels; got {size[0]}x{size[1]}")
        self.conv1 = nn.Conv2d(channels, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * height * width, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, classes]
        check_images(x, self.input_shape)
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)
