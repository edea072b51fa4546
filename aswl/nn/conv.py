"""The sparse convolution."""

import torch
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
            input, padding = self._pad(input), 0
        geometry = self.stride, padding, self.dilation, self.groups
        products = self._choose(masked_conv2d, input, *geometry)
        operands = self._operands(input, weight, bias, products)
        y = masked_conv2d(input, *operands, *geometry, self.scaled, products, self.learnable, self.firm)
        if not torch.compiler.is_compiling():
            self.positions = y.shape[-2:].numel()
        return y

    def _pad(self, input: Tensor) -> Tensor:
        """The input padded by ``padding_mode``, which needs so many rows and columns of its own."""
        pads = self._reversed_padding_repeated_twice  # left, right, top, bottom
        least = [
            {"reflect": p + 1, "replicate": 1, "circular": max(p, 1)}[self.padding_mode]
            for p in (max(pads[2:]), max(pads[:2]))
        ]
        if input.dim() not in (3, 4) or any(size < need for size, need in zip(input.shape[-2:], least)):
            raise ValueError(
                f"SparseConv2d: want x [N, C, H, W] or [C, H, W] with H >= {least[0]} and W >= {least[1]} to pad by "
                f"{self.padding_mode!r}; got shape {list(input.shape)}"
            )
        return F.pad(input, pads, mode=self.padding_mode)
