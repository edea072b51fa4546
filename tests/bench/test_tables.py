"""Tables made from rows by hand."""

import json

from bench.tables import pages, speed


def test_pages_have_a_place_for_their_tables():
    for path in pages.PAGES:
        assert len(pages.MARKS.findall(path.read_text(encoding="utf-8"))) == 1


def test_tables_show_the_newest_rows(results):
    context = {"machine": "cpu", "torch": "2", "threads": 1}
    old = {"preset": "mnist", "command": "aswl train mnist", "model": "lenet300", "epochs": 20, "seeds": [0]}
    old |= {"accuracy": [90.0], "mean": 90.0, "std": None, "kept": [5324], "size": 266200} | context | {"seconds": 7}
    new = old | {"seeds": [0, 1], "accuracy": [97.9, 98.1], "dense": [98.4, 98.6]}
    changed = new | {"command": "aswl train mnist --epochs=1", "accuracy": [90.0, 90.0]}
    sparser = old | {"preset": "mnist-1", "command": "aswl train mnist-1", "accuracy": [95.0], "kept": [2662]}
    longer = sparser | {"preset": "mnist-lenet5", "command": "aswl train mnist-lenet5", "epochs": 30}
    path = results / "presets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (old, new, changed, sparser, longer)))
    table, every = pages.readme(), pages.accuracies()
    assert "| 2.00% | 98.00 ± 0.14 (2) | published: 98.01 Sparse Momentum" in table and "90.00" not in table
    assert "| 2.00% | 98.00 ± 0.14 (2) | 98.50 ± 0.14 (2) | 7 (1) |" in every and "90.00" not in every
    twins = [line.split(" | ")[-1] for line in table.splitlines() if "`aswl train" in line]
    assert twins == ["98.50 ± 0.14 (2) |", "98.50 ± 0.14 (2) |", " |"]  # of the same network and epochs, or none
    assert "| everything on a GPU |  | not measured |" in table
    readme = "a\n<!-- table: python -m bench.tables -->\nstale\n<!-- end of table -->\nb\n"
    assert pages.insert(readme, table) == readme.replace("stale\n", table)


def test_steps_of_the_readme_are_the_fastest_form(results):
    row = {"model": "m", "batch": 2, "density": 0.05, "products": "auto", "backward_density": None, "form": "fp32"}
    row |= {"dense_ms": 20.0, "sparse_ms": 10.4, "ratio": 0.52, "threads": 2}
    faster = row | {"form": "fp32, channels_last", "dense_ms": 15.0, "sparse_ms": 12.0}
    half = row | {"form": "bf16", "dense_ms": 8.0, "sparse_ms": 9.0}
    others = [row | {"density": 0.1, "sparse_ms": 1.0}, row | {"products": "dense", "dense_ms": 1.0}]
    assert speed.headlines([row, faster, half, *others], []) == [
        ["m, a training step, CPU, ms", "5.0%", "10 (fp32), 9 (bf16)", "", "15 (fp32), 8 (bf16)"]
    ]
    line = "| m, batch 2, density 0.05, measured products, 2 threads | fp32 | 20.0 ms | 10.4 ms | 0.52 |"
    assert speed.steps([row])[2:] == [line]


def test_table_of_a_gpu_shows_every_goal():
    assert speed.gpu([])[2:] == ["| everything | - | - | - | - | not measured |"]
    row = {"section": "linear", "case": "2048", "goals": {"linear": 0.953}, "smoke": False}
    lines = speed.gpu([row])
    assert (
        "| one-pass masked_linear | cuBLAS, pre-masked | 0.9 of its speed | 1 of its speed | 0.953 | floor |" in lines
    )
    assert sum("not measured" in line for line in lines) == len(lines) - 3
    shown = speed.gpu_headlines([row])
    assert ["one-pass masked_linear, GPU; asked for 0.9 of its speed", "", "0.953", "cuBLAS, pre-masked", ""] in shown
    assert len(shown) == len(lines) - 2


def test_tables_of_kernels(results):
    setting = {"op": "sparse_linear", "outputs": 8, "inputs": 4, "batch": 2, "backward": False, "threads": 2}
    old = setting | {"sparsity": 0.9, "ratio": {"dense": 9.0}}
    new = setting | {
        "sparsity": 0.9,
        "ratio": {"ours, other": 1.1, "dense": 2.0, "dense, other": 0.84, "SparseProp": 3.0},
    }
    other = setting | {"sparsity": 0.8, "batch": 1, "ratio": {"dense": 1.0, "torch CSR": 4.0}}
    third = other | {"sparsity": 0.9, "ratio": {"dense": 2.0}}
    elsewhere = {"op": "pack", "sparsity": 0.9}
    measured = [old, new, other, third, elsewhere]
    (results / "cpu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in measured))
    newest = speed.newest_products()
    assert newest == [new, other, third]
    assert speed.kernels(newest) == [
        "| CPU kernels, times faster than dense / torch CSR / SparseProp (-: not measured) | 80% zeros | 90% zeros |",
        "| --- | --- | --- |",
        "| `sparse_linear` 8x4, batch 2, 2 threads | - | 0.8 / - / 3.0 |",
        "| `sparse_linear` 8x4, batch 1, 2 threads | 1.0 / 4.0 / - | 2.0 / - / - |",
    ]
    assert speed.kernels([]) == speed.headlines([], []) == []
    shown = [row | {"sparsity": 0.95} for row in (new, third)]
    assert speed.headlines([], [*shown, other]) == [
        ["`sparse_linear`, 2 threads, CPU, time", "5.0%", "1", "3.0 SparseProp", "0.8 to 2.0"]
    ]
