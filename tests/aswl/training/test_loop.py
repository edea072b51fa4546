"""The loop: what a run leaves behind, and that its numbers are right."""

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import aswl
from aswl.nn import SparseLinear
from aswl.training import checkpoint, model_file
from aswl.training.config import TrainConfig
from aswl.training.data import Batches, ImageSet
from aswl.training.distributed import World
from aswl.training.evaluate import Score, evaluate
from aswl.training.log import Bar, Lines, Log, MetricsFile
from aswl.training.loop import Loop, lr_factor
from aswl.training.run import train
from aswl.training.signals import SignalWatch
from aswl.training.task import prepare

WORLD = World(torch.device("cpu"))
SIZE = 64 * 300 + 300 * 100 + 100 * 10  # weights of lenet300 on the digits


def tiny(output: Path, **options) -> TrainConfig:
    return TrainConfig(**{"output": output, "epochs": 2, "threads": 1, "log_every": 4} | options)


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


class Collect:
    def __init__(self):
        self.rows = []

    def write(self, row):
        self.rows.append(row)

    def close(self):
        pass


def make_loop(config: TrainConfig, sparse: bool = True) -> tuple[Loop, list[dict]]:
    sink = Collect()
    return Loop(config, prepare(config, WORLD), WORLD, Log([sink]), {}, sparse=sparse), sink.rows


@pytest.mark.parametrize(
    "step, schedule, factor",
    [
        (0, "cosine", 0.2),
        (3, "cosine", 0.8),
        (4, "cosine", 1.0),
        (12, "cosine", 0.5),
        (20, "cosine", 0.0),
        (3, "constant", 0.8),
        (19, "constant", 1.0),
    ],
)
def test_learning_rate(step, schedule, factor):
    assert lr_factor(step, steps=20, warmup=4, schedule=schedule) == pytest.approx(factor)


