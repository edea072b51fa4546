"""What the compiler makes of the Triton kernels, for GPUs that are not there."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.timeout(900),  # everything is compiled four times, beside other tests
]
NVIDIA = ("sm_80", "sm_90", "sm_100")


def compile_for(*targets):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.kernels", "--json", "--targets", *targets]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def compiled():
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda targets: compile_for(*targets), [("sm_80", "sm_90"), ("sm_100", "gfx942")]))
    return [row for part in parts for row in part]


def of(rows, *ops):
    return [row for row in rows if row["launch"].partition(",")[0] in ops]


def test_every_kernel_compiles_for_every_target(compiled):
    kernels = {target: [row["kernel"] for row in compiled if row["target"] == target] for target in (*NVIDIA, "gfx942")}
    assert kernels["sm_90"] and all(names == kernels["sm_90"] for names in kernels.values())


def test_nothing_spills_and_nothing_is_serialised(compiled):
    assert [row for row in compiled if row["target"] == "sm_90" and (row["spills"] or row["serialized"])] == []


def test_passes_over_weights_move_16_bytes_at_a_time(compiled):
    for row in of(compiled, "gate_all"):  # 8 elements of a thread, in whole blocks
        assert row["target"] not in NVIDIA or (row["load16"] == 2 and row["store16"] in (1, 2)), row
    for row in of(compiled, "gate", "attention_gradient"):
        if row["target"] in NVIDIA:
            scalars = row["load"] - row["load16"]
            assert row["load16"] >= 8 and scalars <= 2, row
            assert row["store16"] >= 8 or row["kernel"] == "attention_gradient_kernel", row


def test_masked_products_take_the_weight_from_registers(compiled):
    products = of(compiled, "masked_linear", "masked_linear_input_gradient", "masked_linear_weight_gradient")
    without = "masked_linear, fp32", "masked_linear, bf16, unaligned"
    for row in (row for row in products if row["target"] == "sm_90" and row["launch"] not in without):
        assert row["wgmma"] >= 4 and row["load16"] >= 6, row
        assert row["in_flight"] >= row["warps"], row  # one program fits, at least
    assert not [row for row in products if row["spills"]]


def test_the_walk_over_gaps_reads_values_16_bytes_at_a_time(compiled):
    for row in of(compiled, "gap_linear"):
        if row["target"] in NVIDIA and row["kernel"] == "gap_linear_kernel":
            assert row["load16"] >= 3, row  # before the loop, twice, and in it; x is gathered


@pytest.mark.parametrize("op, streams", [("fused_sgd_", (3, 2)), ("fused_adamw_", (4, 3))])
def test_fused_passes_move_16_bytes_at_a_time(compiled, op, streams):
    for row in of(compiled, op):
        if row["kernel"] == "fused_kernel" and row["target"] in NVIDIA and "odd" not in row["launch"]:
            assert (row["load16"], row["store16"] - (row["launch"] == f"{op}, bf16")) == streams, row
            assert row["in_flight"] * 32 * 16 * row["load16"] >= 48 * 1024, row  # bytes that a multiprocessor waits for


def test_masked_convolutions_take_16_bytes_of_channels_and_the_weight_from_registers(compiled):
    products = of(compiled, "masked_conv2d", "masked_conv2d_input_gradient", "masked_conv2d_weight_gradient")
    narrow = ("7x7, 3 channels", "NCHW", "weight_gradient, 3x3, 256 channels, fp32")  # tf32 wants pixels together
    for row in (row for row in products if row["target"] == "sm_90"):
        matrix = "depthwise" not in row["kernel"] and "finish" not in row["kernel"]
        assert (row["wgmma"] >= 2) == matrix and row["in_flight"] >= 8, row
        if not any(name in row["launch"] for name in narrow):
            assert row["load16"] >= 2, row


def test_thresholds_take_one_pass_at_16_bytes_a_read(compiled):
    kernels = "magnitude_threshold_collect_kernel", "magnitude_threshold_digit_kernel", "magnitude_histogram_kernel"
    rows = [row for row in compiled if row["kernel"] in kernels and row["target"] in NVIDIA]
    assert len(rows) >= 5 * len(NVIDIA)
    for row in rows:
        assert row["load16"] == 6, row  # four of fp32, two of bf16 or fp16
        assert row["in_flight"] >= 24 and not row["spills"], row


def test_the_interpreter_is_refused():
    env = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "bench.kernels"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=env, check=False)
    assert done.returncode == 2 and "want TRITON_INTERPRET unset" in done.stderr
