"""A smoke run of each bench, and what turns its rows into numbers."""

import json
import sys

import pytest

from bench import cpu, presets, rows, step, tables, train


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    return tmp_path


def call(monkeypatch, module, *args):
    monkeypatch.setattr(sys, "argv", ["bench", *args])
    module.main()


def test_step(results, monkeypatch, capsys):
    call(monkeypatch, step, "--model", "lenet300", "--batch", "4", "--rounds", "3", "--save")
    (row,) = rows.read("step")
    assert row["model"] == "lenet300" and row["ratio"] > 0 and row["torch"]
    assert f"ratio {row['ratio']}" in capsys.readouterr().out


def test_cpu(results, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "LINEAR", ((64, 48, 5),))
    call(monkeypatch, cpu, "--only", "sparse_linear", "--rounds", "3", "--threads", "1", "--save")
    got = rows.read("cpu")
    assert [row["sparsity"] for row in got] == list(cpu.SPARSITIES)
    assert all(row["op"] == "sparse_linear" and row["threads"] == 1 for row in got)
    assert capsys.readouterr().out.count("dense") == 4


def test_train(results, monkeypatch, capsys):
    monkeypatch.setattr(train, "MODELS", {"mlp": (lambda: train.mlp(12, 20, 10), (12,), 4)})
    call(
        monkeypatch,
        train,
        "--only",
        "mlp",
        "--densities",
        "0.2",
        "--rounds",
        "3",
        "--threads",
        "1",
        "--parts",
        "--save",
    )
    (row,) = rows.read("train")
    assert row["ratio"] > 0 and (row["layers"], row["density"], row["threads"]) == (2, 0.2, 1)
    out = capsys.readouterr().out
    assert f"{row['ratio']}x" in out and "aten::addmm" in out


def test_presets_runs_each_seed_once(results, monkeypatch, capsys):
    args = ["digits", "--seeds", "0", "1", "--output", str(results / "runs"), "--save", "--epochs", "3", "--no-twin"]
    call(monkeypatch, presets, *args)
    reports = [results / "runs" / f"digits-{seed}" / "report.json" for seed in (0, 1)]
    before = [report.stat().st_mtime_ns for report in reports]
    call(monkeypatch, presets, *args)
    assert [report.stat().st_mtime_ns for report in reports] == before
    first, again = rows.read("presets")
    assert first["accuracy"] == again["accuracy"] and first["seeds"] == [0, 1] and first["kept"] == [2510, 2510]


def test_row_by_hand():
    def report(seed, accuracy):
        sparse = {"accuracy": accuracy, "kept": 10, "size": 100, "seconds": 7.4}
        config = {"model": "m", "epochs": 3, "seed": seed}
        return {"networks": {"sparse": sparse, "dense": {"accuracy": 0.99}}, "config": config, "threads": 2}

    row = presets.row_of("name", [report(0, 0.97), report(1, 0.98), report(2, 0.96)])
    assert (row["mean"], row["std"], row["seeds"], row["dense"]) == (97.0, 1.0, [0, 1, 2], [99.0] * 3)


def test_table_shows_the_newest_rows(results):
    context = {"machine": "cpu", "torch": "2", "threads": 1}
    old = {"preset": "mnist", "command": "aswl train mnist", "model": "lenet300", "epochs": 20, "seeds": [0]}
    old |= {"accuracy": [90.0], "mean": 90.0, "std": None, "kept": [5324], "size": 266200} | context
    new = old | {"seeds": [0, 1], "mean": 98.0, "std": 0.1, "dense": [98.4, 98.6]}
    path = results / "presets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (old, new)))
    table = tables.table()
    assert "98.00 ± 0.10 (dense twin 98.50) | 2 |" in table and "90.00" not in table
    readme = "a\n<!-- table: python -m bench.tables -->\nstale\n<!-- end of table -->\nb\n"
    assert "stale" not in tables.insert(readme) and tables.insert(readme).endswith("<!-- end of table -->\nb\n")
