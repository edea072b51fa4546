"""bench/gpu.sh without a GPU: a smoke run of every section, its table, and sections that fail or hang."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as gpu
from bench.gpu import goals, section, tests
from bench.gpu.run import Missing, Run, check, poisoned

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_a_smoke_run_of_all_sections(tmp_path):
    env = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), "--smoke", "out"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    log = (tmp_path / "out" / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + log[-5000:]
    assert [line.partition(":")[0] for line in done.stdout.splitlines()[: len(gpu.SECTIONS)]] == list(gpu.SECTIONS)
    rows = goals.read(tmp_path / "out" / "rows.jsonl")
    assert {row["section"] for row in rows} == set(gpu.SECTIONS) and all(row["smoke"] for row in rows)
    assert not [row for row in rows if "failed" in row]
    measured = [row for row in rows if "ms" in row]
    assert {row["section"] for row in measured} >= {"ceilings", "gate", "linear", "step", "tune"}
    assert all(row["n"] and row["quartiles"] and row["torch"] == torch.__version__ for row in measured)
    table = (tmp_path / "out" / "table.txt").read_text()
    assert (
        done.stdout.endswith(f"{table}sections with problems: none\n")
        and len(table.splitlines()) == len(rows) + len(goals.GOALS) + 2
    )
    assert "GOAL" not in table and "FAIL" not in table
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"rows.jsonl", "log.txt", "table.txt", "junit.xml", "tuned.json"}


def test_a_failing_section_is_told_and_the_next_one_runs(tmp_path, capsys):
    """Without a GPU every section fails, each in a process of its own."""
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    assert gpu.main([str(tmp_path), "ceilings", "sanitizer"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ceilings: failed with exit code 2") and lines[1].startswith("sanitizer: done")
    assert "Traceback" in (tmp_path / "log.txt").read_text()
    row = goals.read(tmp_path / "rows.jsonl")[0]
    assert (
        row["case"] == "copy"
        and row["gpu"] is None
        and row["failed"].startswith(("AssertionError: ", "RuntimeError: "))
    )


def test_a_smoke_section_that_raises(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(section, "run", lambda *_: {}["nothing"])
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu.main(["--smoke", str(tmp_path), "gate", "skinny"]) == 1
    assert capsys.readouterr().out.count("failed: KeyError: 'nothing'") == 2


def test_no_time_no_section(tmp_path, capsys):
    assert gpu.main(["--seconds", "5", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("left out: no time") == len(gpu.SECTIONS)


def test_what_takes_too_long_is_cut_with_all_it_started():
    script = "import subprocess, sys; c = subprocess.Popen(['sleep', '60']); print(c.pid, flush=True); c.wait()"
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    with process.stdout:
        child = int(process.stdout.readline())
    begin = time.monotonic()
    assert gpu.finish(process, 0.2) == "cut: took too long" and time.monotonic() - begin < 10
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(child, 0)
            time.sleep(0.05)
    for code, want in ((0, None), (3, "failed with exit code 3")):
        process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"], start_new_session=True)
        assert gpu.finish(process, 60) == want


def test_wrong_calls(tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main([str(tmp_path), "nonsense"])
    assert "no such section: nonsense; there are environment" in capsys.readouterr().err


def test_cases_of_a_section(tmp_path, capsys):
    run = Run("section", tmp_path, smoke=True)
    with run.case("good"):
        times = {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 2.0, 2.0]}
        ms = run.row("good", times, "ours", "theirs", bytes=10, goals={"linear": 1.0})
    with run.case("absent", "conv"):
        raise Missing("not there")
    with run.case("bad", "fused"):
        raise ValueError("no")
    assert ms == {"ours": 2.0, "theirs": 2.0} and run.failures == 1
    good, absent, bad = goals.read(tmp_path / "rows.jsonl")
    assert (good["ratio"], good["n"], good["bytes"]) == (1.0, 3, {"ours": 10})
    assert absent["missing"] == "not there" and absent["goals"] == {"conv": None}
    assert bad["failed"] == "ValueError: no" and "Traceback" in capsys.readouterr().err
    with run.case("bad", "fused"):
        run.row("bad", times, "ours", "theirs", goals={"fused": 1.0})
    assert [row["case"] for row in goals.read(tmp_path / "rows.jsonl")] == ["good", "absent", "bad"]


def rows(**values):
    """Rows of a goal's cases, measured on a GPU."""
    return [
        {"section": "s", "case": case, "goals": {"linear": value}, "smoke": False}
        | ({"ms": {}} if value else {"failed": ""})
        for case, value in values.items()
    ]


