"""The indices of a packed weight, checked before a kernel follows them."""

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from aswl_kernels._checks import want


def check_indices(op: str, packed) -> None:
    """Raise ``ValueError`` unless each row of the ``PackedWeight`` has ascending columns within the weight's shape; looks
    when :func:`unchecked` says so.
    """
    if not unchecked(packed):
        return
    packed.__post_init__()  # lengths can change in place, too
    columns, offsets = packed.indices
    size, nonzeros = math.prod(packed.shape[1:]), len(columns)
    ascend = offsets[0] == 0 and offsets[-1] == nonzeros and bool((offsets.diff() >= 0).all())
    want(ascend, op, f"packed offsets that ascend from 0 to the {nonzeros} nonzeros", offsets.tolist()[:10])
    if nonzeros:
        least, most = (bound.item() for bound in columns.aminmax())
        want(0 <= least and most < size, op, f"packed columns from 0 to {size - 1}", least, most)
        ascends = columns.diff() > 0
        starts = offsets[1:-1]
        ascends[starts[(starts > 0) & (starts < nonzeros)] - 1] = True  # from one row to the next
        want(bool(ascends.all()), op, "packed columns that ascend within each row", columns[:10].tolist())
    trust(packed)


def unchecked(packed) -> bool:
    """Whether the indices of a packed weight have to be looked at, and can be.

    What was found good is not looked at again until its tensors change in place. In-place changes under inference mode
    leave no trace; the C++ products look at ranges in every call. Nothing is read of tensors without values (fake ones,
    ``meta``), under ``vmap``, or while a dispatch mode traces.
    """
    known = torch.compiler.is_compiling() or packed.checked == _state(packed)
    return not known and all(_has_values(t) for t in packed.indices)


def trust(packed):
    """Mark a packed weight whose indices are right, as they are made here; returns it."""
    if not torch.compiler.is_compiling():
        object.__setattr__(packed, "checked", _state(packed))
    return packed


def _has_values(t: Tensor) -> bool:
    plain = type(t) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(t)
    return plain and not t.is_meta and _get_current_dispatch_mode() is None


def _state(packed) -> tuple:
    """What an in-place change of the indices changes."""
    return packed.values.shape, *((t.shape, None if t.is_inference() else t._version) for t in packed.indices)
