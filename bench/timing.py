"""Timing of variants against each other."""

from aswl_kernels.timing import interleaved

__all__ = ["interleaved"]
