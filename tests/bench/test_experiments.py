"""The mathematics of the experiments, a smoke run of each, and their refusal without a GPU."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from bench import experiments
from bench.experiments import strip_compaction, two_four_residual
from bench.gpu.goals import read
from bench.gpu.run import Run

MODULES = {"two_four_residual": two_four_residual, "strip_compaction": strip_compaction}


def random(shape, density, dtype=torch.float32):
    return torch.randn(shape).where(torch.rand(shape) < density, 0).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_a_weight_is_a_2_4_part_and_a_rest(density, dtype):
    weight = random((33, 64), density, dtype)
    part, rest = two_four_residual.split(weight)
    assert torch.equal(part + rest, weight) and not ((part != 0) & (rest != 0)).any()
    fours, left = (t.unflatten(1, (-1, 4)).abs() for t in (part, rest))
    assert ((fours != 0).sum(-1) <= 2).all()
    assert (fours.topk(2).values[..., 1] >= left.amax(-1)).all()  # the larger ones are in the 2:4 part


def test_a_2_4_part_worked_by_hand():
    nan = float("nan")
    part, rest = two_four_residual.split(
        torch.tensor([[1.0, -4.0, 2.0, 3.0, 0.0, 0.0, nan, 5.0], [0, 1, 0, 0, 1, 2, 3, nan]])
    )
    want = torch.tensor([[0, -4.0, 0, 3, 0, 0, nan, 5], [0, 1, 0, 0, 0, 0, 3, nan]])
    torch.testing.assert_close(part, want, rtol=0, atol=0, equal_nan=True)
    assert rest.tolist() == [[1, 0, 2, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 2, 0, 0]]


@pytest.mark.parametrize("density, want", [(0.5, 0.09375), (0.3, 0.02295), (0.1, 0.00095), (1.0, 0.5)])
def test_density_of_the_rest(density, want):
    assert two_four_residual.density_of_rest(density) == pytest.approx(want)
    _, rest = two_four_residual.split(random((1024, 1024), density))
    assert rest.count_nonzero().item() / rest.numel() == pytest.approx(want, rel=0.1)


@pytest.mark.parametrize("height", [1, 3, 16])
@pytest.mark.parametrize("shape", [(32, 40), (33, 7), (1, 1), (5, 0), (0, 5)], ids=str)
def test_strips_hold_the_whole_weight(shape, height):
    weight, x = random(shape, 0.1), torch.randn(6, shape[1])
    columns, weights = strip_compaction.compact(weight, height)
    assert torch.equal(strip_compaction.restore(columns, weights, shape), weight)
    torch.testing.assert_close(strip_compaction.product(x, columns, weights, len(weight)), F.linear(x, weight))


@pytest.mark.parametrize(
    "density, height, want", [(0.02, 16, 0.276), (0.02, 128, 0.925), (0.005, 128, 0.474), (0.3, 1, 0.3)]
)
def test_columns_that_remain(density, height, want):
    assert strip_compaction.remaining(density, height) == pytest.approx(want, abs=1e-3)
    strips = random((4096, 256), density).view(-1, height, 256)
    assert (strips != 0).any(1).float().mean().item() == pytest.approx(want, abs=0.02)


def test_strips_worked_by_hand():
    weight = torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 3, 0]])
    columns, weights = strip_compaction.compact(weight, 2)
    assert columns.tolist() == [[1, 3], [2, 0]] and weights.tolist() == [[[1, 0], [0, 2]], [[3, 0], [0, 0]]]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_smoke(name, tmp_path):
    run = Run("experiments", tmp_path, smoke=True)
    MODULES[name].measure(run)
    rows = read(tmp_path / "rows.jsonl")
    assert run.failures == 0 and len(rows) >= 6
    for row in rows:
        assert row["verdict"].startswith(("kept", "dropped")) and "cuBLAS" in experiments.line(row)


def test_the_rule():
    for ours, want in ((1.0, "kept"), (1.1, "dropped: below 1.08x cuBLAS")):
        assert experiments.verdict({"ours": [ours] * 3, "cuBLAS": [1.09] * 3}, "ours") == {"verdict": want}
    assert experiments.line({"case": "a", "failed": "OutOfMemoryError: x"}) == "a: OutOfMemoryError: x"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("name", MODULES)
def test_refused_without_a_gpu(name):
    command = [sys.executable, "-m", f"bench.experiments.{name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("error: want a CUDA GPU; got none")
