"""The sparse linear layer."""

import torch
from torch import Tensor, nn

from aswl.nn._layer import SparseLayer
from aswl_kernels import masked_linear


class SparseLinear(SparseLayer, nn.Linear):
    """``nn.Linear`` that trains sparse: y = a (x sparse.T + b), see :class:`SparseLayer`.

    Constructor, shapes ([..., in] to [..., out]), dtypes and parameter names are the parent's; with attention 1 and
    nothing pruned so is the result. Nested tensors take the dense products. Raises ``ValueError`` on an input of another
    shape, dtype or device.
    """

    dense_type = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        if not (torch.compiler.is_compiling() or input.is_nested):
            self.positions = input.shape[1:-1].numel()
        products = "dense" if input.is_nested else self._choose(masked_linear, input)
        operands = self._operands(input, self.weight, self.bias, products)
        return masked_linear(input, *operands, self.scaled, products, self.learnable, self.firm)
