"""ASWL: neural networks trained sparse from scratch (arXiv 2111.02399)."""

from aswl import nn

__all__ = ["nn"]
__version__ = "0.1.0"
