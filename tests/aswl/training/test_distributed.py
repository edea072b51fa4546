"""Two processes on this machine, over gloo."""

import json
import os
import subprocess
import sys

import pytest
import torch

from aswl.training.distributed import World, join

SCRIPT = """
import sys
from pathlib import Path

import torch

from aswl.training.config import TrainConfig
from aswl.training.distributed import RankMismatchError, join
from aswl.training.log import Log
from aswl.training.loop import Loop
from aswl.training.signals import SignalWatch
from aswl.training.task import prepare

folder = Path(sys.argv[1])
config = TrainConfig(model="resnet20", density=0.1, epochs=1, batch_size=240, checkpoint_every=2, output=folder)
with join("cpu") as world:
    loop = Loop(config, prepare(config, world), world, Log(), {}, sparse=True)
    with SignalWatch() as watch:
        loop.fit(watch)
    torch.save(loop.model.state_dict(), folder / f"rank{world.rank}.pt")
    assert world.largest(world.rank + 4) == 5 and world.share(world.rank) == 0
    assert world.sum(torch.tensor([1.0, world.rank])).tolist() == [2, 1]
    loop.model.fc.threshold.add_(1e-6 * world.rank)
    try:
        world.check_same(loop.model, 7)
    except RankMismatchError as error:
        (folder / f"rank{world.rank}.txt").write_text(str(error))
    del loop
"""


def torchrun(*command: str) -> subprocess.CompletedProcess:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, *command], capture_output=True, text=True, check=False, timeout=200, env=environment
    )


def test_ranks_end_with_the_same_network(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = torchrun(str(script), str(tmp_path))
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert any("running_mean" in name for name in first)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    kept = sum(
        int((first[f"{name[:-10]}.weight"].abs() >= t).sum()) for name, t in first.items() if "threshold" in name
    )
    total = sum(first[f"{name[:-10]}.weight"].numel() for name in first if "threshold" in name)
    assert abs(kept / total - 0.1) < 1e-4
    names = sorted(path.name for path in (tmp_path / "checkpoints" / "sparse").iterdir())
    assert names == ["checkpoint-00000004.pt", "checkpoint-00000005.pt"]
    line = "step 7: the weights, attentions or thresholds of ranks [1] are not those of rank 0"
    assert [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(2)] == [line, line]


def test_the_command_line_under_torchrun(tmp_path):
    options = ["--epochs", "10", "--batch-size", "64", "--no-twin", "--output", str(tmp_path / "run")]
    done = torchrun("-m", "aswl", "train", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    sparse = report["networks"]["sparse"]
    assert report["processes"] == 2 and sparse["kept"] == 2510
    assert sparse["accuracy"] > 0.9 and sparse["images"] == 359
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == sparse["steps"] == 10 * (1438 // 2 // 32)
    again = torchrun("-m", "aswl", "train", str(tmp_path / "run" / "config.yaml"), "--resume", "--batch-size", "7")
    assert again.returncode != 0
    assert "aswl: [rank 0] error: batch_size: want a multiple of the 2 processes; got 7\n" in again.stderr


def test_alone_nothing_is_exchanged():
    with join("cpu") as world:
        tensor = torch.tensor([1.0, 2.0])
        assert world == World(torch.device("cpu"), 0, 1) and world.main
        assert world.sum(tensor) is tensor and world.largest(3) == 3 and world.share("x") == "x"
        world.share_([tensor])
        world.check_same(torch.nn.Linear(2, 2), 0)


@pytest.mark.parametrize("device, line", [("gpu", "want auto, cpu, cuda or cuda:N; got 'gpu'"), ("cuda:99", "want")])
def test_a_device_that_is_not_there(device, line):
    with pytest.raises(ValueError, match=f"device: {line}"), join(device):
        pass


def test_auto_is_what_is_there():
    with join("auto") as world:
        assert world.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
