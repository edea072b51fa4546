"""A run that was stopped, wherever that was, ends bit for bit as if it had not been."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from aswl.cli import main
from aswl.training import checkpoint, models
from aswl.training.config import TrainConfig
from aswl.training.loop import Loop
from aswl.training.run import train
from aswl.training.signals import Interrupted, SignalWatch

TIMES = ("seconds", "training_seconds", "row", "metrics")  # what the clock enters


class Dropout(nn.Sequential):
    """A network that draws random numbers while it trains."""

    def __init__(self, input_shape, classes):
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, classes))


@pytest.fixture(autouse=True)
def dropout_network(monkeypatch):
    monkeypatch.setitem(models.MODELS, "dropout", Dropout)


def tiny(output: Path, **options) -> TrainConfig:
    defaults = {"epochs": 2, "threads": 1, "log_every": 4, "checkpoint_every": 6, "density": 0.1}
    return TrainConfig(**{"output": output} | defaults | options)


def stop_at(monkeypatch, step: int, network: str = "sparse", signum: int = signal.SIGINT) -> None:
    update = Loop._update

    def stopping(self, *args):
        update(self, *args)
        if self.step == step and self.name == network:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(Loop, "_update", stopping)


def interrupt(config: TrainConfig, step: int, network: str = "sparse", signum: int = signal.SIGINT) -> Interrupted:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step, network, signum)
        with pytest.raises(Interrupted) as stop:
            train(config)
    return stop.value


def final(run: Path, network: str = "sparse") -> dict:
    path, state = checkpoint.latest(run / "checkpoints" / network)
    assert state["epoch"] == 2 and path.name == f"checkpoint-{state['step']:08d}.pt"
    return {key: value for key, value in state.items() if key not in TIMES}


def rows(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_s"} for line in lines]


def same(a: object, b: object) -> bool:
    """Equality to the bit, through dictionaries and sequences."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(got: Path, wanted: Path, networks=("sparse",)) -> None:
    """Weights, momenta, attentions, thresholds, schedules, generators, metrics and the finished model."""
    for network in networks:
        states = final(got, network), final(wanted, network)
        assert [key for key in states[1] if not same(states[0][key], states[1][key])] == []
    assert rows(got) == rows(wanted)
    assert same(*(checkpoint.load(run / "model.pt") for run in (got, wanted)))


@pytest.mark.parametrize("step", [1, 6, 9, 11, 15, 22], ids="step {}".format)  # an epoch has 11
@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "lr": 1e-3}, {"model": "dropout"}], ids=str)
def test_continues_bit_for_bit(tmp_path, step, options):
    whole = train(tiny(tmp_path / "whole", **options))
    stop = interrupt(tiny(tmp_path / "parts", **options), step)
    assert stop.signum == signal.SIGINT
    assert f"stopped at step {step} of 22 (sparse)" in str(stop)
    assert f"aswl train {tmp_path / 'parts' / 'config.yaml'} --resume" in str(stop)
    parts = train(tiny(tmp_path / "parts", resume=True, **options))
    assert_same_run(parts, whole)


def test_continues_a_batch_norm_network_in_the_paper_mode(tmp_path):
    options = {
        "model": "resnet20",
        "density": None,
        "gamma": 1.0,
        "batch_size": 479,
        "refresh_every": 2,
        "augment": "crop",
    }
    whole = train(tiny(tmp_path / "whole", **options))
    interrupt(tiny(tmp_path / "parts", **options), 4)
    assert_same_run(train(tiny(tmp_path / "parts", resume=True, **options)), whole)


