"""The front door: exit codes, one line per failure, and what each command prints."""

import json
import os
import subprocess
import sys

import pytest

import aswl
from aswl import cli
from aswl.cli import main

QUICK = ["train", "--epochs", "1", "--threads", "1", "--batch-size", "128", "--no-twin"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main([*QUICK, "--epochs", "3", "--twin", "--output", str(folder)]) == 0
    return folder


def test_train_ends_with_the_tables(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "digits", *QUICK[1:-1], "--epochs", "3", "--output", str(folder)]) == 0
    out = capsys.readouterr().out
    numbers = json.loads((folder / "report.json").read_text())["networks"]
    dense, sparse = (numbers[name]["accuracy"] for name in ("dense", "sparse"))
    assert f"{dense:.2%}" in out and f"{sparse:.2%}" in out and f"{100 * (sparse - dense):+.2f} points" in out
    assert "2,510 of 50,200" in out and "| fc1   |  300x64 |" in out
    assert out.endswith(f"report: {folder / 'report.md'}\n")


def test_asking_for_one_mode_leaves_the_presets_other(tmp_path):
    assert main([*QUICK, "--gamma", "1.5", "--output", str(tmp_path / "paper")]) == 0
    config = json.loads((tmp_path / "paper" / "report.json").read_text())["config"]
    assert (config["density"], config["gamma"]) == (None, 1.5)
    args = ["train", str(tmp_path / "paper" / "config.yaml"), "--density=0.2", "--output", str(tmp_path / "budget")]
    assert main(args) == 0
    report = json.loads((tmp_path / "budget" / "report.json").read_text())
    assert (report["config"]["gamma"], report["networks"]["sparse"]["kept"]) == (None, round(0.2 * 50_200))


def test_eval_reproduces_the_reported_number(run, capsys):
    assert main(["eval", str(run)]) == 0
    sparse = json.loads((run / "report.json").read_text())["networks"]["sparse"]
    assert capsys.readouterr().out == (
        f"accuracy {sparse['accuracy']:.2%} ({sparse['correct']} of 359 images), "
        "density 0.0500 (2,510 of 50,200 weights)\n"
    )


def test_report_shows_it_again(run, capsys):
    (run / "report.md").unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.endswith(f"report: {run / 'report.md'}\n")
    assert (run / "report.md").read_text().startswith("# lenet300 on digits, density 0.05\n")


def test_info(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"aswl {aswl.__version__}, Python 3.")
    for word in ("threads: ", "cuda: ", "triton: ", "native: ", "extra train: installed", "extra hub: "):
        assert word in out


BAD = {
    "unknown preset": (["train", "mnst"], "preset: want one of cifar10, cifar10-vgg16, "),
    "no such file": (["train", "nowhere.yaml"], "No such file or directory: nowhere.yaml"),
    "data not given": (["train", "mnist"], "mnist: pass --data PATH"),
    "data not there": (["train", "--data", "nowhere"], "data: no file or folder nowhere"),
    "density": (["train", "--density", "0"], "density: want above 0 and at most 1; got 0.0"),
    "both modes": (
        ["train", "--density", "0.1", "--gamma", "1"],
        "density, gamma: want a number for one and None for the other",
    ),
    "no mode": (["train", "--density", "None"], "density, gamma: want a number for one and None for the other"),
    "gamma": (["train", "--gamma", "-1"], "gamma: want 0 or more; got -1.0"),
    "exclude": (["train", "--exclude", "conv*"], "exclude pattern 'conv*' matches no layer"),
    "all excluded": (["train", "--exclude", "fc*"], "nothing is left to prune"),
    "image size": (["train", "--model", "lenet5"], "lenet5: want images of at least 16x16 pixels; got 8x8"),
    "batch": (["train", "--batch-size", "5000"], "batch_size: want 1 to 1438"),
    "device": (["train", "--device", "gpu"], "device: want auto, cpu, cuda or cuda:N; got 'gpu'"),
    "diverged": ([*QUICK, "--lr", "1e30"], "refused: the gradient of"),
    "report of nothing": (["report", "nowhere"], "report: want the folder of a finished run"),
    "eval of nothing": (["eval", "nowhere"], "no such file"),
}


@pytest.mark.parametrize("args, line", BAD.values(), ids=BAD)
def test_bad_input_is_one_line(args, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASWL_DATA", raising=False)
    assert main(args) == 1
    (got,) = capsys.readouterr().err.splitlines()
    assert got.startswith("aswl: error: ") and line in got
    if "--lr" not in args:
        assert not list(tmp_path.iterdir())  # nothing was written


def test_a_used_folder_is_left_alone(run, capsys):
    before = (run / "metrics.jsonl").read_bytes()
    assert main([*QUICK, "--output", str(run)]) == 1
    assert "holds a run; pass --resume" in capsys.readouterr().err
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("args", [["train", "--lrr", "1"], ["train", "--lr", "fast"], ["eval"], ["report", "a", "b"]])
def test_a_wrong_call_is_2(args, capsys):
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    assert main(["frob"]) == 2 and "got 'frob'" in capsys.readouterr().err
    assert main([]) == 2 and main(["info", "x"]) == 2


def test_help(capsys):
    assert main(["--help"]) == 0 and main(["info", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "mnist-paper" in out and "--attention-lr" in out and "Passes over the training set" in out


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(tmp_path, capsys):
    assert main([*QUICK, "--density", "1", "--output", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("aswl: warning: ") and "prune" in line for line in lines)


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["train"]) == 1
    assert capsys.readouterr().err == "aswl: error: tyro is not installed: pip install 'aswl[train]'\n"
    found = cli.importlib.util.find_spec
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: None if name == "rich" else found(name))
    assert main(["info"]) == 0
    assert "extra train: lacks rich, tyro: pip install 'aswl[train]'" in capsys.readouterr().out


def test_mistakes_of_ours_are_not_hidden(monkeypatch):
    def broken(args):
        raise KeyError("x")

    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "info", broken)
    with pytest.raises(KeyError):
        main(["info"])
    monkeypatch.setenv("ASWL_DEBUG", "1")
    with pytest.raises(ValueError, match="preset"):
        main(["train", "mnst"])
    monkeypatch.setitem(cli.COMMANDS, "info", interrupted)
    assert main(["info"]) == 130


def test_importing_the_method_brings_no_workshop():
    code = (
        "import sys, aswl; "
        "bad = [m for m in sys.modules if m.split('.')[0] in ('tyro', 'rich', 'yaml', 'sklearn', 'pyarrow', 'PIL')"
        " or m.startswith(('aswl.training', 'aswl.deploy', 'aswl.cli'))]; print(bad); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_as_a_module():
    command = [sys.executable, "-m", "aswl", "report", "nowhere"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONWARNINGS": "error"}
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "aswl: error: report: want the folder of a finished run; nowhere holds no report.json"
    ]