def test_a_run_and_its_twin(tmp_path):
    run = train(tiny(tmp_path / "run", twin=True, epochs=4))
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "model.pt",
        "report.json",
    }
    got = rows(run)
    assert [(r["network"], r["step"]) for r in got] == [
        (name, step) for name in ("dense", "sparse") for epoch in range(4) for step in _steps_of(epoch)
    ]
    assert [r["epoch"] for r in got if "accuracy" in r] == [1, 2, 3, 4] * 2
    assert all(r["density"] == 1 for r in got if r["network"] == "dense")
    assert got[-1]["density"] == round(0.05 * SIZE) / SIZE
    assert got[0]["lr"] == pytest.approx(0.1 * lr_factor(3, 44, 0, "cosine"))

    report = json.loads((run / "report.json").read_text())
    dense, sparse = report["networks"]["dense"], report["networks"]["sparse"]
    assert dense["accuracy"] == got[len(got) // 2 - 1]["accuracy"] > 0.9
    assert sparse["accuracy"] > 0.5 and sparse["images"] == 359
    assert (sparse["kept"], sparse["size"]) == (round(0.05 * SIZE), SIZE)
    assert [layer["name"] for layer in report["layers"]] == ["fc1", "fc2", "fc3"]
    assert sum(layer["dense_flops"] for layer in report["layers"]) == 2 * SIZE
    assert report["config"]["epochs"] == 4 and report["versions"]["aswl"] == aswl.__version__

    model, score = model_file.score(run)
    assert (score.correct, score.images) == (sparse["correct"], 359)
    assert model.weights() == (sparse["kept"], SIZE)
    assert type(model.network.fc1) is nn.Linear


def _steps_of(epoch: int) -> list[int]:
    """Eleven steps per epoch, a row every 4 steps and one at the end of the epoch."""
    return [step for step in range(11 * epoch + 1, 11 * epoch + 11) if step % 4 == 0] + [11 * epoch + 11]


def test_rows_are_means_over_the_steps_since_the_last(tmp_path):
    (_, every), (_, fourth) = (run_loop(tiny(tmp_path, epochs=1, log_every=n)) for n in (1, 4))
    losses = [row["loss"] for row in every]
    assert len(losses) == 11
    means = [sum(losses[a:b]) / (b - a) for a, b in ((0, 4), (4, 8), (8, 11))]
    assert [row["loss"] for row in fourth] == pytest.approx(means, rel=1e-5)


def run_loop(config: TrainConfig, sparse: bool = True) -> tuple[Loop, list[dict]]:
    loop, got = make_loop(config, sparse)
    with SignalWatch() as watch:
        loop.fit(watch)
    return loop, got


def test_twins_start_from_the_same_weights(tmp_path):
    sparse, dense = (make_loop(tiny(tmp_path), sparse)[0].model for sparse in (True, False))
    for name, weight in dense.named_parameters():
        assert torch.equal(weight, sparse.get_parameter(name))


def test_the_paper_mode_adds_its_penalty(tmp_path):
    options = {"density": None, "epochs": 1, "log_every": 1}
    (_, without), (loop, with_) = (run_loop(tiny(tmp_path, gamma=gamma, **options)) for gamma in (1e-9, 5.0))
    assert with_[0]["loss"] == pytest.approx(without[0]["loss"] + 5.0, abs=1e-4)  # S(a) is 1 before the first step
    assert loop.sparsifier.density < 1


def test_adamw_warm_up_and_excluded_layers(tmp_path):
    options = {"density": 0.3, "exclude": ("fc3",), "warmup_epochs": 1, "lr_schedule": "constant"}
    config = tiny(tmp_path, optimizer="adamw", lr=3e-3, **options)
    loop, got = run_loop(config)
    assert isinstance(loop.optimizer, torch.optim.AdamW)
    assert got[0]["lr"] == pytest.approx(3e-3 * 4 / 12) and got[-1]["lr"] == 3e-3
    assert list(loop.sparsifier.densities()) == ["fc1", "fc2"]
    assert loop.score.accuracy > 0.8


@pytest.mark.parametrize("asked", [{}, {"begin": 0.5, "end": 0.75}, {"pruned_decay": 3.0}])
def test_options_that_are_none_are_the_methods_own(asked, tmp_path):
    settings = make_loop(tiny(tmp_path, **asked))[0].sparsifier.settings
    defaults = aswl.ASWL(nn.Linear(4, 4), density=0.5, steps=5).settings
    for name in ("begin", "end", "pruned_decay"):
        assert getattr(settings, name) == asked.get(name, getattr(defaults, name))


def test_the_report_tells_of_the_trainings_products(tmp_path, monkeypatch):
    """Not of those of one image more, for which another kind may be faster."""
    batches, forward = set(), SparseLinear.forward
    monkeypatch.setattr(SparseLinear, "forward", lambda layer, x: batches.add(len(x)) or forward(layer, x))
    train(tiny(tmp_path, epochs=1))
    assert batches and 1 not in batches
    assert {layer["products"] for layer in json.loads((tmp_path / "report.json").read_text())["layers"]} == {"dense"}


def test_bf16_is_close_to_fp32_and_not_the_same(tmp_path):
    (_, full), (_, half) = (run_loop(tiny(tmp_path, amp=amp, epochs=1)) for amp in ("none", "bf16"))
    assert half[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.02)
    assert half[0]["loss"] != full[0]["loss"]


@pytest.mark.parametrize("amp, supported", [("bf16", False), ("bf16", True), ("none", False)])
def test_bf16_without_instructions_is_told(amp, supported, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    told = pytest.warns(match="no instructions for bf16") if (amp, supported) == ("bf16", False) else nullcontext()
    with told:  # every other warning is an error
        train(tiny(tmp_path, amp=amp, epochs=1))


def test_channels_last_is_another_layout_of_the_same(tmp_path):
    options = {"model": "resnet20", "epochs": 1, "log_every": 1}
    (first, rows), (last, other) = (run_loop(tiny(tmp_path, channels_last=flag, **options)) for flag in (False, True))
    weights = (loop.model.layer1[0].conv1.weight for loop in (first, last))
    assert [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights] == [False, True]
    for row, twin in zip(rows[:3], other):  # rounding grows with the steps
        assert twin["loss"] == pytest.approx(row["loss"], rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo's own doing
def test_compiled_equals_eager(tmp_path, monkeypatch):
    eager, _ = run_loop(tiny(tmp_path, epochs=1))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled, _ = run_loop(tiny(tmp_path, epochs=1, compile=True))
    for name, weight in eager.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], weight)


@pytest.mark.parametrize("sparse, error", [(True, aswl.DeadLayerError), (False, FloatingPointError)])
def test_divergence_stops_the_run_and_leaves_the_last_checkpoint(tmp_path, sparse, error):
    config = tiny(tmp_path, lr=1e30, checkpoint_every=1, epochs=1)
    loop, _ = make_loop(config, sparse)
    with SignalWatch() as watch, pytest.raises(error, match="step"):
        loop.fit(watch)
    _, state = checkpoint.latest(tmp_path / "checkpoints" / loop.name)
    assert all(weight.isfinite().all() for weight in state["model"].values())


def test_evaluation_counts_every_image_once():
    labels = torch.arange(1203) % 10
    images = labels.to(torch.uint8).view(-1, 1, 1, 1)
    data = ImageSet(images, labels, tuple("0123456789"))

    class Oracle(nn.Module):
        def forward(self, x):  # right but for the label 7
            label = (x.flatten() * 255).round().long()
            return nn.functional.one_hot(torch.where(label == 7, 0, label), 10).float()

    model = Oracle().train()
    parts = [
        evaluate(model, Batches(data, 100, train=False, mean=(0,), std=(1,), rank=rank, world_size=2), WORLD)
        for rank in range(2)
    ]
    assert [part.images for part in parts] == [602, 601]
    assert sum(part.correct for part in parts) == 1203 - 120
    assert Score(3, 4).accuracy == 0.75 and model.training


def test_metrics_are_cut_back_to_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).write({"step": 1})
    first = MetricsFile(path, keep=99).position()
    with open(path, "a") as file:
        file.write('{"step": 2}\n{"st')  # a second row, and a torn third
    assert MetricsFile(path, keep=99).position() == 2 * first
    assert MetricsFile(path, keep=first).position() == first
    MetricsFile(path, keep=first - 1)
    assert path.read_bytes() == b""


