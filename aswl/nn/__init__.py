"""Drop-in sparse layers."""

from aswl.nn._layer import SparseLayer
from aswl.nn.conv import SparseConv2d
from aswl.nn.linear import SparseLinear

__all__ = ["SparseConv2d", "SparseLayer", "SparseLinear"]
