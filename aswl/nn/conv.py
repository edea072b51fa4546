"""The sparse convolution."""

import torch.nn.functional as F
from torch import Tensor, nn

from aswl.nn._layer import SparseLayer
from aswl_kernels import masked_conv2d


class SparseConv2d(SparseLayer, nn.Conv2d):
    """``nn.Conv2d`` that trains sparse: y = a (conv2d(x, sparse) + b), see :class:`SparseLayer`.

    Constructor, shapes ([N, C, H, W] or [C, H, W]), memory formats, dtypes and parameter names are the parent's; with
    attention 1 and nothing pruned so is the result. Raises ``ValueError`` on an input of another shape, dtype or device.
    """

    dense_type = nn.Conv2d

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        y = masked_conv2d(
            input, weight, self.threshold, self.scale(), bias, self.stride, padding, self.dilation, self.groups
        )
        self.positions = y.shape[-2:].numel()
        return y
