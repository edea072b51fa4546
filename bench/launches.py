"""What is compiled ahead of time: launches of every Triton kernel, by name, with the arguments that training has."""

from collections.abc import Callable
from functools import partial
from unittest import mock

import torch

from aswl_kernels import (
    fused_adamw_triton,
    fused_sgd_triton,
    gap_linear_triton,
    gate_all_triton,
    gate_triton,
    magnitude_histogram_triton,
    magnitude_threshold_triton,
    masked_conv2d_triton,
    masked_conv2d_weight_triton,
    masked_linear_triton,
    share_budget_triton,
    share_gradient_triton,
)
from aswl_kernels.reference_gaps import STEP, STRIP, gap_blocks

Launch = Callable[[], object]
FP32, BF16 = torch.float32, torch.bfloat16


def _gate() -> dict[str, Launch]:
    weight, one = torch.empty(1 << 20), torch.ones(1)
    gradient = partial(gate_triton.attention_gradient, weight=weight, attention=one, threshold=one)
    return {
        "gate, fp32": partial(gate_triton.gate, weight, one, one),
        "gate, fp32 to bf16, attention 1": partial(gate_triton.gate, weight, None, one, BF16),
        "gate, bf16": partial(gate_triton.gate, weight.to(BF16), one, one),
        "gate, fp32 to bf16, attention 1, firm": partial(gate_triton.gate, weight, None, one, BF16, True),
        "attention_gradient, fp32": partial(gradient, weight),
        "attention_gradient, bf16 over fp32": partial(gradient, weight.to(BF16)),
        "gate_all, fp32, 20 layers": partial(gate_all_triton.gate_all, [weight] * 20, [one] * 20),
        "gate_all, fp32 to bf16, 20 layers": partial(gate_all_triton.gate_all, [weight] * 20, [one] * 20, BF16),
        "gate_all, fp32 to bf16, 20 layers, firm": partial(
            gate_all_triton.gate_all, [weight] * 20, [one] * 20, BF16, True
        ),
    }