def test_lines_elsewhere_than_on_a_terminal_are_few(capsys):
    row = {"network": "sparse", "steps": 90, "epoch": 1, "loss": 1.25, "density": 0.5, "lr": 0.1, "images_per_s": 9e3}
    lines = Lines()
    for step in (10, 20, 90):
        lines.write(row | {"step": step, "accuracy": 0.9 if step == 90 else None})
    assert capsys.readouterr().out.splitlines() == [
        "sparse  epoch   1  step 10/90  loss 1.2500  density 0.5000  9,000 images/s",
        "sparse  epoch   1  step 90/90  loss 1.2500  density 0.5000  accuracy 90.00%  9,000 images/s",
    ]
    bar = Bar()
    bar.write(row | {"step": 90, "accuracy": None})
    bar.close()
    assert "loss 1.2500  density 0.5000  9,000 images/s" in capsys.readouterr().out


def test_tensorboard(tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tiny(tmp_path / "run", epochs=1, tensorboard=True))
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    got = [(event.step, pytest.approx(event.value)) for event in events.Scalars("sparse/loss")]
    assert [(row["step"], row["loss"]) for row in rows(tmp_path / "run")] == got
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'aswl\[tensorboard\]'"):
        train(tiny(tmp_path / "other", tensorboard=True))
    assert not (tmp_path / "other").exists()


def test_a_damaged_or_missing_model_file(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no such file"):
        model_file.read(tmp_path)
    checkpoint.save({"model": "lenet300"}, tmp_path, 0).rename(tmp_path / "model.pt")
    with pytest.raises(checkpoint.CheckpointError, match="not the model of a run"):
        model_file.read(tmp_path)
