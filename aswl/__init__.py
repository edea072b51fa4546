"""ASWL: neural networks trained sparse from scratch (arXiv 2111.02399)."""

from aswl import nn, optim
from aswl.guard import DeadLayerError
from aswl.sparsifier import ASWL

__all__ = ["ASWL", "DeadLayerError", "nn", "optim"]
__version__ = "0.1.0"
