"""Checkpoints are whole or absent, and nothing damaged or foreign is taken for one."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from aswl.training import checkpoint
from aswl.training.checkpoint import CheckpointError


def make_state(value: float = 1.0) -> dict:
    return {
        "model": {"w": torch.full((5, 3), float(value)), "half": torch.tensor([1.5], dtype=torch.bfloat16)},
        "epoch": 3,
        "history": [0.5, None, "x", (1, 2)],
        "rng": torch.Generator().manual_seed(7).get_state(),
    }


def assert_same(got: dict, wanted: dict) -> None:
    assert repr(got) == repr(wanted)
    for name, tensor in wanted["model"].items():
        assert torch.equal(got["model"][name], tensor)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_keeps_the_newest_two(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    for step in (9, 100, 20):
        path = checkpoint.save(make_state(step), folder, step)
        assert path == folder / f"checkpoint-{step:08d}.pt"
    # step 20 was written last: it stays although a used folder holds later steps
    assert names(folder) == ["checkpoint-00000020.pt", "checkpoint-00000100.pt"]
    path, state = checkpoint.latest(folder)
    assert path.name == "checkpoint-00000100.pt"
    assert_same(state, make_state(100))
    assert_same(checkpoint.load(folder / "checkpoint-00000020.pt"), make_state(20))


def test_nothing_there(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "absent") is None
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(tmp_path / "checkpoint-00000001.pt")


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (99_999_999, 100_000_000):
        checkpoint.save(make_state(step), tmp_path, step)
    assert checkpoint.latest(tmp_path)[0].name == "checkpoint-100000000.pt"


@pytest.mark.parametrize(
    ("state", "keyword", "error", "match"),
    [
        ({"x": np.float64(1)}, {}, TypeError, "numpy"),
        ({"x": torch.nn.Linear(1, 1)}, {}, TypeError, r"Linear"),
        ({"format": 1}, {}, ValueError, "'format' is taken"),
        ({}, {"keep": 0}, ValueError, "keep at least 1 .* got 0"),
        ({}, {"step": -1}, ValueError, "step at least 0; got 2 and -1"),
    ],
)
def test_save_refuses(tmp_path, state, keyword, error, match):
    with pytest.raises(error, match=match):
        checkpoint.save(state, tmp_path, **{"step": 1, **keyword})
    assert names(tmp_path) == []


def test_every_flipped_bit_is_caught_or_harmless(tmp_path):
    path = checkpoint.save({"w": torch.arange(4.0)}, tmp_path, 1)
    content, outcomes = path.read_bytes(), set()
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes((content[i] ^ 1 << i % 8,)) + content[i + 1 :])
        try:
            assert checkpoint.load(path)["w"].tolist() == [0, 1, 2, 3], f"byte {i}"
            outcomes.add("harmless")  # padding and time stamps of the zip
        except CheckpointError:
            outcomes.add("caught")
    assert outcomes == {"harmless", "caught"}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((5, 3), 2.0).numpy().tobytes()) + 7] ^= 1
    path.write_bytes(content)


def another_project(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def a_bare_tensor(path: Path) -> None:
    torch.save(torch.ones(2), path)


def a_whole_module(path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), path)


def a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (truncate, "damaged or foreign"),
        (empty, "damaged or foreign"),
        (flip_a_weight, "wrong checksum in .*data/"),
        (another_project, "without the mark aswl-checkpoint-1"),
        (a_bare_tensor, "without the mark"),
        (a_whole_module, "other objects than tensors"),
        (a_zip, "damaged or foreign"),
    ],
)
def test_a_bad_file_is_named_and_the_previous_one_used(tmp_path, harm, why):
    checkpoint.save(make_state(1), tmp_path, 1)
    harm(checkpoint.save(make_state(2), tmp_path, 2))
    with pytest.raises(CheckpointError, match=rf"checkpoint-00000002\.pt: .*{why}"):
        checkpoint.load(tmp_path / "checkpoint-00000002.pt")
    with pytest.warns(UserWarning, match=rf"checkpoint-00000002\.pt: .*{why}") as caught:
        path, state = checkpoint.latest(tmp_path)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert path.name == "checkpoint-00000001.pt"
    assert_same(state, make_state(1))


def test_none_readable(tmp_path):
    for step in (1, 2):
        truncate(checkpoint.save(make_state(), tmp_path, step))
    with pytest.warns(UserWarning, match="passed over"), pytest.raises(CheckpointError, match="none of 2 checkpoints"):
        checkpoint.latest(tmp_path)


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    root = Path(checkpoint.__file__).parents[2]
    command = [sys.executable, "-c", code, folder]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)


def test_full_disk_leaves_the_previous_checkpoint(tmp_path):
    checkpoint.save(make_state(1), tmp_path, 1)
    code = """
import resource, sys, torch
from aswl.training import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    checkpoint.save({"w": torch.zeros(10_000)}, sys.argv[1], 2, keep=1)
except OSError as error:
    print(error)
"""
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "checkpoint-00000002.pt not saved, what was there is intact: File too large" in result.stdout
    assert names(tmp_path) == ["checkpoint-00000001.pt"]
    assert_same(checkpoint.latest(tmp_path)[1], make_state(1))


def test_interrupt_while_writing_leaves_no_temporary(tmp_path):
    code = """
import os, signal, sys, torch
from aswl.training import checkpoint
sync = os.fsync
os.fsync = lambda file: (sync(file), signal.raise_signal(signal.SIGINT))
checkpoint.save({"w": torch.zeros(10)}, sys.argv[1], 2)
"""
    checkpoint.save(make_state(1), tmp_path, 1)
    assert "KeyboardInterrupt" in run(code, tmp_path).stderr
    assert names(tmp_path) == ["checkpoint-00000001.pt"]


def test_leftovers_of_a_killed_run_are_ignored_then_removed(tmp_path):
    code = """
import os, signal, sys, torch
from aswl.training import checkpoint
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save({"w": torch.zeros(10)}, sys.argv[1], 2)
"""
    checkpoint.save(make_state(1), tmp_path, 1)
    run(code, tmp_path)
    assert names(tmp_path) == ["checkpoint-00000001.pt", "checkpoint-00000002.pt.tmp"]
    assert_same(checkpoint.latest(tmp_path)[1], make_state(1))
    checkpoint.save(make_state(3), tmp_path, 3)
    assert names(tmp_path) == ["checkpoint-00000001.pt", "checkpoint-00000003.pt"]


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match=r"checkpoint-00000001\.pt not saved"):
        checkpoint.save(make_state(), tmp_path / "taken", 1)