@pytest.mark.parametrize("network", ["dense", "sparse"])
def test_continues_in_either_twin(tmp_path, network):
    whole = train(tiny(tmp_path / "whole", twin=True))
    interrupt(tiny(tmp_path / "parts", twin=True), 9, network, signal.SIGTERM)
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"step": 10}\n{"torn')  # written after the checkpoint, by a run that died
    parts = train(tiny(tmp_path / "parts", twin=True, resume=True))
    assert_same_run(parts, whole, ("dense", "sparse"))
    before = (parts / "model.pt").read_bytes()
    assert_same_run(train(tiny(parts, twin=True, resume=True)), whole)  # nothing left to do
    assert (parts / "model.pt").read_bytes() == before
    report = json.loads((parts / "report.json").read_text())
    assert all(layer["flops"] for layer in report["layers"])


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    whole = train(tiny(tmp_path / "whole"))
    interrupt(tiny(tmp_path / "parts"), 15)
    newest, _ = checkpoint.latest(tmp_path / "parts" / "checkpoints" / "sparse")
    assert newest.name == "checkpoint-00000015.pt"
    newest.write_bytes(newest.read_bytes()[:5000])
    with pytest.warns(UserWarning, match=r"checkpoint passed over: .*00000015.pt: damaged"):
        parts = train(tiny(tmp_path / "parts", resume=True))
    assert_same_run(parts, whole)


def test_other_options_are_refused_by_name(tmp_path):
    run = tmp_path / "run"
    interrupt(tiny(run), 9)
    before = (run / "config.yaml").read_bytes(), (run / "metrics.jsonl").read_bytes()
    for options, line in (
        ({"lr": 0.2}, r"other options: lr \(was 0.1, now 0.2\); want the same"),
        ({"epochs": 3, "seed": 1}, r"epochs \(was 2, now 3\), seed \(was 0, now 1\)"),
        ({"density": 0.2, "model": "dropout"}, r"model \(was lenet300, now dropout\), density \(was 0.1, now 0.2\)"),
    ):
        with pytest.raises(ValueError, match=line):
            train(tiny(run, resume=True, **options))
    with pytest.raises(ValueError, match="holds a run; pass --resume to continue it, or another --output"):
        train(tiny(run))
    assert before == ((run / "config.yaml").read_bytes(), (run / "metrics.jsonl").read_bytes())
    train(tiny(run, resume=True, log_every=2, checkpoint_every=3))  # these may change


def test_resume_without_a_checkpoint_starts_and_says_so(tmp_path, capsys):
    run = train(tiny(tmp_path / "run", resume=True, epochs=1))
    assert f"no checkpoint in {run}: starting from the beginning" in capsys.readouterr().out


def test_a_full_disk_leaves_the_checkpoints(tmp_path, capsys):
    run = tmp_path / "run"
    interrupt(tiny(run), 9)
    folder = run / "checkpoints" / "sparse"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        code = main(["train", str(run / "config.yaml"), "--resume"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 1 and "checkpoint-00000012.pt not saved, what was there is intact: File too large" in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert main(["train", str(run / "config.yaml"), "--resume"]) == 0


def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    """The signal comes from outside at a step that nobody chose."""
    options = ["train", "--epochs", "15", "--threads", "1", "--no-twin", "--log-every", "5", "--output"]
    command = [sys.executable, "-m", "aswl", *options, str(tmp_path / "parts")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "parts" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    (line,) = errors.splitlines()
    assert line.startswith("aswl: stopped at step") and line.endswith("config.yaml --resume")
    assert not (tmp_path / "parts" / "model.pt").exists()
    assert main(["train", str(tmp_path / "parts" / "config.yaml"), "--resume"]) == 0
    assert main([*options, str(tmp_path / "whole")]) == 0
    assert same(*(checkpoint.load(tmp_path / name / "model.pt") for name in ("parts", "whole")))


def test_sigterm_is_143(tmp_path, monkeypatch, capsys):
    stop_at(monkeypatch, 3, signum=signal.SIGTERM)
    assert main(["train", "--no-twin", "--threads", "1", "--output", str(tmp_path / "run")]) == 143
    assert "stopped at step 3 of" in capsys.readouterr().err


def test_a_second_ctrl_c_aborts_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), SignalWatch() as watch:
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.signum == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
