"""The accuracy grids' runner, on digits that take seconds."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from bench import rows
from bench.accuracy import __main__ as runner
from bench.accuracy import report
from bench.accuracy.suites import SUITES, Grid, Published
from bench.accuracy.train import Recipe, Run, images, train
from bench.baselines import METHODS
from bench.tables import accuracy

RECIPE = Recipe(epochs=2, batch_size=64)
GRID = Grid("lenet300", "digits", RECIPE, (0.05,), {"aswl": {}, "gmp-erk": {"every": 5}}, seeds=(0, 1))


@pytest.fixture
def results(results, monkeypatch):
    """An empty folder of results, and the embedded digits as the data set of every run."""
    monkeypatch.setitem(SUITES, "tiny", (GRID,))
    monkeypatch.setattr("bench.accuracy.train.load", lambda folder, split, load=_digits: load(split))
    monkeypatch.setattr("bench.accuracy.train.HELD_OUT", 300)
    images.cache_clear()
    threads = torch.get_num_threads()
    yield results
    torch.set_num_threads(threads)
    images.cache_clear()


def _digits(split):
    from aswl.training.data import load

    return load("digits", split)


def _run(tmp_path, *options):
    runner.main(["--suite", "tiny", "--device", "cpu", "--threads", "1", "--output", str(tmp_path / "plots"), *options])


def _accuracies():
    return {json.dumps(row["run"]): row["accuracy"] for row in rows.read("accuracy")}


def test_grid_holds_every_cell_once():
    runs = list(GRID.runs())
    assert len(runs) == 6 == len({json.dumps(run.key()) for run in runs})
    assert [run.seed for run in runs] == [0] * 3 + [1] * 3


def test_options_make_other_rows(results, capsys):
    _run(results, "--methods", "gmp-erk", "--seeds", "0", "--options", '{"every": 7}')
    (row,) = rows.read("accuracy")
    assert row["run"]["options"] == {"every": 7} and row["exact"]
    assert "gmp-erk" not in capsys.readouterr().out.split("\n\n", 1)[1]  # the grid's own table has no such cell


def test_another_recipe_makes_another_table(results, capsys):
    _run(results, "--methods", "gmp-erk", "--seeds", "0", "--recipe", '{"epochs": 3}')
    (row,) = rows.read("accuracy")
    assert row["run"]["recipe"] == asdict(RECIPE) | {"epochs": 3} and len(row["losses"]) == 3
    told = capsys.readouterr()
    assert "3 epochs" in told.out and "| 5.0% | gmp-erk |" in told.out
    assert f"epoch 3 of 3: loss {row['losses'][-1]}" in told.err


def test_stopped_grid_goes_on_where_it_was(results, capsys, monkeypatch):
    _run(results)
    whole = _accuracies()
    assert len(whole) == 6
    path = results / "accuracy.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:40])  # killed while it wrote the fifth row
    done = []
    monkeypatch.setattr(runner, "train", lambda run, *rest: done.append(run) or train(run, *rest))
    _run(results)
    assert len(done) == 2
    assert _accuracies() == whole
    out = capsys.readouterr().out
    assert "| 5.0% | aswl |" in out
    assert "failed" not in out.replace("| failed |", "")


def test_shards_share_a_grid(results):
    _run(results, "--shard", "0/2", "--seeds", "0")
    assert len(_accuracies()) == 2
    _run(results, "--shard", "1/2", "--seeds", "0")
    assert len(_accuracies()) == 3


def test_options_choose_cells(results, monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "run_grid", lambda runs, *rest: asked.append(runs))
    for options in (["--densities", "1"], ["--densities", "0.05", "--seeds", "1"], ["--methods", "gmp-erk"]):
        _run(results, *options)
    by_density, by_both, by_method = asked
    assert [(run.method, run.seed) for run in by_density] == [("dense", 0), ("dense", 1)]
    assert [(run.method, run.seed) for run in by_both] == [("aswl", 1), ("gmp-erk", 1)]
    assert [run.seed for run in by_method] == [0, 1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--densities", "0.03"], "no run of tiny has these"),
        (["--models", "resnet2O"], "no run of tiny has these"),
        (["--shard", "2/2"], "want I/N with 0 <= I < N; got 2/2"),
        (["--recipe", "epochs"], "want JSON; got 'epochs'"),
        (["--recipe", "[3]"], "want a JSON object; got '[3]'"),
        (["--recipe", '{"epoch": 3}'], "want fields of bench.accuracy.train.Recipe; got ['epoch']"),
    ],
)
def test_what_asks_for_nothing_is_refused(results, capsys, options, match):
    with pytest.raises(SystemExit):
        _run(results, *options)
    assert match in capsys.readouterr().err


def test_again_runs_what_has_a_row(results):
    only = ["--seeds", "0", "--methods", "gmp-erk"]
    _run(results, *only)
    _run(results, *only)
    assert len(rows.read("accuracy")) == 1
    _run(results, *only, "--again")
    assert len(rows.read("accuracy")) == 2 and len(report.finished(GRID, "test", "accuracy")) == 1


def test_rows_tell_what_was_kept(results):
    run = Run("lenet300", "digits", 0.05, "aswl", 0, RECIPE)
    row = train(run, results, torch.device("cpu"))
    assert row["kept"] == round(0.05 * row["size"]) and row["exact"]
    assert row["losses"][1] < row["losses"][0] < 2.5
    assert len(row["by_epoch"]) == 2 and row["by_epoch"][-1] == pytest.approx(0.05, abs=1e-4)
    assert (
        sum(round(share * size) for share, size in zip(row["densities"].values(), (19200, 30000, 1000))) == row["kept"]
    )


def test_same_run_gives_the_same_row(results):
    run = Run("lenet300", "digits", 0.05, "gmp-global", 3, RECIPE, {"every": 5})
    first, again = (train(run, results, torch.device("cpu")) for _ in range(2))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


def test_validation_images_are_not_trained_on(results):
    learned, judged = images(results, "validation")
    whole, test = images(results, "test")
    assert len(judged) == 300 and len(learned) + 300 == len(whole)
    assert torch.equal(torch.cat([learned.images, judged.images]), whole.images)
    assert not torch.equal(test.images[:300], judged.images)


def test_training_that_dies_is_a_row(results):
    run = Run("lenet300", "digits", 0.05, "aswl", 0, replace(RECIPE, lr=1e6))
    row = train(run, results, torch.device("cpu"))
    assert row["accuracy"] is None and row["failed"]
    found = report.cells([{"run": run.key(), **row}])
    assert found[0].failed == 1 and found[0].accuracies == []
    assert "| - | 1 | no |" in report.table(GRID, found)


def test_table_gathers_seeds():
    def row(method, seed, accuracy):
        run = {"density": 0.1, "method": method, "seed": seed}
        return {"run": run, "accuracy": accuracy, "failed": None, "exact": True, "seconds": 2.0}

    found = report.cells([row("a", 0, 90.0), row("b", 0, 93.0), row("a", 1, 92.0)])
    assert [cell.method for cell in found] == ["b", "a"]
    assert found[1].mean == 91 and found[1].spread == pytest.approx(2**0.5)
    text = report.table(replace(GRID, published=(Published("c", 0.1, 95.0, "a paper"),)), found)
    assert "| 10.0% | a | 91.00 ± 1.41 (2) | 0 | yes | 2 |" in text
    assert "| 10.00% | c, published: a paper | 95.0 |" in text


def test_score_tells_of_failed_seeds():
    cell = report.Cell("aswl", 0.1, [90.0, 91.0], 1, True, 1.0)
    assert report.score(cell) == "90.50 ± 0.71 (2 of 3)" and report.score(cell._replace(failed=0)) == "90.50 ± 0.71 (2)"


def test_plot_is_the_same_for_the_same_rows(results):
    found = [report.Cell("aswl", 0.1, [90.0, 91.0], 0, True, 1.0), report.Cell("dense", 1.0, [95.0], 0, True, 1.0)]
    grid = replace(GRID, published=(Published("c", 0.1, 95.0, "a paper"),))
    for name in ("a.svg", "b.svg"):
        report.plot(grid, found, results / name)
    svg = (results / "a.svg").read_bytes()
    assert svg == (results / "b.svg").read_bytes()
    assert svg.startswith(b"<?xml")


def test_suites_name_what_there_is():
    for grids in SUITES.values():
        for grid in grids:
            assert grid.methods.keys() <= METHODS.keys()


def test_readme_shows_the_best_peer(results):
    _run(results, "--seeds", "0")
    (line,) = [line for line in accuracy.best() if line[0].endswith("suite `tiny`")]
    scores = {row["run"]["method"]: f"{row['accuracy']:.2f} (1)" for row in rows.read("accuracy")}
    assert line[1:] == ["5.0%", scores["aswl"], f"{scores['gmp-erk']} gmp-erk, best of 1", scores["dense"]]


def test_readme_tells_which_peers_failed_and_which_were_not_run(results, monkeypatch):
    grid = replace(GRID, methods={name: {} for name in ("aswl", "gmp-erk", "dst", "str")})
    monkeypatch.setitem(SUITES, "tiny", (grid,))
    ran = {"accuracy": 90.0, "failed": None, "exact": True, "seconds": 1.0}
    found = {"aswl": ran, "gmp-erk": ran, "dst": ran | {"accuracy": None, "failed": "NaN"}}
    wanted = [run for run in grid.runs() if run.seed == 0 and run.method in found]
    rows.append("accuracy", [{"run": run.key()} | found[run.method] for run in wanted])
    (line,) = [line for line in accuracy.best() if line[0].endswith("suite `tiny`")]
    assert line[3:] == ["90.00 (1) gmp-erk, best of 1, 1 failed, 1 not run", "-"]
