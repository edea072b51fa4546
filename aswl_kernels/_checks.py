"""What every public operator checks of its arguments; each failure says what was wanted and what came."""

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# asked here and not while a model is traced, which torch 2.11 cannot do
AUTOCAST = {kind for kind in ("cpu", "cuda", "xpu", "mps", "hpu", "mtia") if torch.amp.is_autocast_available(kind)}


def describe(*values: object) -> str:
    """Dtype, shape and device of each tensor, and any other value as it is, for an error text."""
    return ", ".join(
        f"{str(v.dtype).removeprefix('torch.')}{list(v.shape)} on {v.device}" if isinstance(v, Tensor) else repr(v)
        for v in values
    )


def want(condition: bool, op: str, wanted: str, *got: object) -> None:
    """Raise ``ValueError("<op>: want <wanted>; got <values>")`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{op}: want {wanted}; got {describe(*got)}")


def check_scalar(op: str, name: str, scalar: Tensor, weight: Tensor) -> None:
    """``scalar`` is a floating tensor with one element (0-d or [1]) on the weight's device."""
    want(
        scalar.dim() <= 1 and scalar.numel() == 1 and scalar.dtype in FLOATING and scalar.device == weight.device,
        op,
        f"{name} a floating 0-d or [1] tensor on {weight.device}",
        scalar,
    )


def check_operands(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """``x``, ``weight`` [out, ...] and ``bias`` [out] are floating, on one device, of dtypes that can be multiplied."""
    want(x.dtype in FLOATING and weight.dtype in FLOATING, op, "floating x and weight", x, weight)
    want(x.device == weight.device, op, "x and weight on one device", x, weight)
    master = weight.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)
    want(x.dtype == weight.dtype or master, op, "x of weight's dtype, or bf16/fp16 x with fp32 weight", x, weight)
    if bias is not None:
        fits = bias.shape == weight.shape[:1] and bias.dtype in (weight.dtype, x.dtype) and bias.device == weight.device
        want(fits, op, f"bias [{weight.shape[0]}] of weight's dtype and device", bias, weight)


def to_autocast(x: Tensor) -> Tensor:
    """``x`` in autocast's dtype where autocast is on, as PyTorch does for the parent operators."""
    return x.to(compute_dtype(x))


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which an operator multiplies ``x``: its own, or autocast's."""
    kind = x.device.type
    eligible = x.dtype in FLOATING and x.dtype != torch.float64 and kind in AUTOCAST
    return torch.get_autocast_dtype(kind) if eligible and torch.is_autocast_enabled(kind) else x.dtype
