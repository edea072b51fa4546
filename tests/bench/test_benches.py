"""A smoke run of each bench, and what turns its rows into numbers."""

import subprocess
import sys

import pytest
import torch

from bench import cpu, optim, peers, presets, rows, step
from bench import suite as bench_suite
from bench.accuracy.report import average


def call(monkeypatch, module, *args):
    monkeypatch.setattr(sys, "argv", ["bench", *args])
    module.main()


def test_step(results, monkeypatch, capsys):
    args = ["--batch", "256", "--densities", "0.1", "--rounds", "3", "--threads", "1", "--parts", "--save"]
    call(monkeypatch, step, "--model", "lenet300", "--products", "sparse", *args)
    got = rows.read("step")
    assert [row["form"] for row in got] == ["fp32", "bf16"]
    for row in got:
        assert (row["density"], row["products"], row["threads"]) == (0.1, "sparse", 1)
        assert row["ratio"] > 0 and row["on_sparse_products"] == row["layers"] == 3
    out = capsys.readouterr().out
    assert f"{got[0]['ratio']} of it" in out and "aten::addmm" in out and "aswl::sparse_linear" in out


SMALL = {  # a setting of each operator's bench that takes a moment
    "gate": {"weights": 1000},
    "pack": {"outputs": 30, "inputs": 40, "sparsity": 0.9},
    "sparse_linear": {"outputs": 64, "inputs": 48, "batch": 16, "sparsity": 0.9, "backward": False},
    "sparse_linear, backward": {"outputs": 64, "inputs": 48, "batch": 16, "sparsity": 0.9, "backward": True},
    "sparse_conv2d": {"kernel": 3, "size": 6, "batch": 8, "backward": False},
    "sparse_conv2d, backward": {"kernel": 3, "size": 6, "batch": 8, "backward": True},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_cpu(results, monkeypatch, capsys, name):
    op = name.partition(",")[0]
    convolution = {"outputs": 16, "inputs": 8, "sparsity": 0.9} if op == "sparse_conv2d" else {}
    setting = convolution | SMALL[name]
    monkeypatch.setattr(cpu.SUITES[op], "SETTINGS", [setting])
    call(monkeypatch, cpu, "--only", op, "--rounds", "3", "--threads", "1", "--save")
    (row,) = rows.read("cpu")
    assert (
        row.items() >= ({"op": op, "threads": 1} | setting).items()
        and row["ms"].keys() - {"ours"} == row["ratio"].keys()
    )
    assert set(row["ms"]) <= set(cpu.SUITES[op].VARIANTS)
    printed = capsys.readouterr().out
    assert f"ours {row['ms']['ours']:.3f} ms" in printed and ("not installed" in printed) != peers.SPARSEPROP


def test_a_wrong_answer_is_never_timed():
    right, wrong = torch.ones(3), torch.tensor([1.0, 1.0, 1.01])
    assert bench_suite.check({"ours": right.clone, "dense": right.clone}, right.double())
    for bad in (wrong, right * torch.nan):
        for name in ("ours", "peer"):
            with pytest.raises(AssertionError, match=f"never time a wrong answer: {name}"):
                bench_suite.check({"dense": right.clone, name: bad.clone}, right.double())


def test_suites_run_under_pytest_benchmark():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "bench/bench_gate.py"]
    done = subprocess.run([*command, "--benchmark-disable"], capture_output=True, text=True, check=False)
    assert "3 passed" in done.stdout, done.stdout[-2000:]


def test_optim(results, monkeypatch, capsys):
    call(monkeypatch, optim, "--weights", "8000", "--threads", "1", "--rounds", "3", "--save")
    got = rows.read("optim")
    assert [row["op"] for row in got] == ["fused_sgd_", "fused_adamw_"]
    assert all(row["ratio"]["ours"] > 0 and row["ratio"]["ours, with copy"] > 0 for row in got)
    assert capsys.readouterr().out.count("torch") >= 2


def test_presets_runs_each_seed_once(results, monkeypatch, capsys):
    args = ["digits", "--seeds", "0", "1", "--output", str(results / "runs"), "--save", "--epochs", "3", "--no-twin"]
    call(monkeypatch, presets, *args)
    reports = [results / "runs" / f"digits-{seed}" / "report.json" for seed in (0, 1)]
    before = [report.stat().st_mtime_ns for report in reports]
    call(monkeypatch, presets, *args)
    assert [report.stat().st_mtime_ns for report in reports] == before
    first, again = rows.read("presets")
    assert first["accuracy"] == again["accuracy"] and first["seeds"] == [0, 1] and first["kept"] == [2510, 2510]
    assert first["command"] == "aswl train digits --epochs=3"


def test_row_by_hand():
    def report(seed, accuracy):
        sparse = {"accuracy": accuracy, "kept": 10, "size": 100, "seconds": 7.4}
        config = {"model": "lenet300", "epochs": 60, "seed": seed}
        return {"networks": {"sparse": sparse, "dense": {"accuracy": 0.99}}, "config": config, "threads": 2}

    row = presets.row_of("digits", [report(0, 0.97), report(1, 0.98), report(2, 0.96)])
    assert (row["accuracy"], row["seeds"], row["dense"]) == ([97.0, 98.0, 96.0], [0, 1, 2], [99.0] * 3)
    assert average(row["accuracy"]) == "97.00 ± 1.00"
    assert row["command"] == "aswl train digits"
