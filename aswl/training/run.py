"""One run, from its options to a folder that holds everything about it."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import aswl
from aswl.training import checkpoint, model_file
from aswl.training.config import TrainConfig
from aswl.training.distributed import World, join
from aswl.training.evaluate import evaluate, warn_of_emulation
from aswl.training.log import Log, MetricsFile, TensorBoard, console
from aswl.training.loop import Loop
from aswl.training.signals import SignalWatch
from aswl.training.task import Task, prepare

HOLDINGS = ("config.yaml", "metrics.jsonl", "checkpoints")  # what makes a folder that of a run
# Options that may change on the way: none of them enters the weights, and the data go by their content.
FREE = {"data", "device", "compile", "threads", "output", "checkpoint_every", "log_every", "resume", "tensorboard"}


def train(config: TrainConfig) -> Path | None:
    """Train as asked, and write the run's folder: config.yaml, metrics.jsonl, checkpoints, model.pt and report.json.

    Returns the folder in the process that writes it, None in others. Raises ``ValueError`` for options that do not fit
    the data, the machine, or the run in the folder, ``Interrupted`` after a signal, ``OSError`` where the disk fails,
    and what :meth:`aswl.training.loop.Loop.fit` raises.
    """
    config = replace(config, output=config.output or Path("runs") / "unnamed")
    if config.threads:
        torch.set_num_threads(config.threads)
    with join(config.device) as world:
        _run(config, world)
        return config.output if world.main else None


def _run(config: TrainConfig, world: World) -> None:
    if world.main:
        _check_folder(config)
        warn_of_emulation(config.amp, world.device)
    task = prepare(config, world)
    identity = _identity(config, task, world)
    states = {name: _newest(config, name, world) for name in (("dense", "sparse") if config.twin else ("sparse",))}
    for state in filter(None, states.values()):
        _check_identity(identity, state["identity"])
    Loop(config, task, world, Log(), identity, sparse=True)  # what it refuses, it refuses before anything is written
    results: dict[str, Any] = {}
    with _open_log(config, states, world) as log, SignalWatch() as watch:
        for name, state in states.items():
            loop = Loop(config, task, world, log, identity, sparse=name == "sparse")
            if state:
                loop.load_state_dict(state)
            if not loop.finished:
                loop.fit(watch)
            results[name] = loop.result()
    _finish(loop, results)


def _check_folder(config: TrainConfig) -> None:
    if not config.resume and any((config.output / name).exists() for name in HOLDINGS):
        raise ValueError(f"output: {config.output} holds a run; pass --resume to continue it, or another --output")


def _identity(config: TrainConfig, task: Task, world: World) -> dict[str, Any]:
    """What must be the same for a checkpoint to be continued."""
    options = {name: value for name, value in asdict(config).items() if name not in FREE}
    return options | {"data": task.digest, "processes": world.size}


def _check_identity(own: dict[str, Any], its: dict[str, Any]) -> None:
    if differing := [name for name in own | its if own.get(name) != its.get(name)]:
        pairs = ", ".join(f"{name} (was {its.get(name)}, now {own.get(name)})" for name in differing)
        raise ValueError(
            f"resume: the checkpoint was made with other options: {pairs}; want the same, or another --output"
        )


def _newest(config: TrainConfig, name: str, world: World) -> dict[str, Any] | None:
    """The newest readable checkpoint of a network, read by one process for all."""
    found = checkpoint.latest(config.output / "checkpoints" / name) if config.resume and world.main else None
    return world.share(found and found[1])


def _open_log(config: TrainConfig, states: dict[str, dict[str, Any] | None], world: World) -> Log:
    """Make the run's folder and open its log, cut back to what the newest checkpoint has seen."""
    if not world.main:
        return Log()
    seen = [state["metrics"] for state in states.values() if state]
    if config.resume and not seen:
        print(f"no checkpoint in {config.output}: starting from the beginning", flush=True)
    board = [TensorBoard(config.output / "tensorboard")] if config.tensorboard else []
    config.output.mkdir(parents=True, exist_ok=True)
    config.save(config.output / "config.yaml")
    return Log([*board, MetricsFile(config.output / "metrics.jsonl", max(seen, default=0)), console()])


def _finish(loop: Loop, results: dict[str, Any]) -> None:
    """Write the finished sparse network and the numbers of the run."""
    config, world, task = loop.config, loop.world, loop.task
    loop.model.eval()
    if any(layer.flops is None for layer in loop.sparsifier.summary().layers):  # a resumed network may not have run yet
        with torch.no_grad():
            loop.model(next(task.test.epoch(0))[0][:1])
    network, summary = loop.sparsifier.finalize(), loop.sparsifier.summary()
    score = evaluate(network, task.test, world, config.amp)
    if not world.main:
        return
    model_file.save(config.output, config.model, network, task, (layer.name for layer in summary.layers))
    results["sparse"] |= {"accuracy": score.accuracy, "correct": score.correct}
    results["sparse"] |= {"kept": summary.kept, "size": summary.size, "density": summary.density}
    options = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    report = {
        "versions": {"aswl": aswl.__version__, "torch": torch.__version__},
        "device": str(world.device),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "config": options,
        "networks": results,
        "layers": [asdict(layer) for layer in summary.layers],
    }
    aside = config.output / "report.json.new"
    aside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(aside, config.output / "report.json")