@pytest.mark.parametrize(
    "name, value, want",
    [
        ("linear", 1.0, "GOAL"),
        ("linear", 0.95, "floor"),
        ("linear", 0.89, "FAIL"),
        ("fused", 1.10, "GOAL"),
        ("fused", 1.15, "floor"),
        ("fused", 1.21, "FAIL"),
    ],
)
def test_verdicts(name, value, want):
    row = {"section": "s", "case": "c", "goals": {name: value}, "smoke": False}
    (cells,) = [cells for cells in goals.verdicts([row]) if cells[4] == f"{value:.3g}"]
    assert cells[5:] == ("c", want)
    smoke = [cells for cells in goals.verdicts([row | {"smoke": True}]) if cells[6] == "smoke"]
    assert len(smoke) == 1


def test_the_worst_case_counts_and_failures_are_told():
    def cells(**values):
        (found,) = [cells for cells in goals.verdicts(rows(**values)) if cells[0] == goals.GOALS["linear"].what]
        return found[4:]

    assert cells(a=1.1, b=0.92, c=1.0) == ("0.92", "b", "floor")
    assert cells(a=1.1, b=None) == ("1.1", "a", "GOAL, some failed")
    assert cells(b=None) == ("-", "", "failed")
    assert cells() == ("-", "", "not measured")


def test_a_wrong_answer_is_never_timed():
    want = torch.ones(100, dtype=torch.float64)
    check("right", want.float(), want.float(), want)
    for wrong in (want.float() * 1.001, want.float() * torch.nan):
        with pytest.raises(AssertionError, match="never time a wrong answer: wrong is off by"):
            check("wrong", wrong, want.float(), want)
    with poisoned():
        assert torch.empty(3).isnan().all() and torch.empty_like(want).isnan().all()
    assert torch.empty(3, dtype=torch.int64).dtype == torch.int64


def test_counts_of_a_report(tmp_path):
    report = tmp_path / "junit.xml"
    kinds = ("", "", "<failure/>", "<skipped/>", "<error/>", '<error message="collection failure"/>')
    report.write_text(
        f"<testsuites><testsuite>{''.join(f'<testcase>{k}</testcase>' for k in kinds)}</testsuite></testsuites>"
    )
    assert tests.counted(report) == {"passed": 2, "failed": 2, "skipped": 2}


def test_tests_of_the_gpus_kernels_come_first():
    files = tests.files()
    assert all((ROOT / path).exists() for path in files) and len(files) == len(set(files)) > 50
    first = [path for path in files if "triton" in path or "gpu" in path]
    assert files[: len(first)] == first and "tests/aswl_kernels/test_gpu.py" in first


def test_rows_are_json_with_their_context(tmp_path, monkeypatch):
    monkeypatch.setenv("ASWL_COMMIT", "abc")
    Run("section", tmp_path, smoke=True).note("case", "text", memory=1)
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["note"] == "text" and row["memory"] == 1 and row["gpu"] is None and row["commit"]


def test_a_warm_run_calls_everything_and_keeps_nothing(tmp_path):
    called = []
    run = Run("section", tmp_path, smoke=True, warm=True)
    with run.case("case"):
        times = run.times({name: lambda name=name: called.append(name) for name in ("ours", "theirs")})
        run.row("case", times, "ours", "theirs")
        run.note("case", "text")
    assert called == ["ours", "theirs"] and run.failures == 0 and not list(tmp_path.iterdir())


def test_sections_are_warmed_while_the_tests_run(tmp_path, monkeypatch):
    ran = tmp_path / "ran"

    def started(name, arguments, log):
        script = (
            f"import time; time.sleep(0.3); open({str(ran)!r}, 'a').write({name + ' '.join(arguments[1:])!r} + ' ')"
        )
        return subprocess.Popen([sys.executable, "-c", script], start_new_session=True)

    monkeypatch.setattr(gpu, "started", started)
    assert gpu.main([str(tmp_path), "tests", "gate", "conv"]) == 0
    first, second, *rest = ran.read_text().split()
    assert {first, second} == {"tests", "conv--warm"} and rest == ["gate", "conv"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_run_that_is_cut_ends_with_its_table(tmp_path, stop):
    command = [sys.executable, "-m", "bench.gpu", str(tmp_path), "gate"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        while not (tmp_path / "log.txt").exists() or not (tmp_path / "log.txt").read_text():
            time.sleep(0.01)
        time.sleep(0.3)  # now the section imports torch
        process.send_signal(stop)
        out, err = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in err and "one-pass masked_linear" in out
    assert "not measured" in (tmp_path / "table.txt").read_text()
