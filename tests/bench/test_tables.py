"""Tables made from rows by hand."""

import json

from bench.tables import pages, speed


def test_pages_have_a_place_for_their_tables():
    for path in pages.PAGES:
        assert len(pages.MARKS.findall(path.read_text(encoding="utf-8"))) == 1


def test_table_shows_the_newest_rows(results):
    context = {"machine": "cpu", "torch": "2", "threads": 1}
    old = {"preset": "mnist", "command": "aswl train mnist", "model": "lenet300", "epochs": 20, "seeds": [0]}
    old |= {"accuracy": [90.0], "mean": 90.0, "std": None, "kept": [5324], "size": 266200} | context | {"seconds": 7}
    new = old | {"seeds": [0, 1], "mean": 98.0, "std": 0.1, "dense": [98.4, 98.6]}
    path = results / "presets.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (old, new)))
    table = pages.readme()
    assert "98.00 ± 0.10 (dense twin 98.50) | 2 | 7 (1) |" in table and "90.00" not in table
    readme = "a\n<!-- table: python -m bench.tables -->\nstale\n<!-- end of table -->\nb\n"
    assert pages.insert(readme, table) == readme.replace("stale\n", table)


def test_table_of_a_gpu_shows_every_goal():
    assert speed.gpu([])[2:] == ["| everything | - | - | - | - | not measured |"]
    row = {"section": "linear", "case": "2048", "goals": {"linear": 0.953}, "smoke": False}
    lines = speed.gpu([row])
    assert (
        "| one-pass masked_linear | cuBLAS, pre-masked | 0.9 of its speed | 1 of its speed | 0.953 | floor |" in lines
    )
    assert sum("not measured" in line for line in lines) == len(lines) - 3


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
    assert speed.ranges(newest)[2:] == ["| `sparse_linear`, 2 threads | 1.0 / 4.0 / - | 0.8 to 2.0 / - / 3.0 |"]
    assert speed.kernels([]) == speed.ranges([]) == []
