"""Which layer a program serves, in kernels that serve many, and what lies at its addresses."""

import torch
import triton
import triton.language as tl

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def owner(firsts_ptr, program, n_layers, LAYERS: tl.constexpr):
    """The layer that ``program`` serves, and which one of the layer's own it is; ``firsts_ptr``: each layer's first."""
    layer = tl.arange(0, LAYERS)
    first = tl.load(firsts_ptr + layer, mask=layer < n_layers, other=0x7FFFFFFFFFFFFFFF)
    begun = first <= program  # the last of them: a layer without programs begins where the next one does
    return tl.sum(begun.to(tl.int32)) - 1, program - tl.max(tl.where(begun, first, 0))
