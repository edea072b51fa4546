"""Operators of ASWL: functions over tensors, each with a reference in plain PyTorch."""

from aswl_kernels.adjoint import adjoint
from aswl_kernels.backends import Backend, backends
from aswl_kernels.fused_adamw import fused_adamw_
from aswl_kernels.fused_sgd import fused_sgd_
from aswl_kernels.gap_linear import gap_linear
from aswl_kernels.gaps import GapWeight, pack_gaps, unpack_gaps
from aswl_kernels.gate import gate
from aswl_kernels.gate_all import gate_all
from aswl_kernels.magnitude_histogram import magnitude_histogram
from aswl_kernels.magnitude_threshold import magnitude_threshold, threshold_guesses
from aswl_kernels.masked_conv2d import masked_conv2d
from aswl_kernels.masked_linear import masked_linear
from aswl_kernels.pack import PackedWeight, pack, unpack
from aswl_kernels.sharded_threshold import sharded_magnitude_threshold
from aswl_kernels.share_budget import share_budget
from aswl_kernels.share_gradient import share_gradient_
from aswl_kernels.sparse_conv2d import sparse_conv2d
from aswl_kernels.sparse_linear import sparse_linear

__all__ = [
    "Backend",
    "GapWeight",
    "PackedWeight",
    "adjoint",
    "backends",
    "fused_adamw_",
    "fused_sgd_",
    "gap_linear",
    "gate",
    "gate_all",
    "magnitude_histogram",
    "magnitude_threshold",
    "masked_conv2d",
    "masked_linear",
    "pack",
    "pack_gaps",
    "sharded_magnitude_threshold",
    "share_budget",
    "share_gradient_",
    "sparse_conv2d",
    "sparse_linear",
    "threshold_guesses",
    "unpack",
    "unpack_gaps",
]
