"""The peers' layers, where they are installed: SparseProp (Nikdan et al., arXiv 2302.04852), pip install 'aswl[bench]'."""

import importlib.util

import torch
from torch import Tensor

SPARSEPROP = all(importlib.util.find_spec(name) for name in ("sparseprop", "backend"))  # its C++ module is `backend`


def sparseprop_linear(weight: Tensor, bias: Tensor) -> torch.nn.Module:
    """SparseProp's linear layer; its gradient goes to ``W_val``."""
    from sparseprop.modules.linear import SparseLinear

    return SparseLinear(weight, torch.nn.Parameter(bias))


def sparseprop_conv2d(weight: Tensor, padding: int, over_on: bool) -> torch.nn.Module:
    """SparseProp's convolution, vectorised over the output's width (``over_on``) or over the images."""
    from sparseprop.modules.conv2d import SparseConv2d

    return SparseConv2d(weight, padding=padding, vectorizing_over_on=over_on)