def _gap_linear() -> dict[str, Launch]:
    shape, bias = (28672, 8192), torch.empty(28672)
    strips, segments = gap_blocks(*shape)
    offsets, lengths = torch.empty(strips * segments + 1, dtype=torch.int64), torch.empty(shape[0], segments, dtype=int)

    def pieces(codes: torch.dtype, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        return torch.empty(STEP * STRIP, dtype=dtype), torch.empty(STRIP, dtype=codes), offsets, lengths.int()

    def product(rows: int, codes: torch.dtype, dtype: torch.dtype) -> Launch:
        x = torch.empty(rows, shape[1], dtype=dtype)
        return partial(gap_linear_triton.gap_linear, x, *pieces(codes, dtype), bias.to(dtype))

    return {
        **{f"gap_linear, bf16, rows {n}": product(n, torch.int32, BF16) for n in (1, 4, 16)},
        "gap_linear, bf16, rows 1, codes of 8 bits": product(1, torch.int64, BF16),
        "gap_linear, fp32, rows 16": product(16, torch.int32, FP32),
        "unpack_gaps, bf16": partial(gap_linear_triton.unpack_gaps, *pieces(torch.int32, BF16), shape),
    }


def _sharing() -> dict[str, Launch]:
    attention, sizes = torch.ones(54), torch.ones(54, dtype=torch.int64)
    seen = attention, attention.sum(), attention.double()
    return {
        "share_budget, 54 layers": partial(share_budget_triton.share_budget, attention, sizes, sizes[0], 1.0, 1),
        "share_gradient_, 54 layers": partial(
            share_gradient_triton.share_gradient_, *seen, attention, sizes, 1.0, 0.99, seen[2]
        ),
    }


def _masked_linear() -> dict[str, Launch]:
    def launch(op, rows, outputs, inputs, dtype, weight_dtype, full="ieee"):
        x, grad = torch.empty(rows, inputs, dtype=dtype), torch.empty(rows, outputs, dtype=dtype)
        weight, one = torch.empty(outputs, inputs, dtype=weight_dtype), torch.ones(1)
        args = {
            "masked_linear": (x, weight, one, one, weight[:, 0]),
            "masked_linear_input_gradient": (grad, weight, one, one),
            "masked_linear_weight_gradient": (grad, x, weight, one, one, one),
        }[op]
        with mock.patch.object(masked_linear_triton, "FULL", full):
            getattr(masked_linear_triton, op)(*args)

    ops = ("masked_linear", "masked_linear_input_gradient", "masked_linear_weight_gradient")
    sizes, pairs = (4096, 8192, 4096), {"bf16": (BF16, BF16), "bf16 over fp32": (BF16, FP32)}
    return {
        **{f"{op}, {name}": partial(launch, op, *sizes, *pair) for op in ops for name, pair in pairs.items()},
        **{f"{op}, tf32": partial(launch, op, *sizes, FP32, FP32, "tf32") for op in ops},
        f"{ops[0]}, fp32": partial(launch, ops[0], *sizes, FP32, FP32),
        f"{ops[0]}, bf16, middle tile": partial(launch, ops[0], 1024, 1024, 4096, BF16, BF16),
        f"{ops[0]}, bf16, small tile": partial(launch, ops[0], 256, 256, 4096, BF16, BF16),
        f"{ops[0]}, bf16, unaligned": partial(launch, ops[0], 4096, 8192, 4095, BF16, BF16),
    }


def _fused() -> dict[str, Launch]:
    """Steps of 54 layers; ``tensors``: with the numbers that a CUDA graph finds anew, and a gradient scale."""
    one = torch.ones(())

    def step(kind: str, weight: torch.Tensor, copy: torch.dtype | None = None, tensors: bool = False) -> Launch:
        moved = [[weight] * 54] * {"sgd": 3, "adamw": 4}[kind]
        rest = [[one] * 54, [weight.to(copy)] * 54 if copy else [], one if tensors else None, 0.1]
        tail = [False, 10.0, 0.5, 0.15, *([one, one] if tensors else [])]  # maximize, pruned_decay, ...
        if kind == "sgd":
            return partial(fused_sgd_triton.fused_sgd_, *moved, *rest, 0.9, 0.0, 1e-4, False, False, *tail)
        steps = [[], [one] * 54] if tensors else [[1.0] * 54, []]
        return partial(fused_adamw_triton.fused_adamw_, *moved, *steps, *rest, 0.9, 0.999, 1e-8, 0.01, *tail)

    weight = torch.empty(1 << 20)
    odd = torch.empty(1 << 20).view(torch.uint8)[4:-12].view(FP32)
    return {
        "fused_sgd_, fp32": step("sgd", weight),
        "fused_sgd_, fp32 to bf16": step("sgd", weight, BF16),
        "fused_sgd_, bf16": step("sgd", weight.to(BF16), BF16),
        "fused_adamw_, fp32 to bf16": step("adamw", weight, BF16),
        "fused_adamw_, fp32 to bf16, tensors": step("adamw", weight, BF16, tensors=True),
        "fused_adamw_, bf16": step("adamw", weight.to(BF16), BF16),
        "fused_adamw_, fp32, odd addresses": step("adamw", odd),
    }


def _masked_conv2d() -> dict[str, Launch]:
    def launch(direction, inputs, outputs, size, taps, stride, pair, groups=1, layout=torch.channels_last):
        dtype, weight_dtype = pair
        x = torch.empty((256, inputs, size, size), dtype=dtype, memory_format=layout)
        grad = torch.empty((256, outputs, size // stride, size // stride), dtype=dtype, memory_format=layout)
        weight = torch.empty((outputs, inputs // groups, taps, taps), dtype=weight_dtype, memory_format=layout)
        one, geometry = torch.ones(1), ([stride] * 2, [taps // 2] * 2, [1, 1], groups)
        if direction == "y":
            masked_conv2d_triton.masked_conv2d(x, weight, one, one, None, *geometry)
        elif direction == "dx":
            masked_conv2d_triton.masked_conv2d_input_gradient(grad, weight, one, one, x.shape[2:], *geometry)
        else:
            masked_conv2d_weight_triton.masked_conv2d_weight_gradient(grad, x, weight, one, one, one, *geometry)

    directions = {"y": "", "dx": "_input_gradient", "dw": "_weight_gradient"}
    pairs = {"bf16": (BF16, BF16), "bf16 over fp32": (BF16, FP32), "fp32": (FP32, FP32)}
    every = {  # first some of ResNet-50's
        **{f"3x3, 256 channels, {name}": (256, 256, 14, 3, 1, pair) for name, pair in pairs.items()},
        "3x3, 256 channels, stride 2, bf16": (256, 256, 28, 3, 2, pairs["bf16"]),
        "1x1, 256 to 512 channels, stride 2, bf16 over fp32": (256, 512, 56, 1, 2, pairs["bf16 over fp32"]),
        "3x3, 64 channels, bf16": (64, 64, 56, 3, 1, pairs["bf16"]),
        "7x7, 3 channels, bf16": (3, 64, 224, 7, 2, pairs["bf16"]),
        "3x3, 128 channels, NCHW, bf16": (128, 128, 28, 3, 1, pairs["bf16"], 1, torch.contiguous_format),
        "3x3, depthwise, bf16": (128, 128, 56, 3, 1, pairs["bf16"], 128),
    }
    return {
        f"masked_conv2d{op}, {name}": partial(launch, direction, *args)
        for name, args in every.items()
        for direction, op in directions.items()
    }


def _magnitude_threshold() -> dict[str, Launch]:
    large, small = torch.empty(1 << 20), torch.empty(36864)
    many, few = torch.ones(54, dtype=torch.int64), torch.ones(20, dtype=torch.int64)
    threshold, near = (
        magnitude_threshold_triton.magnitude_threshold,
        magnitude_threshold_triton.magnitude_threshold_near,
    )
    prefix = torch.zeros(1, dtype=torch.int32)
    return {
        "magnitude_threshold, one layer": partial(threshold, [large], many[:1]),
        "magnitude_threshold, small layers": partial(threshold, [small] * 20, few),
        "magnitude_threshold_near, 54 layers": partial(near, [large] * 54, many, many.float()),
        "magnitude_threshold_near, small layers": partial(near, [small] * 20, few, few.float()),
        "magnitude_histogram, one layer": partial(magnitude_histogram_triton.magnitude_histogram, [large], prefix, 24),
    }


def launches() -> dict[str, Launch]:
    """Every launch to compile, by a name that begins with the operator's."""
    return {
        **_gap_linear(),
        **_gate(),
        **_sharing(),
        **_masked_linear(),
        **_fused(),
        **_masked_conv2d(),
        **_magnitude_threshold(),
    }
